"""What a run keeps in its folder so that it can go on after it was killed, and whether it is the same run that does."""

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

_OF_NO_RESULT = (
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
"""Settings that may change: no result depends on them. The checkpoint, data and code are known by their hashes."""
_FORM = 4
"""Of what a state holds: raised with it, so that states from before are refused by name."""
_SHOWN = 8


class UnreadableState(CheckpointRefused):
    """There is a state, but nothing that one could go on from."""


class OtherRun(UsageError):
    """What was begun in the folder is not what is asked to go on."""


class FolderStateStore:
    """Keeps the state of a run in its folder, every so many seconds and whenever the run is asked to stop.

    Args:
        every: seconds; 0: at every moment.
        identity: what must be the same for the run to go on.
    """

    def __init__(self, folder: RunFolder, every: float, identity: Mapping[str, Any]) -> None:
        self._folder, self._every, self._identity = folder, every, {**identity, "form of the state": _FORM}
        self._last = time.monotonic()
        self.stop: type[BaseException] | None = None
        """Raised after the next state is kept."""
        self.writing = False
        """A state is on its way to the disk: what would end the run waits for it."""

    def load(self) -> Mapping[str, Any] | None:
        """The state of the run that goes on. OtherRun where it was another run's."""
        file = self._folder.state
        if file is None:
            return None
        found = _read(file)
        refuse_changes(found["identity"], self._identity)
        state: Mapping[str, Any] = found["run"]
        return state

    def due(self) -> bool:
        return self.stop is not None or time.monotonic() - self._last >= self._every

    def save(self, state: Mapping[str, Any]) -> None:
        import torch

        def write(file: IO[bytes]) -> None:
            torch.save({"identity": self._identity, "run": dict(state)}, file)

        self.writing = True
        try:
            self._folder.keep(write)
        finally:
            self.writing = False
        self._last = time.monotonic()
        if self.stop is not None:
            raise self.stop


class FollowerStateStore:
    """In a process that follows the main one: reads the state that the main one goes on from, and keeps none."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.writing = False
        self.stop: type[BaseException] | None = None
        """What a signal asks for; the main process, which got it too, ends the run at its next moment."""

    def load(self) -> Mapping[str, Any] | None:
        return None if self._file is None else _read(self._file)["run"]

    def due(self) -> bool:
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        pass


def _read(file: Path) -> dict[str, Any]:
    """What ``keep`` wrote. UnreadableState for a file that holds anything else, or that is damaged."""
    try:
        if not file.is_file():
            raise UnreadableState(f"{file} is no regular file", "start over with --force")
        with refuse_failures(file), file.open("rb") as stream:
            kept = TorchFile(file, stream, os.fstat(stream.fileno()).st_size)
            found = kept.values()
            kept.check_rest()
            if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("identity", "run")):
                raise ValueError("it holds something else")
    except CheckpointRefused as err:
        raise UnreadableState(
            f"the state in {file.parent} cannot be read: {err.cause}",
            "start over with --force; several machines need a folder that all of them see",
        ) from err
    return found


def identity(config: Config, device: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What a run's result depends on: its settings by dotted key, and hashes: checkpoint, data, code."""
    return _identity(config.model_dump(), device, hashes)


def identity_of_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a finished run. UnreadableState for a report that does not say it."""
    settings, hashes = report.get("configuration"), report.get("hashes")
    if not isinstance(settings, dict) or not isinstance(hashes, dict) or not isinstance(report.get("device"), str):
        raise UnreadableState("the report in the folder does not identify its run", "start over with --force")
    own = {name: value for name, value in hashes.items() if name != MODEL_HASH}  # what came of it is no part of it
    return _identity(settings, report["device"], own)


@contextmanager
def restoring() -> Iterator[None]:
    """Whatever taking up a state raises says that it is none of this run's: UnreadableState."""
    try:
        yield
    except PruneTaylorError:
        raise
    except Exception as err:
        why = f"{type(err).__name__}: {first_line(err)}"
        raise UnreadableState(
            f"the state that was kept is not one of this run: {why}", "start over with --force"
        ) from err


def refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """OtherRun that names what differs."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not keys:
        return
    shown = [f"{key} was {_shown(then.get(key))} and is {_shown(now.get(key))}" for key in keys[:_SHOWN]]
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    raise OtherRun(
        f"this is not the run that was begun here: {'; '.join(shown)}{more}",
        "give the same settings, checkpoint, data, code and versions to --resume, or choose another folder with -o",
    )


def _identity(configuration: Mapping[str, Any], device: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    kept = {key: value for key, value in dotted(configuration) if value != {} and not key.startswith(_OF_NO_RESULT)}
    return {**kept, "device": device, **{f"hash of the {name}": value for name, value in hashes.items()}}


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
