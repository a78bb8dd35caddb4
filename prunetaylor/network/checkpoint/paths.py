"""The checkpoint file that a user's path means. No torch is imported, so that a wrong path is reported at once."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.core.text import neutral
from prunetaylor.network.checkpoint.huggingface.folder import find_weights, is_model_folder

RUN_FILE = "model.safetensors"  # a run's folder stands for this file in it


def find_checkpoint(path: str | Path) -> Path:
    """Return the file that ``path`` means; of a model in several files it is the one that lists them.

    Raises UsageError: it is missing, or a directory with neither a run nor a model.
    """
    file = Path(path)
    try:
        file.stat()
    except FileNotFoundError:
        pass  # reported below, with similar names
    except (OSError, ValueError) as error:  # a name that no file can have, or a folder that may not be entered
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read {neutral(str(file))}: {why}", "name an existing checkpoint") from error
    if file.is_dir():
        if (file / RUN_FILE).is_file():
            return file / RUN_FILE
        if is_model_folder(file):
            return find_weights(file)
        raise UsageError(
            f"{file} is a directory without {RUN_FILE}",
            "name a checkpoint file, the folder of a finished run, or a model's folder of Hugging Face",
        )
    if not file.exists():
        if file.is_symlink():
            raise UsageError(
                f"{file} is a link to {os.readlink(file)}, which is missing", "name an existing checkpoint"
            )
        near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UsageError(f"no such file: {file}{close_match(file.name, near)}", "name an existing checkpoint")
    if not file.is_file():
        if file.is_fifo():
            way = f"write it to a file first: cat {shlex.quote(str(file))} > model.pt"
            raise UsageError(f"{file} is a pipe, and a checkpoint is read more than once", way)
        raise UsageError(f"{file} is a device or a socket, not a file", "name a checkpoint file")
    return file
