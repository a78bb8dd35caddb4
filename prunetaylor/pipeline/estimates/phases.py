"""The phases of a run that may need the most memory, and the bytes of each, under the current chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from prunetaylor.core.config.schema import Config
from prunetaylor.pipeline.estimates.demand import Demand, demand_of
from prunetaylor.pipeline.estimates.sizes import measure_sample, network_sizes
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.plan import PruningPlan
from prunetaylor.pipeline.planning.repair import one_step_repair
from prunetaylor.pipeline.sampling.calibration import chunk
from prunetaylor.pipeline.sampling.sampler import SAMPLE_HISTORY
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.runtime.processes.group import world
from prunetaylor.runtime.processes.training import waits_within
from prunetaylor.taylor.memory import current_chunks
from prunetaylor.taylor.passes import first_batch
from prunetaylor.taylor.sizes import (
    FLOAT,
    LayerSize,
    Phase,
    Sizes,
    backward,
    fits,
    forward,
    graph,
    largest_of,
    predicting,
    system_entries,
)

_LIBRARIES = 48 << 20  # what torch's own libraries take once they have run a network: kernels made for its shapes
_RANKED = 48  # bytes a weight while all are ranked: scores, their order, the ranks and the masks


@dataclass(frozen=True)
class Estimator:
    """The phases of ``job`` under ``command`` (``prune`` or ``score``); a configuration may differ from the job's.

    Attributes:
        sizes: those of the network and of one sample.
        source: bytes of the samples that the job holds in memory.
        raw: bytes of one sample as its source has it.
        elements: numbers in one sample.
    """

    job: Job
    command: str
    sizes: Sizes
    source: int = 0
    raw: int = 0
    elements: int = 0

    @classmethod
    def measured(cls, job: Job, command: str) -> Estimator:
        """Measure the network and a test sample; the training samples that a run sees are those it calibrates with."""
        sizes, samples = network_sizes(job.network, job.device), job.samples
        if samples is None:
            return cls(job, command, sizes)
        raw, _ = samples.test.fetch([0])
        source = 0
        if job.device.type == "cpu":
            splits = {id(split): split for split in samples.splits}
            source = sum(s.nbytes() or 0 for s in splits.values() if not s.lazy)
        x, _ = first_batch(job.batches(samples.test.subset([0]), batch_size=1))
        return cls(job, command, measure_sample(sizes, job.network, x), source, raw.nbytes, raw.elements)

    def batch(self, config: Config) -> int:
        """Return the calibration samples in a batch."""
        return chunk(self.elements, config.data.batch_size)

    def phases(self, plan: PruningPlan, config: Config) -> Iterator[Phase]:
        """Yield every phase that may be the largest."""
        job, sizes = self.job, self._sizes(config)
        always = self._always(config)
        scoring = _scoring(plan.method, demand_of(plan.method), sizes)
        if job.samples is None:
            yield from (phase.plus(always) for phase in (*scoring, _ranking(sizes)))
            return
        measuring = max(1, config.data.batch_size // current_chunks().batch)
        tested = replace(sizes, batch=min(measuring, len(job.samples.test)))
        yield Phase("measuring", {"activations": forward(tested)}).plus(always)
        yield self.probe(config)
        trains = plan.epochs > 0 and self.command == "prune"
        # The states that a stage and its two Taylor models start from; in a gradual schedule, while training waits.
        models = {"weights": 3 * sizes.state}
        if trains and plan.gradual:
            models["optimizer"] = _training_state(sizes, plan.training)
        yield from (phase.plus(always, models) for phase in (*scoring, *self._after(plan, sizes)))
        if trains:
            stored = FLOAT * sizes.parameters + _training_state(sizes, plan.training)
            trained = replace(sizes, batch=self._training_batch(config))
            batch = 2 * forward(trained) + graph(trained)  # the dense network has no graph
            yield Phase("fine-tuning", {"optimizer": stored, "activations": batch}).plus(always)

    def probe(self, config: Config) -> Phase:
        """Return the largest phase of the probe, which comes before the plan."""
        sizes, activations = self._sizes(config), 0
        if self.job.samples is not None:
            # Three sums in the widest type, a batch, and its gradients.
            norms = (3 * sizes.wide + FLOAT) * sizes.weights + sizes.wide * sizes.largest + backward(sizes)
            activations = max(norms, predicting(sizes))
        return Phase("the convergence check", {"activations": activations}).plus(self._always(config))

    def _always(self, config: Config) -> dict[str, int]:
        """Return the bytes that every phase needs: the network, its dense copy, that one's state, masks and samples."""
        sizes = self._sizes(config)
        weights, samples = 3 * sizes.state + 2 * sizes.weights, self._samples(config, sizes)
        return {"weights": weights, "samples": samples, "libraries": _LIBRARIES}

    def _after(self, plan: PruningPlan, sizes: Sizes) -> Iterator[Phase]:
        """Yield the phases that follow the scores in each stage."""
        demand, fitted = demand_of(plan.method), fits(sizes)
        predicted = Phase("prediction", {"activations": predicting(sizes)})
        fit = {"curvature": sum(fitted[name][0] for name in demand.fits)}
        grams = {} if "moments" in demand.fits else {"curvature": fitted["moments"][0]}
        fitting = Phase("layer Grams", {"activations": fitted["moments"][1]}).plus(fit, grams)
        if self.command == "score":
            # The fit stays while steps are tried, and a solver is asked at every sparsity, beside the Grams.
            repair = one_step_repair(plan.repair)
            if repair is None:
                yield predicted.plus(fit)
                return
            scoring = _scoring(plan.method, demand, sizes)
            yield fitting
            yield from (phase.plus(grams) for phase in scoring)
            yield from (phase.plus(fit, grams) for phase in (predicted, *repair.memory(sizes)))
            return
        yield _ranking(sizes)
        yield predicted
        if (repair := plan.removal_repair) is not None and repair.needs_moments:
            yield fitting
            yield from (phase.plus(fit, grams) for phase in repair.memory(sizes))
        elif repair is not None:
            yield from repair.memory(sizes)
        if plan.refinement.when != "none":
            # Towards labels from where the network stood: one more copy.
            yield plan.refinement.refiner.memory(sizes).plus({"weights": sizes.state})

    def _sizes(self, config: Config) -> Sizes:
        """Return the sizes under a configuration and the current chunks."""
        if self.job.samples is None:
            return self.sizes
        samples = min(config.calibration.samples, len(self.job.samples.train))
        held_out = max(1, round(config.calibration.holdout * samples))
        return replace(
            self.sizes,
            samples=max(1, samples - held_out),
            held_out=held_out,
            batch=min(self.batch(config), samples),
            cached=config.cache.enabled,
        )

    def _samples(self, config: Config, sizes: Sizes) -> int:
        """Return the bytes of the source's samples, the calibration samples and the dense network's outputs."""
        remembered = SAMPLE_HISTORY if config.calibration.resample else 1
        outputs = 2 * FLOAT * sizes.outputs
        return self.source + remembered * (sizes.samples + sizes.held_out) * (self.raw + outputs)

    def _training_batch(self, config: Config) -> int:
        """Return the samples of a training batch whose gradients a process computes at once.

        Several processes that wait for one another in the middle of a batch do not split theirs.
        """
        assert self.job.samples is not None
        own = -(-min(config.data.batch_size, len(self.job.samples.train)) // world())
        # No batch norm trains on a single sample.
        if world() > 1 and waits_within(self.job.network.module):
            return own
        return min(own, max(2, -(-own // current_chunks().training)))


def _training_state(sizes: Sizes, settings: TrainingSettings) -> int:
    """Return the bytes that a training keeps between steps: the optimizer's state, masks as numbers, the best state
    and the averages."""
    states = 1 if settings.optimizer == "sgd" else 2
    return FLOAT * (states * sizes.parameters + sizes.weights) + (3 if settings.ema else 1) * sizes.state


def _ranking(sizes: Sizes) -> Phase:
    return Phase("ranking", {"scores": _RANKED * sizes.weights})


def _scoring(method: str, demand: Demand, sizes: Sizes) -> list[Phase]:
    """Return the phases of a criterion: its fits, a step of all layers that is predicted, and its scores."""
    fitted, wide = [size for name, size in fits(sizes).items() if name in demand.fits], sizes.wide
    curvature = sum(stored for stored, _ in fitted)
    work = max((work for _, work in fitted), default=0)
    vectors, gradients = (
        demand.weights * sizes.weights,
        demand.gradients_at_once(sizes.samples * sizes.weights, sizes.samples * sizes.largest),
    )

    def need(layer: LayerSize) -> int:
        squares = demand.squares * layer.groups * layer.columns**2
        return int(wide * (demand.layer * layer.weights + squares + demand.systems * system_entries(layer)))

    systems, most = largest_of(sizes.layers, need)
    parts = {"curvature": curvature + int(wide * gradients), "scores": int(wide * vectors)}
    scores = Phase(f"scores ({method})", {**parts, "systems": systems}, most)
    phases = [scores, Phase(f"fits ({method})", {"curvature": parts["curvature"], "activations": work})]
    if demand.predicts:
        phases.append(Phase(f"Newton's step ({method})", {**parts, "activations": predicting(sizes)}))
    return phases if fitted else [scores]
