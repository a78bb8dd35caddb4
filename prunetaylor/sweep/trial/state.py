"""The state of a trial. It is saved like that of any run, and a trial that returned to the queue continues from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prunetaylor.core.progress import Progress
from prunetaylor.pipeline.files.input_hashes import input_hashes
from prunetaylor.pipeline.files.resume import FolderStateStore, OtherRun, UnreadableState, run_inputs
from prunetaylor.pipeline.files.run_folder import STATE, FolderInUse, RunFolder
from prunetaylor.pipeline.job import Job
from prunetaylor.report.json_report import versions

_PATIENCE = 120.0
"""Seconds to wait for a trial's folder: shared file systems keep the locks of a machine that is lost for so long."""
_PAUSE = 2.0


class TrialStateStore(FolderStateStore):
    """Saves the state of a trial. A state that cannot be used is dropped, and the trial starts over."""

    def __init__(self, folder: RunFolder, job: Job, ranking: str, progress: Progress) -> None:
        ran_on = {f"version of {name}": number for name, number in versions().items() if name != "python"}
        known = {**run_inputs(job.config, str(job.device), input_hashes(job)), "samples": ranking, **ran_on}
        super().__init__(folder, job.config.checkpoint.every, known)
        self._state: Mapping[str, Any] | None = None
        try:
            self._state = super().load()
        except (OtherRun, UnreadableState) as err:
            progress.note(f"starts over: {err.cause}")
            drop_state(folder)
        if self._state is not None:
            progress.note("continues from the state of an earlier attempt")

    def load(self) -> Mapping[str, Any] | None:
        """Return the state with this process's number of threads: it may come from another machine."""
        return None if self._state is None else {**self._state, "threads": torch.get_num_threads()}


def drop_state(folder: RunFolder) -> None:
    """Remove the state: the next attempt starts over."""
    folder.stage(STATE).unlink(missing_ok=True)


def open_folder(path: Path) -> RunFolder:
    """Open the trial's folder with the files of an earlier attempt, and wait while that attempt still ends."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return RunFolder.create(path, path.name, resume=True)
        except FolderInUse:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE)
