"""The probe: all passes through the dense network before the first fit, from which every fact of the plan comes.

| passes | over | what they tell |
| --- | --- | --- |
| 1 forward | all calibration samples | the dense outputs, outliers, values that are not finite |
| 2 forward | the first batch | whether the outputs are the same a second time |
| 1 forward, observed | the first batch | the layers' order, whether each is W x + b, other outputs |
| 1 forward and backward | the first batch | whether the error depends on a layer through its own calls |
| 3 forward | the first batch, two of its samples | whether layers see sample by sample |
| 2 forward, or 1 more a layer | two samples | the intercepts that can take up a shift of a layer's mean output |
| 1 forward, counted | one sample | the work of a pass |
| 1 forward and backward | the fitted samples | the gradient's norm, and that of its sampling noise |
| 1 in forward mode | the fitted samples | the share of the first-order term in a predicted change |

Three go over all samples. They are apart: the samples must be drawn before layers can be checked, and layers be known
before gradients are taken; a norm of gradients needs reverse mode, a second-order term forward mode. Outputs are
compared without hooks, which switch off torch's fused layers; a pass that holds all activations has two samples.

Other passes come before: over one or two test samples when a job is opened, for the task and the memory format, and
over one test sample to know in which chunks all of this fits in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import Alert
from prunetaylor.measure.cost import count_flops
from prunetaylor.network.network import Network
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.repair import fits_samples
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pruning.intercepts import Intercept, find_intercepts
from prunetaylor.taylor.convergence import Convergence, check_convergence
from prunetaylor.taylor.curvature.gram import Positions
from prunetaylor.taylor.layer_check import check_layers
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.output_check import check_deterministic, check_independent
from prunetaylor.taylor.passes import first_batch

MIN_HOLDOUT = 20
"""A run with fewer holdout samples notes that its measurements are rough."""
MIN_CALIBRATION = 50
"""A run with fewer calibration samples warns that the drop will be larger."""


@dataclass(frozen=True)
class Probe:
    """The result of the probe.

    Attributes:
        facts: everything that the plan is made from, beside the configuration.
        intercepts: the biases or batch-norm means that can take up a shift of a layer's mean output, by layer name.
        notes: remarks on the layers and the samples.
        alerts: warnings about the samples.
    """

    facts: Facts
    intercepts: Mapping[str, Intercept] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()


def probe(job: Job, dense: Network, sampler: Sampler | None, progress: Progress) -> Probe:
    """Draw the first samples, probe ``dense`` on them, and leave out the layers of both networks that are not prunable.

    Args:
        dense: the job's network, or a copy of it; no weight of either changes.
        sampler: draws the calibration samples; without data it is None, and nothing is passed through the network.

    Raises:
        NumericsError: the outputs are not finite, or not the same a second time.
        UsageError: no layer can be pruned.
        DataError: the samples are too few, or do not fit the network.
    """
    if sampler is None:
        return Probe(replace(job.facts, zeros=job.network.zeros))
    progress.phase("calibrate", 3)
    calibration = sampler.draw()
    alerts = _warn_of_few_samples(calibration, progress)
    progress.step("samples drawn")
    batches = calibration.fit.batches
    check_deterministic(dense.module, batches)
    check_independent(dense.module, batches)
    layers = check_layers(job.network, batches, fitted=fits_samples(job.config, job.method))
    for network in (job.network, dense):
        network.keep_only(layers.order, layers.why)
    intercepts = find_intercepts(job.network.module, job.network.layers, batches)
    progress.step("layers checked")
    notes = [*_describe_rough_holdout(calibration), *layers.notes]
    facts = replace(
        job.facts,
        prunable=job.network.prunable,
        zeros=job.network.zeros,
        forward_work=count_flops(dense.module, first_batch(calibration.holdout.batches)[0])[0],
        convergence=_measure_convergence(job, dense, calibration, notes) if job.labelled else None,
    )
    progress.step("convergence checked")
    return Probe(facts, intercepts, tuple(notes), alerts)


def _measure_convergence(job: Job, dense: Network, calibration: Calibration, notes: list[str]) -> Convergence:
    """Measure the convergence of the error with labels on the fitted samples; ``notes`` may get remarks."""
    config, samples = job.config, calibration.fit.batches.samples
    model = TaylorModel(
        dense,
        calibration.fit.risk(dense.module, Objective(job.task, "task")),
        Positions(samples, config.seed),
        damping=config.prune.damping,
        seed=config.seed,
        note=notes.append,
        intercepts=(),
    )
    return check_convergence(model)


def _describe_rough_holdout(calibration: Calibration) -> list[str]:
    holdout = calibration.holdout.batches.samples
    if holdout >= MIN_HOLDOUT:
        return []
    return [f"only {holdout} held-out samples: their measurements are rough; raise calibration.samples"]


def _warn_of_few_samples(calibration: Calibration, progress: Progress) -> tuple[Alert, ...]:
    count = calibration.holdout.batches.samples + calibration.fit.batches.samples
    if count >= MIN_CALIBRATION:
        return ()
    text = f"only {count} calibration samples: expect a larger drop; 1,000 are usual (calibration.samples)"
    progress.warn(text)
    return (Alert("few_samples", text),)
