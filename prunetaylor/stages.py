"""The stages of a run: fit the Taylor model, score, select, repair, and hold the prediction against the measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunetaylor import registry
from prunetaylor.aim import look, unseen
from prunetaylor.calibration import Calibration, Part
from prunetaylor.curvature.cache import open_cache
from prunetaylor.curvature.gram import Moments, Positions
from prunetaylor.curvature.taylor import TaylorModel
from prunetaylor.data.samples import Split
from prunetaylor.distributed.exchange import as_in_main
from prunetaylor.errors import DataError, NumericsError
from prunetaylor.job import Job
from prunetaylor.measure.evaluate import evaluate
from prunetaylor.memory import release
from prunetaylor.network.network import Network
from prunetaylor.network.state import check_values, displacement, restore, snapshot
from prunetaylor.outcome import Histogram, Stage, removed_at
from prunetaylor.progress import Progress, Watch, unwatched
from prunetaylor.refinement import REMEMBERED
from prunetaylor.removal import Removal
from prunetaylor.repair import batch_norm, compensate, least_squares
from prunetaylor.repair.affine import Absorber, find_absorbers
from prunetaylor.repair.masks import apply_masks
from prunetaylor.risk import Risk, check_outputs
from prunetaylor.selection.schedule import Fixed, sparsities
from prunetaylor.selection.trust import FRESH, TrustRegion, believed
from prunetaylor.usage import examine, unreached

FEW = 20
"""Held-out samples below which a run says that they are few."""
_DRAWS = 10
"""Tries to draw samples that reach each layer, where a network chooses by the sample which layers it runs."""


@dataclass
class Stages:
    """What the stages of one run share, and what they have done so far. ``masks``: True = keep, by parameter name."""

    REFINES: ClassVar[bool] = True
    """Whether what is done stays, so that it may be refined and trained."""

    job: Job
    dense: Network  # a copy that stays as it was
    pool: Split | None  # what calibration samples are drawn from; None without data
    progress: Progress
    moment: Callable[[], None] = lambda: None  # called wherever the state may be kept
    watch: Watch = unwatched
    masks: dict[str, Tensor] = field(default_factory=dict)
    done: list[Stage] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    histogram: Histogram | None = None  # of the last stage that stands
    seen: list[Part] = field(default_factory=list)  # what the last stages were fitted to, for refinement
    drawn: list[Tensor] = field(default_factory=list)  # the generator's states before these were drawn
    refining: dict[str, Any] | None = None  # how far the refinement at work is; None: none is

    def __post_init__(self) -> None:
        check_values(self.dense.module)
        config = self.job.config
        self.criterion = registry.load("saliency", self.job.method)
        self.aim = unseen(self.job, self.criterion)
        self.generator = torch.Generator().manual_seed(config.seed)
        structure = registry.load("structure", config.prune.structure)
        self.removal = Removal(self.job.network, self.criterion, structure, self.generator)
        self.cache = open_cache(config.cache)
        self.dense_state = snapshot(self.dense.module)
        # What repair leaves of the change that removal alone would make, by the last stage; None until there was one.
        self.repaired: float | None = None
        self.damping = config.prune.damping
        self.plan: Fixed | TrustRegion | None = None
        self.trained = 0
        """Steps of training that the network has had since it was dense."""
        self.settled = config.prune.schedule != "one-shot"
        """Whether it is the sparsity asked for that is gone to: the network may have it already."""

    def run(self, left: Mapping[str, Any] | None = None) -> None:
        """Prune ``job.network`` in place, to the sparsity asked for; from ``left``, a state, on."""
        self.settled = True
        if self.pool is None:
            self._start()
            for target in self._levels():
                self._without_data(target)
            return
        self.begin()
        plan = self._plan()
        if left is not None:
            self.load_state_dict(left)
            if left["plan"] is not None:
                plan.load_state_dict(left["plan"])
        self.plan = plan
        if left is None:
            self.moment()
        if self.idle and self.aim.refinement.when != "none":  # a stage that removes nothing
            self.progress.phase("stage 1")
            self.done.append(Stage(self.removed / self.job.network.prunable, None, None, None, 0.0))
            self.refining = {}
        if self.refining is not None:
            start = time.perf_counter()
            self._refine()
            self._measure()
            self.done[-1] = replace(self.done[-1], seconds=self.done[-1].seconds + time.perf_counter() - start)
        while self.removed < self.wanted:
            self._next(plan)
            self.moment()

    def begin(self) -> None:
        """Draw the samples, look at the dense network, and decide what is to be decided."""
        self.progress.phase("calibrate")
        self._draw()
        held = self.calibration.holdout.batches.samples
        if held < FEW:
            self._choose(
                f"held-out samples: {held}; what is measured on so few says little, give more calibration.samples"
            )
        self._calibrate()

    def to(self, sparsity: float) -> None:
        """One stage to ``sparsity`` now, from weights that may have been trained since the last one."""
        if removed_at(sparsity, self.job.network.prunable) <= self.removed:
            return
        moment, self.moment = self.moment, lambda: None
        self._next(Fixed([sparsity], self.job.config.prune.damping))
        self.moment = moment

    def _next(self, plan: Fixed | TrustRegion) -> None:
        if self.done and self.job.config.calibration.resample:
            self._draw()
        self.progress.phase(f"stage {len(self.done) + 1}", len(self.job.network.layers) + 3)
        self._stage(plan, self.calibration, self.absorbers)
        if self.done[-1].accepted:
            self.watch("stage", len(self.done), self.done[-1].cumulative_measured or 0.0)

    def _draw(self) -> None:
        """Fresh calibration samples."""
        assert self.pool is not None
        state = self.generator.get_state()
        for _ in range(_DRAWS):
            self.calibration = Calibration.draw(self.job, self.dense.module, self.pool, self.generator)
            # The first draw settles which layers take part; those after it must reach them too.
            missing = unreached(self.dense, self.calibration.fit.batches) if self.masks else []
            if not missing:
                break
        else:
            raise DataError(
                f"{missing[0]} is reached by no sample of {_DRAWS} draws, as it was by those drawn first",
                "give more calibration.samples, or leave it alone (prune.exclude)",
            )
        for part in (self.calibration.fit, self.calibration.holdout):
            check_outputs(self.dense.module, part.batches, part.dense_outputs)
        self.drawn = [*self.drawn, state][-REMEMBERED:]
        self.seen = [*self.seen, self.calibration.fit][-REMEMBERED:]

    def _plan(self) -> Fixed | TrustRegion:
        config = self.job.config.prune
        if config.stages != "auto" or self.criterion.REACH is None:
            return Fixed(self._levels(), config.damping)
        fresh = self.job.config.calibration.resample and self.aim.refinement.when == "stages"
        scale = self.calibration.spread(self.job.kind)
        return TrustRegion(config.sparsity, scale, config.damping, FRESH if fresh else self.criterion.REACH)

    def state_dict(self, *, weights: bool = True) -> dict[str, Any]:
        """All that the stages to come depend on, at a ``moment``; ``weights``: the network's too."""
        return {
            "module": snapshot(self.job.network.module) if weights else None,
            "masks": self.masks,
            "done": [asdict(stage) for stage in self.done],
            "generator": self.generator.get_state(),
            "drawn": self.drawn,
            "plan": None if self.plan is None else self.plan.state_dict(),
            "repaired": self.repaired,
            "damping": self.damping,
            "choices": self.choices,
            "histogram": None if self.histogram is None else asdict(self.histogram),
            "refining": None if self.refining is None else self._refined.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; after ``begin``."""
        self.seen, self.drawn = [], []
        for before in state["drawn"]:
            self.generator.set_state(before)
            self._draw()
        self.generator.set_state(state["generator"])
        if state["module"] is not None:
            restore(self.job.network.module, state["module"])
        self.masks = {name: mask.to(self.masks[name].device) for name, mask in state["masks"].items()}
        self.done = [Stage(**stage) for stage in state["done"]]
        self.repaired, self.damping = state["repaired"], state["damping"]
        self.choices, self.refining = list(state["choices"]), state["refining"]
        self.histogram = None if state["histogram"] is None else Histogram(**state["histogram"])

    @property
    def wanted(self) -> int:
        """The number of weights that the sparsity asked for removes."""
        return removed_at(self.job.config.prune.sparsity, self.job.network.prunable)

    @property
    def removed(self) -> int:
        return sum(int((~mask).sum()) for mask in self.masks.values())

    @property
    def retrained(self) -> bool:
        """Whether stages are the steps of a gradual schedule, which training comes between."""
        return self.REFINES and self.job.config.prune.schedule != "one-shot"

    @property
    def idle(self) -> bool:
        """Nothing is to be removed: as it was given, the network has the sparsity asked for, or more."""
        return self.settled and not self.done and self.removed >= self.wanted

    def _levels(self) -> list[float]:
        """The stages' sparsities where they are settled beforehand; those that would remove nothing are left out."""
        config = self.job.config.prune
        levels = sparsities(config.sparsity, config.stages, self.criterion.REACH is not None)
        return [level for level in levels if removed_at(level, self.job.network.prunable) > self.removed]

    def _calibrate(self) -> None:
        network, calibration = self.job.network, self.calibration
        fitted = self.criterion.NEEDS != "nothing" or self.job.config.prune.repair in ("least-squares", "obs")
        usage = examine(network, calibration.fit.batches, fitted=fitted)
        for each in (network, self.dense):
            each.keep_only(usage.order, usage.why)
        for text in usage.said:
            self._choose(text)
        self._start()
        self.absorbers = find_absorbers(network.module, network.layers, calibration.fit.batches)
        dense = self.dense.module
        model = partial(self._model, self.dense, calibration=calibration)
        self.aim = look(self.job, self.criterion, calibration, dense, model, idle=self.idle, refines=self.REFINES)
        for text in self.aim.said:
            self._choose(text)
        self.repaired = None if self.aim.solves else 1.0

    def _start(self) -> None:
        """Weights that are zero before anything is pruned are gone already."""
        self.masks = self.job.network.masks()
        if self.idle:
            asked, already = self.job.config.prune.sparsity, self.removed / self.job.network.prunable
            self._choose(f"nothing to remove: {asked:.2%} was asked for, {already:.2%} is zero already")

    def _stage(self, plan: Fixed | TrustRegion, calibration: Calibration, absorbers: Mapping[str, Absorber]) -> None:
        start = time.perf_counter()
        network, masks, state = self.job.network, self.masks, snapshot(self.job.network.module)
        drawn = self.histogram
        # Refined towards the labels, or trained, the network now is nearer to what it should answer than the dense one.
        refined = self.aim.refinement.when == "stages" and self.aim.objective.of == "task"
        towards = network.copy() if refined or self.trained else self.dense
        self.damping = plan.damping
        held = calibration.holdout.risk(network.module, self.aim.objective)
        judge, before = self._model(network, held, calibration), held.values()
        now = self.removed / network.prunable
        model = self._model(network, calibration.fit.risk(network.module, self.aim.objective), calibration, judge)
        # Fitted before the removal, which moves the network in place: repair starts from what it was.
        moments = model.moments if self.aim.repair == "obs" else {}
        found = self.removal.step(masks, plan, model, judge, keep_first=self.aim.keep_first, repaired=self.repaired)
        target, self.masks, self.histogram = found.sparsity, found.masks, found.histogram
        reached = self._reached(target)
        self._as_in_main()
        self.progress.step("selected")
        if self.aim.repair == "obs":
            self._compensate(moments, self.masks, state, absorbers)
        del model, moments  # its curvature, before repair and the next phases need the room
        release()
        if self.aim.repair == "least-squares":
            self._least_squares(calibration, absorbers, towards)
        # Both changes are of the displacement up to here (masks and least squares, before batch norm), and both are
        # taken on held-out samples: on those that least squares fitted it costs less than elsewhere.
        measured, noise = _change(held, before)
        self.progress.step("measured")
        predicted = judge.predict(displacement(network.module, judge.state)).change(self.aim.keep_first)
        unsure = self.aim.solves or hasattr(self.criterion, "solve")
        stands = plan.judge(now, target, predicted, measured, noise, "needed" if unsure else "none needed")
        if stands and not isfinite(measured):
            repairs = "" if self.aim.repair == "least-squares" else "prune.repair=least-squares, or "
            raise NumericsError(
                f"pruned from {now:.2%} to {reached:.2%} the outputs are out of range, and no smaller stage is left",
                f"try {repairs}a sparsity nearer to {now:.2%}",
            )
        if found.alone is not None and found.alone > 0 < predicted:
            self.repaired = predicted / found.alone
        elif self.repaired is None:
            self.repaired = 1.0  # a gain: there is no share that is left of it
        self.progress.step("predicted")
        first = not (self.done or self.trained)
        since = (predicted, measured, noise) if first else self._since_dense(calibration, held)
        if not stands:
            restore(network.module, state)
            self.masks, self.histogram = masks, drawn
            far = ", too far for one stage" if believed(predicted, measured, noise, 0.0) else ""
            text = f"taken back: {reached:.2%} cost {measured:.4g} where {predicted:.4g} was predicted"
            self.progress.note(text + far)
        else:
            if self.aim.repair == "batch-norm":
                fit = calibration.fit.batches
                for _ in batch_norm.correct(network.module, self.dense.module, self.dense_state, fit):
                    pass
        self._as_in_main()
        self.done.append(
            Stage(
                sparsity=reached,
                predicted_change=predicted,
                measured_change=_finite(measured),
                gain_ratio=_finite(measured / predicted) if predicted != 0 else None,
                seconds=time.perf_counter() - start,
                accepted=stands,
                noise=noise,
                damping=self.damping,
                cumulative_predicted=since[0],
                cumulative_measured=_finite(since[1]),
                believed=believed(*since, self.calibration.spread(self.job.kind)),
                cumulative_ratio=_finite(since[1] / since[0]) if since[0] != 0 else None,
            )
        )
        done = self.done[-1]
        told = {"sparsity": reached, "predicted_change": predicted, "measured_change": measured}
        self.progress.measured(self.trained, {name: value for name, value in told.items() if isfinite(value)})
        last = self.aim.refinement.when == "last" and self.removed == self.wanted
        if stands and (self.aim.refinement.when == "stages" or last):
            self.refining = {}
            self._refine()
            self.done[-1] = replace(done, seconds=time.perf_counter() - start)
        if stands:
            self._measure()
            self._name_emptied()

    def _compensate(
        self,
        moments: Mapping[str, Moments],
        masks: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        absorbers: Mapping[str, Absorber],
    ) -> None:
        network = self.job.network
        solved = compensate.repair(
            network.module,
            network.layers,
            masks,
            before,
            moments,
            absorbers,
            damping=self.damping,
            note=self._choose,
        )
        for name in solved:
            self.progress.step(name)
        apply_masks(network.module, masks)

    def _least_squares(self, calibration: Calibration, absorbers: Mapping[str, Absorber], towards: Network) -> None:
        network, batches = self.job.network, calibration.fit.batches
        where = Positions(batches.samples, self.job.config.seed)
        dense = least_squares.DenseOutputs(towards.module, towards.layers, batches, where)
        solved = least_squares.repair(
            network.module,
            network.layers,
            self.masks,
            dense,
            towards.module.state_dict(),
            absorbers,
            batches,
            damping=self.damping,
            note=self._choose,
        )
        for name in solved:
            self.progress.step(name)

    def _refine(self) -> None:
        assert self.refining is not None
        for refined in self.aim.refinement.run(
            self.job,
            self.dense,
            self.masks,
            self.aim.objective,
            self.calibration,
            self.seen,
            self.absorbers,
            self.generator,
            self.job.config.seed + 1_000_003 * (len(self.done) - 1),
            self.refining,
        ):
            if refined.text is not None:
                self.progress.note(f"refined: {refined.text}")
            self._refined = refined
            self.moment()
        self.refining = None

    def _since_dense(self, calibration: Calibration, held: Risk) -> tuple[float, float, float]:
        """(predicted, measured) change of all that moved since the dense network, on the held-out samples, and the
        standard error of the measured one."""
        dense = calibration.holdout.risk(self.dense.module, self.aim.objective)
        moved = displacement(self.job.network.module, self.dense_state)
        predicted = self._model(self.dense, dense, calibration).predict(moved).change(self.aim.keep_first)
        return predicted, *_change(held, dense.values())

    def _without_data(self, target: float) -> None:
        start = time.perf_counter()
        found = self.removal.weakest(self.masks, removed_at(target, self.job.network.prunable))
        self.masks, self.histogram = found.masks, found.histogram
        self.done.append(Stage(self._reached(target), None, None, None, time.perf_counter() - start))
        self._name_emptied()

    def _reached(self, target: float) -> float:
        """The sparsity as it was proposed, where so many weights are gone: of a small network one may be more."""
        prunable = self.job.network.prunable
        return target if self.removed == round(target * prunable) else self.removed / prunable

    def _name_emptied(self) -> None:
        for layer in self.job.network.layers:
            if not bool(self.masks[layer.parameter].any()):
                self._choose(f"{layer.name}: no weight of it is left")

    def _measure(self) -> None:
        """The metric of the network as it now is, for the report alone: nothing is chosen by it."""
        found = evaluate(self.job.network.module, self.calibration.holdout.batches, self.job.kind)
        self.done[-1] = replace(self.done[-1], metric=found.metrics.get(self.job.config.metric))

    def _model(
        self, network: Network, risk: Risk, calibration: Calibration, judge: TaylorModel | None = None
    ) -> TaylorModel:
        seed = self.job.config.seed
        model = TaylorModel(
            network,
            risk,
            Positions(calibration.fit.batches.samples, seed),
            damping=self.damping,
            seed=seed,
            note=self._choose,
            intercepts=self.absorbers,
            cache=self.cache,
            stage=1 + sum(stage.accepted for stage in self.done),  # one taken back has left the weights as they were
            judge=judge,
        )
        model.keep_first = self.aim.keep_first
        model.retrained = self.retrained
        return model

    def _as_in_main(self) -> None:
        """Several processes come to the same weights and masks; should their machines round differently, to one's."""
        state = self.job.network.module.state_dict().values()
        as_in_main([*(t for t in state if isinstance(t, Tensor)), *self.masks.values()])

    def _choose(self, text: str) -> None:
        if text not in self.choices:
            self.choices.append(text)
            self.progress.note(text)


def _change(held: Risk, before: Tensor) -> tuple[float, float]:
    """(mean change of the error since ``before``, its standard error); infinite where it is out of range."""
    try:
        changes = held.values() - before
    except NumericsError:
        return float("inf"), 0.0
    change = float(changes.mean())
    # Of one sample nothing scatters: all of its change may be chance.
    return change, float(changes.std() / len(changes) ** 0.5) if len(changes) > 1 else abs(change)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
