"""One trial: an ordinary run in a folder of its own, which is measured on the samples that rank as well."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from prunetaylor.core.config.asked import asked
from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.resolve import Resolved, flat, override
from prunetaylor.core.errors import NumericsError, OutputError, PruneTaylorError
from prunetaylor.core.json_file import read_json
from prunetaylor.core.progress import Logged, Silent
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.core.text import error_line
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.measure.intervals import mean_interval, wilson_interval
from prunetaylor.measure.metric import Metric, SampleMetric
from prunetaylor.network.state import copy_module
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import dense_alerts
from prunetaylor.pipeline.files.outputs import write_page, write_run
from prunetaylor.pipeline.files.resume import FolderStateStore
from prunetaylor.pipeline.files.run_folder import REPORT, RunFolder
from prunetaylor.pipeline.job import Job, open_job
from prunetaylor.pipeline.run import run
from prunetaylor.report.json_report import finite
from prunetaylor.report.trackers._trackers import Trackers
from prunetaylor.runtime.free_memory import free_bytes
from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.study.study import ClaimedTrial, Stopped
from prunetaylor.sweep.trial.files import (
    ERROR,
    TRIAL,
    copy_log,
    make_folder,
    remove_leftovers,
    trial_folder,
    write_description,
)
from prunetaylor.sweep.trial.ranking_split import RankingSplit, split_for_ranking
from prunetaylor.sweep.trial.state import TrialStateStore, drop_state, open_folder
from prunetaylor.taylor.memory import is_out_of_memory

_MARGIN = 0.1  # share of the free memory that trials at the same time leave free


@dataclass(frozen=True)
class TrialContext:
    """The sweep's folder, and what only the user of this process decides.

    ``jobs`` trials run at the same time here. They may import the code that ``trust`` covers, and cache fits in
    ``cache_dir`` (None stands for the default): a sweep's folder may come from somebody else, so its own words on
    either do not count.
    """

    folder: Path
    jobs: int
    trust: Trust
    cache_dir: str | None = None


Guard = Callable[[FolderStateStore], AbstractContextManager[None]]
"""A context in which a signal ends the run at a checkpoint."""


def unguarded(store: FolderStateStore) -> AbstractContextManager[None]:
    """Leave the handlers of signals as they are."""
    return nullcontext()


def run_trial(sweep: Sweep, context: TrialContext, claimed: ClaimedTrial, guard: Guard = unguarded) -> dict[str, Any]:
    """Run one trial, write its folder, and return what was measured.

    The result of an attempt that died between writing and reporting is used as it is; an attempt that was interrupted
    continues from its last state. Raises Stopped where Hyperband ends the trial, and any error of a run.
    """
    path = make_folder(trial_folder(context.folder, claimed.number))
    earlier = _earlier_result(path, claimed)
    if earlier is not None:
        (path / ERROR).unlink(missing_ok=True)
        return earlier
    remove_leftovers(path)
    with open_folder(path) as folder:
        if folder.finished and (earlier := _earlier_result(path, claimed)) is not None:  # it finished meanwhile
            return earlier
        try:
            return _run(sweep, context, claimed, folder, guard)
        except BaseException as err:
            copy_log(path)
            if isinstance(err, Stopped | NumericsError):  # the next attempt would end here again
                drop_state(folder)
            raise


def _run(sweep: Sweep, context: TrialContext, claimed: ClaimedTrial, folder: RunFolder, guard: Guard) -> dict[str, Any]:
    progress = Logged(Silent(), folder)
    resolved = override(
        sweep.trial(claimed.number, claimed.values), {"cache.dir": (context.cache_dir, "user of the sweep")}
    )
    resolved = _with_memory_share(resolved, context)
    job = open_job(resolved.config, trust=context.trust, progress=progress)
    split = split_for_ranking(job, context.folder, sweep.base.config.seed, progress)
    if split is not None:
        job = job.with_samples(split.samples, f"sweep {sweep.name}, trial {claimed.number}: {split.description}")
        write_description(context.folder, split.description, dense_alerts(job, split.dense_reporting))
    store = TrialStateStore(folder, job, split.description if split else "", progress)
    name = f"{sweep.name}-{folder.path.name}"
    with (
        guard(store),
        closing(Trackers(job.config.track, folder.stage(""), name, flat(resolved), progress.note)) as trackers,
    ):
        progress.trackers = trackers
        dense = split.dense_reporting if split else None
        dense_network = copy_module(job.network.module) if job.metric.needs == "dense outputs" else None
        outcome = run(job, progress, store, dense_evaluation=dense, monitor=_EarlyStopper(sweep, claimed, job))
    ranked = _rank_evaluation(job, outcome, split, dense_network)
    outcome, document = write_run(folder, resolved, outcome, job.describe_network(), {"loss": job.config.loss})
    write_page(folder, document)
    measured = _measured(outcome, document, ranked, job.metric)
    _check_objectives(sweep, measured)
    if outcome.unfinished is not None:
        raise NumericsError(outcome.unfinished.cause, outcome.unfinished.remedy)
    content = {"trial": claimed.number, "sweep": sweep.name, "parameters": claimed.values, "measured": measured}
    folder.write_text(TRIAL, json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")
    folder.commit()
    return measured


def explain(err: BaseException) -> str:
    """Return the cause of a failure in one line."""
    if isinstance(err, PruneTaylorError):
        return err.cause
    if isinstance(err, SystemExit):
        return f"its code ended the process: sys.exit({'' if err.code is None else repr(err.code)})"
    if is_out_of_memory(err):
        return "out of memory: try a smaller data.batch_size, fewer --jobs, or a limit (memory: 3GiB beneath base)"
    return error_line(err)


def details(err: BaseException) -> str:
    """Return the remedy and the traceback of a failure, for the trial's error file."""
    remedy = err.remedy if isinstance(err, PruneTaylorError) else ""
    return f"{remedy}\n\n{''.join(traceback.format_exception(err))}".lstrip()


