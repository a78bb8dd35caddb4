"""A trial's state: kept as that of any run, so that a trial that was given back goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prunetaylor.core.progress import Progress
from prunetaylor.pipeline.files.resume import FolderStateStore, OtherRun, UnreadableState, identity
from prunetaylor.pipeline.files.run_folder import STATE, FolderInUse, RunFolder
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.run import hashes
from prunetaylor.report.json_report import versions

_PATIENCE = 120.0
"""Seconds to wait for a trial's folder: shared file systems keep the locks of a machine that is lost for so long."""
_PAUSE = 2.0


class TrialStateStore(FolderStateStore):
    """Keeps the state of a trial. One that is of no use is left aside, and the trial starts anew."""

    def __init__(self, folder: RunFolder, job: Job, judged: str, progress: Progress) -> None:
        ran_on = {f"version of {name}": number for name, number in versions().items() if name != "python"}
        known = {**identity(job.config, str(job.device), hashes(job)), "samples": judged, **ran_on}
        super().__init__(folder, job.config.checkpoint.every, known)
        self._found: Mapping[str, Any] | None = None
        try:
            self._found = super().load()
        except (OtherRun, UnreadableState) as err:
            progress.note(f"starts anew: {err.cause}")
            drop_state(folder)
        if self._found is not None:
            progress.note("goes on from the state that an earlier attempt left")

    def load(self) -> Mapping[str, Any] | None:
        """The state, to be computed with by as many threads as there are here: it may come from another machine."""
        return None if self._found is None else {**self._found, "threads": torch.get_num_threads()}


def drop_state(folder: RunFolder) -> None:
    """Take away the state: the next attempt starts anew."""
    folder.stage(STATE).unlink(missing_ok=True)


def open_folder(path: Path) -> RunFolder:
    """The trial's folder, with what an earlier attempt left; waits where that one is not quite gone."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return RunFolder.create(path, path.name, resume=True)
        except FolderInUse:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE)
