"""The run of ``prunetaylor prune``, from its folder to its written result, in the main process and in its followers."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetaylor.core.errors import NumericsError
from prunetaylor.pipeline.files.run_folder import MODEL_FILE
from prunetaylor.pipeline.files.signals import stop_at_checkpoints

from .network_command import Request
from .options import State

if TYPE_CHECKING:
    from prunetaylor.core.config.code import Trust
    from prunetaylor.core.config.schema import Config
    from prunetaylor.core.progress import Logged, Progress
    from prunetaylor.core.results.outcome import PruneResult
    from prunetaylor.core.results.verdict import Verdict
    from prunetaylor.pipeline.files.run_folder import RunFolder
    from prunetaylor.pipeline.job import Job

_REPORT_BYTES = 2**20
"""Free bytes that the report and the log need; the network's size is known once it is open."""
_FINISHED = "finished"
"""The main process sends this to its followers, in place of a state, where the run was finished before."""


@dataclass(frozen=True)
class FinishedRun:
    """A run's report and notes. ``result`` and ``verdict`` are None where the run was finished before."""

    document: dict[str, Any]
    notes: list[str]
    result: PruneResult | None = None
    verdict: Verdict | None = None


def run_main(state: State, request: Request, *, force: bool, resume: bool) -> FinishedRun:
    """Run the job in the process that prints and writes. An error sets ``State.remedy`` to the way to continue."""
    from prunetaylor.core.progress import Logged
    from prunetaylor.pipeline.files.run_folder import RunFolder

    from ..terminal.progress import reporter

    config = request.resolved.config
    output = Path(config.output) if config.output else None
    folder = RunFolder.create(output, _run_name(config.model.checkpoint), force=force, resume=resume)
    try:
        with folder, reporter(state) as shown:
            return _run_in(folder, request, Logged(shown, None if folder.finished else folder))
    except BaseException as err:
        state.remedy = _continuation(err, folder)
        raise


def _run_in(folder: RunFolder, request: Request, progress: Logged) -> FinishedRun:
    # torch is imported only here, when the folder is known to be usable
    from prunetaylor.gate.check import limits_set
    from prunetaylor.pipeline.files.input_hashes import input_hashes
    from prunetaylor.pipeline.files.outputs import write_page, write_run
    from prunetaylor.pipeline.files.resume import FolderStateStore, report_inputs, require_same_inputs, run_inputs
    from prunetaylor.pipeline.run import run
    from prunetaylor.report.json_report import versions
    from prunetaylor.report.trackers._trackers import Trackers
    from prunetaylor.runtime.processes.exchange import from_main
    from prunetaylor.runtime.processes.group import world

    config = request.resolved.config
    job = open_checked(config, request.trust, progress)
    inputs = run_inputs(config, str(job.device), input_hashes(job))
    if folder.finished:
        require_same_inputs(report_inputs(folder.report()), inputs)
        from_main(_FINISHED)
        return FinishedRun(folder.report(), progress.notes)
    folder.require(_REPORT_BYTES + sum(t.nbytes for t in job.network.module.state_dict().values()))
    # A finished run is the same whatever it ran on. One that continues needs the same shares of the work and, to end
    # with the same bits, the same arithmetic.
    ran_on = {f"version of {name}": number for name, number in versions().items() if name != "python"}
    store = FolderStateStore(folder, config.checkpoint.every, {**inputs, "processes": world(), **ran_on})
    from_main(None if folder.state is None else str(folder.state.resolve()))
    trackers = Trackers(config.track, folder.stage(""), folder.path.name, inputs, progress.note)
    with stop_at_checkpoints(store), closing(trackers):
        progress.trackers = trackers
        result = run(job, progress, store)
    progress.phase("write")
    result, document = write_run(folder, request.resolved, result, job.describe_network(), {"loss": job.config.loss})
    try:
        verdict = _judge_run(folder, config, request.trust, document, progress) if limits_set(config.gate) else None
        write_page(folder, document)
    finally:
        folder.commit()  # a finished run is kept, whatever its verdict
    if store.stop is not None:  # the signal came after the last checkpoint, when no work remained to be interrupted
        raise store.stop
    return FinishedRun(document, progress.notes, result, verdict)


