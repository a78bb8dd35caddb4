"""The files of a Hugging Face folder: which of them hold the weights. No torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunetaylor.core.errors import CheckpointRefused, UsageError
from prunetaylor.core.json_file import read_json
from prunetaylor.core.text import neutral

CONFIG = "config.json"
_INDEX = ".index.json"
_WEIGHTS = ("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")
_OTHERS = ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx", "adapter_model.safetensors")
_NOWHERE = ("/dev/", "/proc/", "/sys/", "/net/")
_MOST_SHARDS = 10_000
_SAVE = "save it again: model.save_pretrained(DIR)"


def is_model_folder(folder: Path) -> bool:
    """Return whether ``folder`` describes a network as transformers does."""
    return (folder / CONFIG).is_file() or (folder / "modules.json").is_file()


def find_weights(folder: Path) -> Path:
    """Return the file in a model's folder that holds the weights, or that lists the files which hold them.

    Raises UsageError: there is none.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    other = next((name for name in _OTHERS if (folder / name).is_file()), None)
    has = f"it has {other}, which torch does not load" if other else "none of " + ", ".join(_WEIGHTS)
    raise UsageError(f"{folder} has no weights for torch: {has}", _SAVE)


def is_index(file: Path) -> bool:
    """Return whether the file lists the shards of a checkpoint."""
    return file.name.endswith(_INDEX)


def shards(index: Path) -> list[Path]:
    """Return the files that an index lists, in the order of their names.

    Raises CheckpointRefused: the index is malformed, or names files outside its folder or missing ones.
    """
    document = read_object(index)
    mapping = document.get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise CheckpointRefused(f"{index} has no weight_map from tensors to files", _SAVE)
    names = sorted(set(mapping.values()))
    if len(names) > _MOST_SHARDS:
        raise CheckpointRefused(f"{index} names {len(names):,} files", _SAVE)
    for name in names:
        if Path(name).name != name or name in ("", ".", "..") or "\0" in name or "\\" in name:
            raise CheckpointRefused(f"{index} names a file outside its folder: {neutral(name)}", _SAVE)
        if not (index.parent / name).is_file():
            raise CheckpointRefused(f"{index} names {neutral(name)}, which is missing", "copy the whole folder")
    return [index.parent / name for name in names]


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of the folder; CheckpointRefused if it cannot be read or is something else."""
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointRefused(f"{file} cannot be read: {why}", "copy the whole folder again") from error
    if not isinstance(document, dict):
        raise CheckpointRefused(f"{file} is no JSON object", "copy the whole folder again")
    return document


def named_folder(path: str) -> Path:
    """Return the folder that ``hf:path`` names.

    Raises UsageError: it is no such folder. A path that a file may have given reaches no device and no other machine.
    """
    slashed = path.replace("\\", "/")
    folder = Path(path).expanduser()
    if "://" in path or "\0" in path or slashed.startswith(("//", *_NOWHERE)) or not is_model_folder(folder):
        raise UsageError(
            f"hf:{neutral(path)} is no folder with {CONFIG}", "name a local folder; nothing is fetched from a hub"
        )
    return folder
