"""One trial: an ordinary run in a folder of its own, measured on the samples that rank as well."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import torch

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.resolve import Resolved, flat, override
from prunetaylor.core.errors import NumericsError, OutputError, PruneTaylorError
from prunetaylor.core.json_file import read_json
from prunetaylor.core.progress import Logged, Silent
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import say_doubts
from prunetaylor.pipeline.files.outputs import write_page, write_run
from prunetaylor.pipeline.files.resume import FolderStateStore
from prunetaylor.pipeline.files.run_folder import REPORT, RunFolder
from prunetaylor.pipeline.job import Job, open_job
from prunetaylor.pipeline.run import run
from prunetaylor.report.json_report import finite
from prunetaylor.report.trackers._trackers import Trackers
from prunetaylor.runtime.free_memory import free_bytes
from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.study.study import Stopped, Taken
from prunetaylor.sweep.trial.files import ERROR, TRIAL, clear, describe, keep_log, make_folder, trial_folder
from prunetaylor.sweep.trial.ranking_split import RankingSplit, judging
from prunetaylor.sweep.trial.state import TrialStateStore, drop_state, open_folder
from prunetaylor.taylor.memory import is_out_of_memory

_Z = NormalDist().inv_cdf(0.975)
_MARGIN = 0.1  # of the free memory, left alone where several trials share it


@dataclass(frozen=True)
class Place:
    """Where and how trials run here: the sweep's folder, the trials at the same time, the code that may be imported."""

    folder: Path
    jobs: int
    trust: Trust


Guard = Callable[[FolderStateStore], AbstractContextManager[None]]
"""While it is open a signal ends the run at a moment at which its state can be kept."""


def unguarded(store: FolderStateStore) -> AbstractContextManager[None]:
    """Signals do what they do elsewhere."""
    return nullcontext()


def run_trial(sweep: Sweep, place: Place, taken: Taken, guard: Guard = unguarded) -> dict[str, Any]:
    """Run one trial and write its folder; what was measured. Stopped where Hyperband ends it, else any error of a run.

    The result of an attempt that died between writing and telling is taken as it is; one that was broken off goes on
    from its last state.
    """
    path = make_folder(trial_folder(place.folder, taken.number))
    there = _found(path, taken)
    if there is not None:
        (path / ERROR).unlink(missing_ok=True)
        return there
    clear(path)
    with open_folder(path) as folder:
        if folder.finished and (there := _found(path, taken)) is not None:  # while its folder was waited for
            return there
        try:
            return _run(sweep, place, taken, folder, guard)
        except BaseException as err:
            keep_log(path)
            if isinstance(err, Stopped | NumericsError):  # going on would end here again
                drop_state(folder)
            raise


def _run(sweep: Sweep, place: Place, taken: Taken, folder: RunFolder, guard: Guard) -> dict[str, Any]:
    progress = Logged(Silent(), folder)
    resolved = _shared(sweep.trial(taken.number, taken.values), place)
    job = open_job(resolved.config, trust=place.trust, progress=progress)
    judged = judging(job, place.folder, sweep.base.config.seed, progress)
    if judged is not None:
        job.samples = judged.samples
        job.choices.append(f"sweep {sweep.name}, trial {taken.number}: {judged.said}")
        say_doubts(job, judged.dense_reporting, progress)
        describe(place.folder, judged.said, job.warnings)
    store = TrialStateStore(folder, job, judged.said if judged else "", progress)
    name = f"{sweep.name}-{folder.path.name}"
    with (
        guard(store),
        closing(Trackers(job.config.track, folder.stage(""), name, flat(resolved), progress.note)) as trackers,
    ):
        progress.trackers = trackers
        dense = judged.dense_reporting if judged else None
        outcome = run(job, progress, store, dense_found=dense, watch=_Watch(sweep, taken, job))
    ranked = _ranked(job, outcome, judged)
    outcome, document = write_run(folder, resolved, outcome, job.identity(), {"loss": job.config.loss})
    write_page(folder, document)
    measured = _measured(outcome, document, ranked)
    _check_objectives(sweep, measured)
    if outcome.unfinished is not None:
        raise NumericsError(outcome.unfinished.cause, outcome.unfinished.remedy)
    said = {"trial": taken.number, "sweep": sweep.name, "parameters": taken.values, "measured": measured}
    folder.write_text(TRIAL, json.dumps(said, indent=2, allow_nan=False, default=str) + "\n")
    folder.commit()
    return measured


