"""The stages of a run: fit the Taylor model, score, select, repair, and hold the prediction against the measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunetaylor import registry
from prunetaylor.calibration import Calibration
from prunetaylor.curvature.cache import open_cache
from prunetaylor.curvature.convergence import check_convergence
from prunetaylor.curvature.gram import Positions
from prunetaylor.curvature.taylor import TaylorModel
from prunetaylor.data.samples import Split
from prunetaylor.errors import UsageError
from prunetaylor.job import Job
from prunetaylor.network.network import Network
from prunetaylor.network.state import snapshot
from prunetaylor.objective import Objective
from prunetaylor.outcome import FirstOrder, Stage
from prunetaylor.progress import Progress
from prunetaylor.repair import batch_norm, least_squares
from prunetaylor.repair.affine import Absorber, find_absorbers
from prunetaylor.repair.masks import apply_masks
from prunetaylor.risk import Risk, Watcher, sweep
from prunetaylor.selection.rank import keep_best
from prunetaylor.selection.schedule import sparsities
from prunetaylor.selection.step import Step

UNREACHED = "no calibration sample reaches it as a module of its own"


@dataclass
class Stages:
    """What the stages of one run share, and what they have done so far. ``masks``: True = keep, by parameter name."""

    job: Job
    dense: Network  # a copy that stays as it was
    pool: Split | None  # what calibration samples are drawn from; None without data
    progress: Progress
    masks: dict[str, Tensor] = field(default_factory=dict)
    done: list[Stage] = field(default_factory=list)
    first_order: FirstOrder | None = None
    choices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.job.config
        self.criterion = registry.load("saliency", self.job.method)
        self.structure = registry.load("structure", config.prune.structure)
        self.levels = sparsities(config.prune.sparsity, config.prune.stages, self.criterion.STAGED)
        self.repair = _repair(self.job, self.criterion.REPAIR)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.cache = open_cache(config.cache)
        self.dense_state = snapshot(self.dense.module)
        self.objective = Objective(self.job.kind, "divergence")
        self.keep_first = config.prune.first_order != "drop"

    def run(self) -> None:
        """Prune ``job.network`` in place, to the sparsity asked for."""
        network = self.job.network
        if self.pool is None:
            self._start()
            for target in self.levels:
                self._without_data(target)
            return
        calibration = self._calibrate(self.pool)
        absorbers = find_absorbers(network.module, network.layers, calibration.fit.batches)
        for number, target in enumerate(self.levels, start=1):
            if number > 1 and self.job.config.calibration.resample:
                calibration = Calibration.draw(self.job, self.dense.module, self.pool, self.generator)
            self.progress.phase(f"stage {number} of {len(self.levels)}", len(network.layers) + 3)
            self._stage(target, calibration, absorbers)

    def _calibrate(self, pool: Split) -> Calibration:
        self.progress.phase("calibrate")
        network = self.job.network
        calibration = Calibration.draw(self.job, self.dense.module, pool, self.generator)
        order = running_order(network, calibration)
        network.keep_only(order, UNREACHED)
        self.dense.keep_only(order, UNREACHED)
        self._start()
        self._choose_error(calibration)
        return calibration

    def _start(self) -> None:
        """Weights that are zero before anything is pruned are gone: stages that would remove no more are left out."""
        network = self.job.network
        self.masks = network.masks()
        already = sum(int((~mask).sum()) for mask in self.masks.values())
        if already > round(self.job.config.prune.sparsity * network.prunable):
            self._choose(
                f"nothing to remove: {already / network.prunable:.2%} of the prunable weights are zero already"
            )
        self.levels = [level for level in self.levels if round(level * network.prunable) > already]

    def _choose_error(self, calibration: Calibration) -> None:
        """Labels or not, first-order term or not, from what the user forces and the convergence check."""
        config, task = self.job.config, Objective(self.job.kind, "task")
        risk = calibration.fit.risk(self.dense.module, task)
        found = check_convergence(self._model(self.dense, risk, calibration), self.levels[0] if self.levels else 0.5)
        labels = config.calibration.labels
        if self.criterion.NEEDS == "labels":
            if labels is False:
                raise UsageError(
                    f"{self.job.method} needs labels: without them the error has no gradient at the dense weights",
                    "leave calibration.labels at auto, or take another prune.method",
                )
            labels = True
        if labels == "auto":
            labels = found.first_order_matters
        if labels:
            self.objective = task
            if config.prune.first_order == "auto" and self.criterion.NEEDS != "labels":
                self.keep_first = found.first_order_matters
        self.first_order = FirstOrder(
            found.share, found.gradient_norm, found.noise_norm, bool(labels) and self.keep_first
        )
        self._choose(f"error: {self.objective.describe()} ({found.describe()})")
        self._choose(f"first-order term of the task error: {'kept' if self.first_order.kept else 'not kept'}")

    def _stage(self, target: float, calibration: Calibration, absorbers: Mapping[str, Absorber]) -> None:
        start = time.perf_counter()
        network, config = self.job.network, self.job.config
        model = self._model(network, calibration.fit.risk(network.module, self.objective), calibration)
        held = calibration.holdout.risk(network.module, self.objective)
        judge = self._model(network, held, calibration)
        before = held.value()
        self._select(target, model)
        self.progress.step("selected")
        if self.repair == "least-squares":
            dense = least_squares.DenseOutputs(
                self.dense.module, self.dense.layers, calibration.fit.batches, model.where
            )
            solved = least_squares.repair(
                network.module,
                network.layers,
                self.masks,
                dense,
                self.dense_state,
                absorbers,
                calibration.fit.batches,
                damping=config.prune.damping,
                note=self._choose,
            )
            for name in solved:
                self.progress.step(name)
        # Both changes are of the displacement up to here (masks and least squares, before batch norm), and both are
        # taken on held-out samples: on those that least squares fitted it costs less than elsewhere.
        measured = held.value() - before
        self.progress.step("measured")
        now = network.module.state_dict()
        prediction = judge.predict({k: now[k] - v for k, v in judge.state.items() if v.is_floating_point()})
        predicted = prediction.change(self.keep_first)
        if self.repair == "batch-norm":
            for _ in batch_norm.correct(network.module, self.dense.module, self.dense_state, calibration.fit.batches):
                pass
        self.progress.step("predicted")
        ratio = measured / predicted if predicted != 0 else None
        self.done.append(Stage(target, predicted, measured, ratio, time.perf_counter() - start))

    def _select(self, target: float, model: TaylorModel | None) -> None:
        network, structure = self.job.network, self.structure
        removed = round(target * network.prunable)
        if hasattr(self.criterion, "solve"):
            step: Step = self.criterion.solve(model, network, self.masks, removed, self.generator)
            self.masks = step.masks
            with torch.no_grad():
                for layer in network.layers:
                    layer.weight.add_(step.displacement[layer.parameter].to(layer.weight))
        else:
            scores = self.criterion.score(model, network, self.masks, self.generator)
            kept = keep_best(
                [structure.groups(layer, scores[layer.parameter]) for layer in network.layers],
                [~self.masks[layer.parameter].flatten() for layer in network.layers],
                removed,
                [layer.name for layer in network.layers],
            )
            self.masks = {x.parameter: structure.mask(x, keep) for x, keep in zip(network.layers, kept, strict=True)}
        apply_masks(network.module, self.masks)

    def _without_data(self, target: float) -> None:
        start = time.perf_counter()
        self._select(target, None)
        self.done.append(Stage(target, None, None, None, time.perf_counter() - start))

    def _model(self, network: Network, risk: Risk, calibration: Calibration) -> TaylorModel:
        seed = self.job.config.seed
        model = TaylorModel(
            network,
            risk,
            Positions(calibration.fit.batches.samples, seed),
            damping=self.job.config.prune.damping,
            seed=seed,
            note=self._choose,
            cache=self.cache,
            stage=len(self.done) + 1,
        )
        model.keep_first = self.keep_first
        return model

    def _choose(self, text: str) -> None:
        if text not in self.choices:
            self.choices.append(text)
            self.progress.note(text)


def running_order(network: Network, calibration: Calibration) -> list[str]:
    """Names of the layers that a batch reaches, in the order in which they first run."""
    order: dict[str, None] = {}

    def watcher(name: str) -> Watcher:
        def note(start: int, samples: int, x: Tensor, y: Tensor) -> None:
            order.setdefault(name)

        return note

    watch: dict[nn.Module, Watcher] = {m: watcher(layer.name) for layer in network.layers for m in layer.modules}
    next(sweep(network.module, calibration.fit.batches, watch=watch))
    return list(order)


def _repair(job: Job, usual: str) -> str:
    asked = job.config.prune.repair
    if asked == "auto":
        return usual
    if asked != "none" and job.samples is None:
        raise UsageError(f"prune.repair={asked} needs samples", "name them with --data, or say prune.repair=none")
    return asked
