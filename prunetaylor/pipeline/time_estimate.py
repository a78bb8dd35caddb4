"""How long a run will take, about: its counted work over the speed that a few timed steps of it have here.

Nothing is chosen by what is measured. Which method and refinement ``auto`` takes is settled by counted operations and
the kind of device (``job.WORTH``, ``refinement.WORTH``): the same seed must give the same bits, on a busy machine too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from prunetaylor.core.results.outcome import Time
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.sampling.calibration import chunk
from prunetaylor.pipeline.stages.refinement import PASSES, planned_steps
from prunetaylor.pruning.criteria._trace import greedy_traces
from prunetaylor.pruning.criteria.exact_obs import APART
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.pruning.repair import feature_matching
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
_AUTO = 2
"""Stages that a run takes, mostly, where none were settled."""


def estimate(job: Job) -> Time:
    """Seconds by what they are for. Nothing is drawn, and nothing of the job changes."""
    if job.samples is None:
        return Time(0.0, {})
    forward, row = _forward(job), _row(job)
    config, samples = job.config, job.samples
    drawn = min(config.calibration.samples, len(samples.train))
    stages = _stages(job)
    repair = config.prune.repair
    usual = load_criterion(job.method).default_repair
    layers, work = len(job.network.layers), load_criterion("exact_obs").work(job.network.layers)
    parts = {
        "measuring": 2 * len(samples.test) * forward,
        "calibration": _LOOKS * drawn * forward,
        "stages": len(stages) * _STAGE * drawn * forward,
    }
    if job.method == "exact_obs":
        parts["stages"] += row * sum(density * work for density in stages)
    if (usual if repair == "auto" else repair) == "least-squares":
        # each layer is read in the pruned network, which is run from its last finished layer on
        parts["repair"] = len(stages) * (layers + 2) * drawn * forward / 2
        parts["repair"] += row * len(stages) * work / 3
    if steps := planned_steps(job, usual):
        parts["refinement"] = steps * feature_matching.BATCH * PASSES * forward
    if job.epochs:
        parts["fine-tuning"] = job.epochs * len(samples.train) * (_BACKWARD + 1) * forward
    return Time(sum(parts.values()), {name: seconds for name, seconds in parts.items() if seconds})


def _stages(job: Job) -> list[float]:
    """The share of the weights that is left before each stage, about."""
    config = job.config.prune
    settled = config.stages if config.stages != "auto" else _AUTO
    levels = sparsities(config.sparsity, settled, True)
    gone = sum(int((~mask).sum()) for mask in job.network.masks().values()) / job.network.prunable
    return [max(0.0, 1 - max(level, gone)) for level in [0.0, *levels[:-1]]] if levels else []


def _forward(job: Job) -> float:
    """Seconds of a forward pass for each sample."""
    assert job.samples is not None
    test = job.samples.test
    raw, _ = test.fetch([0])
    size = min(chunk(raw[0].numel(), job.config.data.batch_size), len(test))
    sample, _ = first_batch(job.batches(test.subset([0]), batch_size=1, workers=0))
    x = sample.repeat(size, *(1 for _ in sample.shape[1:]))  # decoding is not what is timed
    module = job.network.copy().module  # hooks may leave in it what a pass has made
    return _best(lambda: forward_one(module, x), job.device) / size


def _row(job: Job) -> float:
    """Seconds for each operation of a row's elimination and factorisation, by rows of about the widest layer's size."""
    width = min(_WIDEST, max(layer.matrix(layer.weight.detach()).shape[2] for layer in job.network.layers))
    kind = accumulate_type(job.device)
    h = torch.eye(width, dtype=kind, device=job.device) + 0.1
    w = torch.ones((_ROWS, width), dtype=kind, device=job.device)
    keep = torch.ones_like(w, dtype=torch.bool)
    seconds = _best(lambda: greedy_traces(h, w, keep, 0.01, "", lambda _: None), job.device, tries=1)
    return seconds / (_ROWS * width**2 * (width + APART))


def _best(work: Callable[[], object], device: torch.device, tries: int = 2) -> float:
    """The least of a few times: the first pays for what is set up."""
    found = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)
