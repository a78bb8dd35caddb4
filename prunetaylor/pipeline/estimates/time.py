"""An estimate of a run's duration: its counted work over the speed of a few timed steps on this machine.

No choice depends on what is measured. ``auto`` method and refinement follow from counted operations and the kind of
device (``planning/``): the same seed must give the same bits, on a busy machine too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from prunetaylor.core.results.outcome import Time
from prunetaylor.data.samples import Inputs
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.plan import PruningPlan
from prunetaylor.pipeline.sampling.calibration import chunk
from prunetaylor.pipeline.sampling.sampler import SAMPLE_HISTORY
from prunetaylor.pruning.criteria._trace import greedy_traces
from prunetaylor.pruning.criteria.exact_obs import APART
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.pruning.selection.schedule import sparsities
from prunetaylor.taylor.curvature.gram import accumulate_type
from prunetaylor.taylor.passes import first_batch, forward_one

_WIDEST = 512
"""Columns of the layer that is timed, at most: a row of 1024 may take a second."""
_ROWS = 4
_LOOKS = 12
"""Passes over the calibration samples before the first stage: outputs, gradients of the convergence check, layers."""
_STAGE = 14
"""Passes over them in a stage, in forward passes: the fit, its gradients, predictions on either side, measuring."""
_BACKWARD = 3
"""A forward and a backward pass, in forward passes."""
ADAPTIVE_STAGES = 2
"""Stages that a run mostly takes where each goes as far as predictions hold."""


def estimate(job: Job, plan: PruningPlan) -> Time:
    """Return the seconds by purpose. No random number is drawn, and the job does not change."""
    if job.samples is None:
        return Time(0.0, {})
    forward, row = _forward(job), _row(job)
    config, samples = job.config, job.samples
    drawn = min(config.calibration.samples, len(samples.train))
    stages = _stages(job, plan)
    layers, refinement = job.network.layers, plan.refinement
    work = load_criterion(plan.method).work(layers)
    parts = {
        "measuring": 2 * len(samples.test) * forward,
        "calibration": _LOOKS * drawn * forward,
        "stages": len(stages) * _STAGE * drawn * forward + row * sum(density * work for density in stages),
    }
    if (repair := plan.removal_repair) is not None:
        parts["repair"] = len(stages) * (repair.passes(len(layers)) * drawn * forward + row * repair.work(layers))
    if refinement.when != "none":
        steps = refinement.steps * (len(stages) if refinement.when == "stages" else 1)
        seen = drawn * (SAMPLE_HISTORY if config.calibration.resample else 1)
        parts["refinement"] = steps * refinement.refiner.passes(seen) * forward
    if plan.epochs:
        parts["fine-tuning"] = plan.epochs * len(samples.train) * (_BACKWARD + 1) * forward
    return Time(sum(parts.values()), {name: seconds for name, seconds in parts.items() if seconds})


def _stages(job: Job, plan: PruningPlan) -> list[float]:
    """Return the approximate share of the weights that remains before each stage."""
    levels = list(plan.gradual.values() or plan.schedule.levels)
    if plan.schedule.max_fraction is not None and not plan.gradual:
        levels = sparsities(job.config.prune.sparsity, ADAPTIVE_STAGES)
    gone = job.network.zeros / job.network.prunable
    return [max(0.0, 1 - max(level, gone)) for level in [0.0, *levels[:-1]]] if levels else []


def _forward(job: Job) -> float:
    """Return the seconds of a forward pass for each sample."""
    assert job.samples is not None
    test = job.samples.test
    raw, _ = test.fetch([0])
    size = min(chunk(raw.elements, job.config.data.batch_size), len(test))
    sample, _ = first_batch(job.batches(test.subset([0]), batch_size=1, workers=0))
    x = Inputs.cat([sample] * size)  # decoding is not what is timed
    module = job.network.copy().module  # hooks may leave in it what a pass has made
    return _best(lambda: forward_one(module, x), job.device) / size


def _row(job: Job) -> float:
    """Return the seconds per operation of a row's elimination, by rows of about the widest layer's size."""
    width = min(_WIDEST, max(layer.matrix(layer.weight.detach()).shape[2] for layer in job.network.layers))
    kind = accumulate_type(job.device)
    h = torch.eye(width, dtype=kind, device=job.device) + 0.1
    w = torch.ones((_ROWS, width), dtype=kind, device=job.device)
    mask = torch.ones_like(w, dtype=torch.bool)
    seconds = _best(lambda: greedy_traces(h, w, mask, 0.01, "", lambda _: None), job.device, tries=1)
    return seconds / (_ROWS * width**2 * (width + APART))


def _best(work: Callable[[], object], device: torch.device, tries: int = 2) -> float:
    """Return the shortest of a few times; the first one includes the set-up."""
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