def open_checked(config: Config, trust: Trust, progress: Progress) -> Job:
    """Open the job, after the limits of the gate are known to be sound; UsageError where the run cannot meet them."""
    from prunetaylor.gate.check import limits_set, require_limits, require_reachable
    from prunetaylor.pipeline.job import open_job

    if limits_set(config.gate):
        require_limits(config)
    job = open_job(config, trust=trust, progress=progress)
    require_reachable(job)
    return job


def _continuation(err: BaseException, folder: RunFolder) -> str:
    """Return how to continue a run that ``err`` has ended; an empty text where its state is missing or useless."""
    if folder.state is None:
        return ""
    from prunetaylor.pipeline.files.resume import OtherRun, UnreadableState

    if isinstance(err, UnreadableState | OtherRun):
        return ""
    if isinstance(err, NumericsError):  # the same command would end here again
        return f"to start over with other settings, add --force, or use another folder than {folder.path}"
    return f"its state is saved; continue with the same command and --resume -o {shlex.quote(str(folder.path))}"


def _judge_run(
    folder: RunFolder, config: Config, trust: Trust, document: dict[str, Any], progress: Progress
) -> Verdict:
    """Judge the written network against the dense one, and add the verdict to the report."""
    from prunetaylor.pipeline.files.run_folder import REPORT
    from prunetaylor.report.json_report import verdict_to_json

    # the run's own plan for memory allows no larger batches
    batch = min(config.data.batch_size, (document["memory"] or {}).get("batch", config.data.batch_size))
    verdict = _check_written(config, (str(folder.stage(MODEL_FILE)), batch), trust, progress)
    verdict = replace(verdict, files={**verdict.files, "pruned": document["files"]["model"]})
    document["gate"] = verdict_to_json(verdict)
    folder.write_text(REPORT, json.dumps(document, indent=2, allow_nan=False) + "\n")
    folder.log("gate", verdict=verdict.status, exit_code=verdict.exit_code)
    return verdict


def _check_written(config: Config, written: tuple[str, int], trust: Trust, progress: Progress) -> Verdict:
    """Judge the network in the main process's ``written`` (its file, and the samples of a batch).

    Every process measures its share of the samples, and all return the same verdict.
    """
    from prunetaylor.gate.check import check
    from prunetaylor.runtime.processes.exchange import from_main

    file, batch = from_main(written)
    sections = {
        "model": config.model.model_copy(update={"checkpoint": file}),
        "data": config.data.model_copy(update={"batch_size": batch}),
        "gate": config.gate.model_copy(update={"baseline": config.gate.baseline or config.model.checkpoint}),
    }
    return check(config.model_copy(update=sections), trust=trust, progress=progress)


def run_follower(state: State, request: Request) -> None:
    """Run the job in a process that has a share of the work, and neither prints nor writes."""
    from prunetaylor.core.progress import Logged
    from prunetaylor.gate.check import limits_set
    from prunetaylor.pipeline.files.resume import FollowerStateStore
    from prunetaylor.pipeline.job import open_job
    from prunetaylor.pipeline.run import run
    from prunetaylor.runtime.processes.exchange import from_main

    from ..terminal.progress import reporter

    config = request.resolved.config
    with reporter(state) as shown:
        progress = Logged(shown, None)
        job = open_job(config, trust=request.trust, progress=progress)
        main_state: str | None = from_main(None)
        if main_state == _FINISHED:
            return
        store = FollowerStateStore(None if main_state is None else Path(main_state))
        with stop_at_checkpoints(store):
            run(job, progress, store)
        if limits_set(config.gate):
            _check_written(config, ("", 0), request.trust, progress)


def _run_name(checkpoint: str | None) -> str:
    """Return the name of a run: that of its checkpoint's file, or of the run that it prunes further."""
    path = Path(checkpoint or "")
    return path.parent.resolve().name if path.name == MODEL_FILE else path.stem if path.suffix else path.name