def explain(err: BaseException) -> str:
    """The cause of a failure in one line."""
    if isinstance(err, PruneTaylorError):
        return err.cause
    if isinstance(err, SystemExit):
        return f"its code ended the process: sys.exit({'' if err.code is None else repr(err.code)})"
    if is_out_of_memory(err):
        return "out of memory: try a smaller data.batch_size, fewer --jobs, or a limit (memory: 3GiB beneath base)"
    return f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"


def details(err: BaseException) -> str:
    """What an error file says besides the cause."""
    remedy = err.remedy if isinstance(err, PruneTaylorError) else ""
    return f"{remedy}\n\n{''.join(traceback.format_exception(err))}".lstrip()


class _Watch:
    """Reports a trial's epochs, or its stages where there are none, to the study; raises Stopped where it says so."""

    def __init__(self, sweep: Sweep, taken: Taken, job: Job) -> None:
        self.stops = sweep.early is not None
        self.sign = sweep.objectives[0].sign
        self.taken = taken
        self.by: Literal["stage", "epoch"] = "epoch" if job.epochs else "stage"
        # the sign under which more is better: of an error's change, and of the metric
        self.better = 1 if self.by == "epoch" and job.config.metric == "top1" else -1

    def __call__(self, what: Literal["stage", "epoch"], number: int, value: float) -> None:
        if what != self.by or not self.stops or not math.isfinite(value):
            return
        self.taken.trial.report(self.sign * self.better * value, number)
        if self.taken.trial.should_prune():
            raise Stopped


def _found(path: Path, taken: Taken) -> dict[str, Any] | None:
    """What an earlier attempt with the same values measured, if it came to its end."""
    if not (path / REPORT).exists():
        return None
    try:
        said = read_json(path / TRIAL)
        same = said["trial"] == taken.number and said["parameters"] == json.loads(json.dumps(taken.values, default=str))
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise OutputError(f"{path} holds a run that is not this trial's", "choose another folder with -o/--output")
    measured: dict[str, Any] = said["measured"]
    return measured


def _shared(resolved: Resolved, place: Place) -> Resolved:
    """On a CPU, trials at the same time share what is free; a GPU has one trial."""
    config = resolved.config
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
    free = free_bytes(torch.device("cpu")) if place.jobs > 1 and on_cpu and config.memory is None else None
    if free is None:
        return resolved
    share = int((1 - _MARGIN) * free) // place.jobs
    return override(resolved, {"memory": (share, f"sweep, a share of {place.jobs}")})


def _ranked(job: Job, outcome: PruneResult, judged: RankingSplit | None) -> Evaluation | None:
    if judged is None:
        return None
    with use_memory_format(job, outcome.module):
        return evaluate(outcome.module, job.batches(judged.ranking), job.task)


def _measured(outcome: PruneResult, document: dict[str, Any], ranked: Evaluation | None) -> dict[str, Any]:
    """All that the study keeps of a trial; numbers that are not finite are left out."""
    side = outcome.pruned
    metrics = {
        **(ranked.metrics if ranked else {}),
        "sparsity": outcome.sparsity.obtained,
        "nonzero": side.nonzero,
        "parameters": side.parameters,
        "flops": side.flops,
        "flops_nonzero": side.flops_nonzero,
        "bytes": side.bytes,
        "seconds": outcome.seconds["total"],
    }
    return {
        "metrics": {name: value for name, value in finite(metrics).items() if value is not None},
        "interval": intervals(ranked) if ranked else {},
        "reported": finite(side.metrics) if ranked else {},
        "drop": document["drop_pp"],
        "dense": finite(outcome.dense.metrics),
    }


def intervals(found: Evaluation) -> dict[str, tuple[float, float]]:
    """95 % intervals: Wilson's of top1 (percent), the normal one of a mean loss."""
    n, z = len(found.losses), _Z
    losses = found.losses.double().cpu()
    half = z * float(losses.std()) / n**0.5 if n > 1 else math.nan
    known = {"loss": (found.metrics["loss"] - half, found.metrics["loss"] + half)}
    if found.correct is not None:
        p = float(found.correct.double().mean())
        middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        low, high = ((middle + side * width) / (1 + z * z / n) for side in (-1, 1))
        top1 = found.metrics["top1"]  # within, whatever the rounding
        known["top1"] = (min(top1, 100 * low), max(top1, 100 * high))
    return {name: ends for name, ends in known.items() if all(map(math.isfinite, ends))}


def _check_objectives(sweep: Sweep, measured: dict[str, Any]) -> None:
    for one in sweep.objectives:
        if one.name not in measured["metrics"]:
            raise PruneTaylorError(
                f"the trial has no {one.name}, which the sweep asks for", "name samples with --data, or another metric"
            )