class _EarlyStopper:
    """Reports a trial's epochs (or its stages, without epochs) to the study, and raises Stopped if that asks for it."""

    def __init__(self, sweep: Sweep, claimed: ClaimedTrial, job: Job) -> None:
        self.stops = sweep.early is not None
        self.sign = sweep.objectives[0].sign
        self.claimed = claimed
        self.by: Literal["stage", "epoch"] = "epoch" if job.epochs else "stage"
        self.better = job.metric.sign if self.by == "epoch" else -1  # a stage's value is the change of the error

    def __call__(self, what: Literal["stage", "epoch"], number: int, value: float) -> None:
        if what != self.by or not self.stops or not math.isfinite(value):
            return
        self.claimed.trial.report(self.sign * self.better * value, number)
        if self.claimed.trial.should_prune():
            raise Stopped


def _earlier_result(path: Path, claimed: ClaimedTrial) -> dict[str, Any] | None:
    """Return what an earlier attempt with the same values measured, if that attempt finished."""
    if not (path / REPORT).exists():
        return None
    try:
        content = read_json(path / TRIAL)
        values = json.loads(json.dumps(claimed.values, default=str))
        same = content["trial"] == claimed.number and content["parameters"] == values
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise OutputError(f"{path} holds another run, not this trial", "choose another folder with -o/--output")
    measured: dict[str, Any] = content["measured"]
    return measured


def _with_memory_share(resolved: Resolved, context: TrialContext) -> Resolved:
    """Give trials that run at the same time on a CPU equal shares of the free memory; a GPU runs one trial."""
    config = resolved.config
    on_cpu = config.device == "cpu" or (asked(config.device) is None and not torch.accelerator.is_available())
    free = free_bytes(torch.device("cpu")) if context.jobs > 1 and on_cpu and config.memory is None else None
    if free is None:
        return resolved
    share = int((1 - _MARGIN) * free) // context.jobs
    return override(resolved, {"memory": (share, f"sweep, a share of {context.jobs}")})


def _rank_evaluation(
    job: Job, outcome: PruneResult, split: RankingSplit | None, dense: nn.Module | None
) -> Evaluation | None:
    if split is None:
        return None
    with use_memory_format(job.facts, outcome.module):
        return evaluate(outcome.module, job.batches(split.ranking), job.task, job.metric, dense)


def _measured(
    outcome: PruneResult, document: dict[str, Any], ranked: Evaluation | None, metric: Metric
) -> dict[str, Any]:
    """Return everything that the study keeps of a trial, without numbers that are not finite."""
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
        "interval": intervals(ranked, metric) if ranked else {},
        "reported": finite(side.metrics) if ranked else {},
        "drop": document["drop_pp"],
        "dense": finite(outcome.dense.metrics),
    }


def intervals(evaluation: Evaluation, metric: Metric) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals by metric: Wilson's of a share that is right, the normal one of a mean."""
    known = {"loss": mean_interval(evaluation.losses.cpu())}
    if isinstance(metric, SampleMetric):
        (values,) = evaluation.records
        value = evaluation.metrics[metric.name]
        if values.dtype == torch.bool:
            low, high = wilson_interval(int(values.sum()), len(values))
            known[metric.name] = (min(value, metric.scale * low), max(value, metric.scale * high))
        elif (ends := mean_interval(values.cpu())) is not None:
            known[metric.name] = (metric.scale * ends[0], metric.scale * ends[1])
    return {name: ends for name, ends in known.items() if ends is not None}


def _check_objectives(sweep: Sweep, measured: dict[str, Any]) -> None:
    for one in sweep.objectives:
        if one.name not in measured["metrics"]:
            raise PruneTaylorError(
                f"the trial has no {one.name}, but the sweep ranks by it", "name samples with --data, or another metric"
            )
