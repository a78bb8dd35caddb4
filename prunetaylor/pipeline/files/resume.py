"""The saved state of a run in its folder, and the check that a resumed run has the same inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prunetaylor.core.config.keys import dotted
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import CheckpointRefused, PruneTaylorError, UsageError
from prunetaylor.core.text import first_line
from prunetaylor.network.checkpoint.read import MODEL_HASH
from prunetaylor.network.checkpoint.refusal import refuse_failures
from prunetaylor.network.checkpoint.torch_format.torch_file import TorchFile
from prunetaylor.pipeline.files.run_folder import RunFolder

_WITHOUT_EFFECT = (
    "model.checkpoint",
    "output",
    "memory",
    "checkpoint.",
    "cache.",
    "data.workers",
    "data.root",
    "data.download",
    "track",
)
"""Settings that may change, as no result depends on them. Checkpoint, data and code are compared by their hashes."""
_FORM = 7
"""The form of a state; raised when its content changes, so that older states are refused with the reason."""
_SHOWN = 8


class UnreadableState(CheckpointRefused):
    """The saved state cannot be resumed from."""


class OtherRun(UsageError):
    """The run in the folder has other inputs than the one that is to resume it."""


class FolderStateStore:
    """Saves the state of a run in its folder, at regular times and whenever the run is asked to stop.

    Args:
        every: seconds between two states; 0: at every checkpoint.
        inputs: everything that must be the same for the run to resume.
    """

    def __init__(self, folder: RunFolder, every: float, inputs: Mapping[str, Any]) -> None:
        self._folder, self._every, self._inputs = folder, every, {**inputs, "form of the state": _FORM}
        self._last = time.monotonic()
        self.stop: type[BaseException] | None = None
        """Raised after the next state is saved."""
        self.writing = False
        """A state is being written; whoever would end the run waits for it."""

    def load(self) -> Mapping[str, Any] | None:
        """Return the state to resume from. OtherRun if it is another run's."""
        file = self._folder.state
        if file is None:
            return None
        saved = read_state(file)
        require_same_inputs(saved["inputs"], self._inputs)
        state: Mapping[str, Any] = saved["run"]
        return state

    def due(self) -> bool:
        return self.stop is not None or time.monotonic() - self._last >= self._every

    def save(self, state: Mapping[str, Any]) -> None:
        import torch

        def write(file: IO[bytes]) -> None:
            torch.save({"inputs": self._inputs, "run": dict(state)}, file)

        self.writing = True
        try:
            self._folder.save_state(write)
        finally:
            self.writing = False
        self._last = time.monotonic()
        if self.stop is not None:
            raise self.stop


class FollowerStateStore:
    """Reads, in a process that follows the main one, the state that the main one resumes from, and saves none."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.writing = False
        self.stop: type[BaseException] | None = None
        """Set by a signal. The main process, which gets it too, ends the run at its next checkpoint."""

    def load(self) -> Mapping[str, Any] | None:
        return None if self._file is None else read_state(self._file)["run"]

    def due(self) -> bool:
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        pass


def read_state(file: Path) -> dict[str, Any]:
    """Read a saved state. UnreadableState for a file that is damaged or holds anything else."""
    try:
        if not file.is_file():
            raise UnreadableState(f"{file} is no regular file", "start over with --force")
        with refuse_failures(file), file.open("rb") as stream:
            content = TorchFile(file, stream, os.fstat(stream.fileno()).st_size)
            saved = content.values()
            content.check_rest()
            if not isinstance(saved, dict) or not all(isinstance(saved.get(key), dict) for key in ("inputs", "run")):
                raise ValueError("it holds something else")
    except CheckpointRefused as err:
        raise UnreadableState(
            f"the state in {file.parent} cannot be read: {err.cause}",
            "start over with --force; several machines need a folder that all of them see",
        ) from err
    return saved


def run_inputs(config: Config, device: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that a run's result depends on: settings by dotted key, device, and hashes of its inputs."""
    return _inputs(config.model_dump(), device, hashes)


def report_inputs(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a finished run. UnreadableState for a report that lacks them."""
    settings, hashes = report.get("configuration"), report.get("hashes")
    if not isinstance(settings, dict) or not isinstance(hashes, dict) or not isinstance(report.get("device"), str):
        raise UnreadableState("the report in the folder does not identify its run", "start over with --force")
    own = {name: value for name, value in hashes.items() if name != MODEL_HASH}  # the result is no input
    return _inputs(settings, report["device"], own)


@contextmanager
def restoring() -> Iterator[None]:
    """Turn every exception inside the block into an UnreadableState: the state does not fit this run."""
    try:
        yield
    except PruneTaylorError:
        raise
    except Exception as err:
        why = f"{type(err).__name__}: {first_line(err)}"
        raise UnreadableState(f"the saved state does not belong to this run: {why}", "start over with --force") from err


def require_same_inputs(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise OtherRun that names the differences, if there are any."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not keys:
        return
    shown = [f"{key} was {_shorten(then.get(key))} and is {_shorten(now.get(key))}" for key in keys[:_SHOWN]]
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    raise OtherRun(
        f"this is not the run that was begun here: {'; '.join(shown)}{more}",
        "give the same settings, checkpoint, data, code and versions to --resume, or choose another folder with -o",
    )


def _inputs(configuration: Mapping[str, Any], device: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    settings = {
        key: value for key, value in dotted(configuration) if value != {} and not key.startswith(_WITHOUT_EFFECT)
    }
    return {**settings, "device": device, **{f"hash of the {name}": value for name, value in hashes.items()}}


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
