"""The stages of a run: fit the Taylor model, score, select, repair, and hold the prediction against the measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunetaylor.core.errors import DataError, NumericsError
from prunetaylor.core.progress import Progress, ProgressMonitor, no_monitor
from prunetaylor.core.results.outcome import Alert, Histogram, Stage, removed_at
from prunetaylor.data.samples import Split
from prunetaylor.measure.evaluate import evaluate
from prunetaylor.network.network import Network
from prunetaylor.network.state import check_values, displacement, restore, snapshot
from prunetaylor.pipeline.files.resume import restoring
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.plan import look, unseen
from prunetaylor.pipeline.sampling.calibration import Calibration, Part
from prunetaylor.pipeline.stages.refinement import SAMPLE_HISTORY
from prunetaylor.pipeline.stages.state import StageState
from prunetaylor.pruning.interfaces import Solver, load_criterion, load_structure
from prunetaylor.pruning.repair import batch_norm, least_squares, obs_update
from prunetaylor.pruning.repair.intercepts import Intercept, find_intercepts
from prunetaylor.pruning.repair.masks import apply_masks
from prunetaylor.pruning.selection.schedule import Fixed, sparsities
from prunetaylor.pruning.selection.selector import Selection, Selector
from prunetaylor.pruning.selection.trust_region import FRESH_STAGE_FRACTION, TrustRegion, agrees
from prunetaylor.runtime.processes.exchange import as_in_main
from prunetaylor.taylor.curvature.cache import open_cache
from prunetaylor.taylor.curvature.gram import Moments, Positions
from prunetaylor.taylor.layer_check import check_layers, unreached
from prunetaylor.taylor.memory import release
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.output_check import check_outputs
from prunetaylor.taylor.passes import Risk

MIN_HOLDOUT = 20
"""Held-out samples below which a run says that they are few."""
FEW_IN_ALL = 50
"""Calibration samples below which a run warns that they are few."""
EXPLODED = 100.0
"""A stage after which the held-out error is so many times that of a constant answer is taken back."""
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
    checkpoint_point: Callable[[], None] = lambda: None  # called wherever the state may be kept
    watch: ProgressMonitor = no_monitor
    masks: dict[str, Tensor] = field(default_factory=dict)
    history: list[Stage] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    histogram: Histogram | None = None  # of the last stage that stands
    seen: list[Part] = field(default_factory=list)  # what the last stages were fitted to, for refinement
    drawn: list[Tensor] = field(default_factory=list)  # the generator's states before these were drawn
    at_work: StageState | None = None
    refining: dict[str, Any] | None = None  # how far the refinement at work is; None: none is

    def __post_init__(self) -> None:
        check_values(self.dense.module)
        config = self.job.config
        self.criterion = load_criterion(self.job.method)
        self.aim = unseen(self.job, self.criterion)
        self.generator = torch.Generator().manual_seed(config.seed)
        structure = load_structure(config.prune.structure)
        self.removal = Selector(self.job.network, self.criterion, structure, self.generator)
        self.cache = open_cache(config.cache)
        self.dense_state = snapshot(self.dense.module)
        # What repair leaves of the change that removal alone would make, by the last stage; None until there was one.
        self.repaired: float | None = None
        self.damping = config.prune.damping
        self.plan: Fixed | TrustRegion | None = None
        self._left_of_plan: Mapping[str, Any] | None = None  # of a state that was loaded
        self.train_steps = 0
        """Steps of training that the network has had since it was dense."""
        self.has_target = config.prune.schedule != "one-shot"
        """Whether it is the sparsity asked for that is gone to: the network may have it already."""

    def run(self, left: Mapping[str, Any] | None = None) -> None:
        """Prune ``job.network`` in place, to the sparsity asked for; from ``left``, a state, on."""
        self.has_target = True
        if self.pool is None:
            self._start()
            for target in self._levels():
                self._without_data(target)
            return
        self.begin()
        plan = self._plan()
        if left is not None:
            self.load_state_dict(left)
            if self._left_of_plan is not None:
                with restoring():
                    plan.load_state_dict(self._left_of_plan)
        self.plan = plan
        if left is None:
            self.checkpoint_point()
        if self.nothing_to_prune and self.aim.refinement.when != "none":  # a stage that removes nothing
            self.progress.phase("stage 1")
            self.history.append(Stage(self.removed / self.job.network.prunable, None, None, None, 0.0))
            self.refining = {}
        if self.refining is not None:
            self._finish()
            self.checkpoint_point()
        while self.removed < self.target_count:
            self._next(plan)
            self.checkpoint_point()

    def begin(self) -> None:
        """Draw the samples, look at the dense network, and decide what is to be decided."""
        self.progress.phase("calibrate", 3)
        self._draw()
        self.progress.step("samples drawn")
        held = self.calibration.holdout.batches.samples
        if held < MIN_HOLDOUT:
            self._choose(f"only {held} held-out samples: their measurements are rough; raise calibration.samples")
        if (drawn := held + self.calibration.fit.batches.samples) < FEW_IN_ALL:
            text = f"only {drawn} calibration samples: expect a larger drop; 1,000 are usual (calibration.samples)"
            self.job.warn(Alert("few_samples", text), self.progress)
        self._calibrate()

    def to(self, sparsity: float) -> None:
        """One stage to ``sparsity`` now, from weights that may have been trained since the last one.

        What was ``unfinished`` when its state was kept is finished.
        """
        if self.refining is not None:
            self._finish()
        plan = Fixed([sparsity], self.job.config.prune.damping)
        if self.at_work is not None and self._left_of_plan is not None:
            plan.load_state_dict(self._left_of_plan)
        self.plan = plan
        while self.at_work is not None or removed_at(sparsity, self.job.network.prunable) > self.removed:
            self._next(plan)

    def _next(self, plan: Fixed | TrustRegion) -> None:
        if self.history and self.job.config.calibration.resample and self.at_work is None:
            self._draw()
        if isinstance(plan, TrustRegion) and plan.hurried:
            self._choose(
                f"stages: most of the {plan.budget} that this run may take are used; each from here on removes its "
                "share of what is left to remove"
            )
        self.progress.phase(f"stage {len(self.history) + 1}", len(self.job.network.layers) + 3)
        self._stage(plan, self.calibration, self.intercepts)

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
                f"{missing[0]} is used by no sample of {_DRAWS} draws, though it was by the first samples",
                "raise calibration.samples, or exclude the layer (prune.exclude)",
            )
        if (dwarfing := self.calibration.dwarfing) is not None:
            alert = dwarfing.alert("calibration")
            if alert not in self.job.warnings:
                self.job.warn(alert, self.progress)
        for part in (self.calibration.fit, self.calibration.holdout):
            check_outputs(self.dense.module, part.batches, part.dense_outputs)
        self.drawn = [*self.drawn, state][-SAMPLE_HISTORY:]
        self.seen = [*self.seen, self.calibration.fit][-SAMPLE_HISTORY:]

    def _plan(self) -> Fixed | TrustRegion:
        config = self.job.config.prune
        if config.stages != "auto" or self.criterion.max_stage_fraction is None:
            return Fixed(self._levels(), config.damping)
        fresh = self.job.config.calibration.resample and self.aim.refinement.when == "stages"
        scale = self.calibration.spread(self.job.task)
        return TrustRegion(
            config.sparsity, scale, config.damping, FRESH_STAGE_FRACTION if fresh else self.criterion.max_stage_fraction
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the stages to come depend on, at a ``checkpoint_point``, and the network's weights.

        Of a stage at work it is what it started from, and beside that what need not be found again.
        """
        module, work = self.job.network.module, self.at_work
        histogram = self.histogram if work is None else work.histogram
        return {
            "module": snapshot(module) if work is None else work.before,
            "masks": self.masks if work is None else work.masks,
            "at_work": None if work is None else work.state_dict(module),
            "done": [asdict(stage) for stage in self.history],
            "generator": self.generator.get_state(),
            "drawn": self.drawn,
            "plan": None if self.plan is None else self.plan.state_dict(),
            "repaired": self.repaired,
            "damping": self.damping,
            "choices": list(map(str, self.choices)),
            "histogram": None if histogram is None else asdict(histogram),
            "refining": None if self.refining is None else self._refined.state(),
        }

    @restoring()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; after ``begin``."""
        self._left_of_plan = state["plan"]
        self.seen, self.drawn = [], []
        for before in state["drawn"]:
            self.generator.set_state(before)
            self._draw()
        self.generator.set_state(state["generator"])
        module = self.job.network.module
        restore(module, state["module"])
        self.masks = self._placed(state["masks"])
        self.history = [Stage(**stage) for stage in state["done"]]
        self.repaired, self.damping = state["repaired"], state["damping"]
        self.choices, self.refining = list(state["choices"]), state["refining"]
        self.histogram = None if state["histogram"] is None else Histogram(**state["histogram"])
        if state["at_work"] is not None:
            self.at_work = StageState(snapshot(module), self.masks, self.histogram)
            self.at_work.load_state_dict(state["at_work"], self._placed)

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What there is of each prunable parameter, on its device."""
        return {name: tensor.to(self.masks[name].device) for name, tensor in tensors.items()}

    @property
    def unfinished(self) -> bool:
        """Whether the state that was loaded is from within a stage."""
        return self.at_work is not None or self.refining is not None

    @property
    def target_count(self) -> int:
        """The number of weights that the sparsity asked for removes."""
        return removed_at(self.job.config.prune.sparsity, self.job.network.prunable)

    @property
    def removed(self) -> int:
        return sum(int((~mask).sum()) for mask in self.masks.values())

    @property
    def trained_between_stages(self) -> bool:
        """Whether stages are the steps of a gradual schedule, which training comes between."""
        return self.REFINES and self.job.config.prune.schedule != "one-shot"

    @property
    def nothing_to_prune(self) -> bool:
        """Nothing is to be removed: as it was given, the network has the sparsity asked for, or more."""
        return self.has_target and not self.history and self.removed >= self.target_count

    def _levels(self) -> list[float]:
        """The stages' sparsities where they are settled beforehand; those that would remove nothing are left out."""
        config = self.job.config.prune
        levels = sparsities(config.sparsity, config.stages, self.criterion.max_stage_fraction is not None)
        return [level for level in levels if removed_at(level, self.job.network.prunable) > self.removed]

    def _calibrate(self) -> None:
        network, calibration = self.job.network, self.calibration
        fitted = self.criterion.needs != "nothing" or self.job.config.prune.repair in ("least-squares", "obs")
        usage = check_layers(network, calibration.fit.batches, fitted=fitted)
        for each in (network, self.dense):
            each.keep_only(usage.order, usage.why)
        for text in usage.said:
            self._choose(text)
        self._start()
        self.progress.step("layers examined")
        self.intercepts = find_intercepts(network.module, network.layers, calibration.fit.batches)
        dense = self.dense.module
        model = partial(self._model, self.dense, calibration=calibration)
        self.aim = look(
            self.job,
            self.criterion,
            calibration,
            dense,
            model,
            nothing_to_prune=self.nothing_to_prune,
            refines=self.REFINES,
        )
        self.progress.step("error settled")
        for text in self.aim.said:
            self._choose(text)
        self.repaired = None if self.aim.solves else 1.0

    def _start(self) -> None:
        """Weights that are zero before anything is pruned are gone already."""
        self.masks = self.job.network.masks()
        if self.nothing_to_prune:
            asked, already = self.job.config.prune.sparsity, self.removed / self.job.network.prunable
            self._choose(f"nothing to remove: {asked:.2%} was asked for, {already:.2%} is zero already")

    def _stage(self, plan: Fixed | TrustRegion, calibration: Calibration, intercepts: Mapping[str, Intercept]) -> None:
        network = self.job.network
        if self.at_work is None:
            self.at_work = StageState(snapshot(network.module), self.masks, self.histogram)
        work = self.at_work
        self.damping = plan.damping
        held = calibration.holdout.risk(network.module, self.aim.objective)
        holdout_model, before = self._model(network, held, calibration), held.values()
        removed_before = sum(int((~mask).sum()) for mask in work.masks.values())
        now = removed_before / network.prunable
        found = self._remove_and_repair(work, plan, holdout_model, calibration, intercepts)
        reached = self._reached(found.sparsity)
        # Both changes are of the displacement up to here (masks and least squares, before batch norm), and both are
        # taken on held-out samples: on those that least squares fitted it costs less than elsewhere.
        measured, noise = _change(held, before)
        self.progress.step("measured")
        predicted = holdout_model.predict(displacement(network.module, holdout_model.state)).change(self.aim.keep_first)
        unsure = self.aim.solves or isinstance(self.criterion, Solver)
        exploded = self._exploded(float(before.mean()), measured)
        stands = plan.judge(
            now,
            found.sparsity,
            predicted,
            float("inf") if exploded else measured,
            noise,
            "needed" if unsure else "none needed",
            damped=self.criterion.uses_damping or self.aim.solves,
            least=self.removed - removed_before == 1,
        )
        if stands and exploded:
            repairs = "" if self.aim.repair == "least-squares" else "prune.repair=least-squares, or "
            raise NumericsError(
                f"pruned from {now:.2%} to {reached:.2%} the network is ruined ({exploded}), and no smaller or more "
                "damped stage is left",
                f"try {repairs}a sparsity nearer to {now:.2%}, or more calibration.samples",
            )
        if found.alone is not None and found.alone > 0 < predicted:
            self.repaired = predicted / found.alone
        elif self.repaired is None:
            self.repaired = 1.0  # a gain: there is no share that is left of it
        self.progress.step("predicted")
        first = not (self.history or self.train_steps)
        since = (predicted, measured, noise) if first else self._since_dense(calibration, held)
        if not stands:
            restore(network.module, work.before)
            self.masks, self.histogram = work.masks, work.histogram
            far = ", too far for one stage" if agrees(predicted, measured, noise, 0.0) else ""
            far = f": {exploded}" if exploded else far
            text = f"taken back: {reached:.2%} cost {measured:.4g} where {predicted:.4g} was predicted"
            self.progress.note(text + far)
        else:
            if self.aim.repair == "batch-norm":
                fit = calibration.fit.batches
                for _ in batch_norm.correct(network.module, self.dense.module, self.dense_state, fit):
                    pass
        self._as_in_main()
        self.at_work = None
        self.history.append(
            Stage(
                sparsity=reached,
                predicted_change=predicted,
                measured_change=_finite(measured),
                gain_ratio=_finite(measured / predicted) if predicted != 0 else None,
                seconds=work.seconds,
                accepted=stands,
                noise=noise,
                damping=self.damping,
                cumulative_predicted=since[0],
                cumulative_measured=_finite(since[1]),
                believed=agrees(*since, self.calibration.spread(self.job.task)),
                cumulative_ratio=_finite(since[1] / since[0]) if since[0] != 0 else None,
            )
        )
        told = {"sparsity": reached, "predicted_change": predicted, "measured_change": measured}
        self.progress.measured(self.train_steps, {name: value for name, value in told.items() if isfinite(value)})
        last = self.aim.refinement.when == "last" and self.removed == self.target_count
        if stands:
            self.refining = {} if self.aim.refinement.when == "stages" or last else None
            self._finish()

    def _exploded(self, before: float, change: float) -> str:
        """How the network is ruined by a stage that changed the held-out error so; empty where it is not."""
        if not isfinite(change):
            return "its outputs are out of range"
        usual = max(before, self.calibration.spread(self.job.task))
        if change > EXPLODED * usual > 0:
            return f"its held-out error is {change / usual:.2g} times that of a constant answer"
        return ""

    def _remove_and_repair(
        self,
        work: StageState,
        plan: Fixed | TrustRegion,
        holdout_model: TaylorModel,
        calibration: Calibration,
        intercepts: Mapping[str, Intercept],
    ) -> Selection:
        """Move the network to where the stage wants it; what of it is done already is not done again."""
        network, aim = self.job.network, self.aim
        # Refined towards the labels, or trained, the network now is nearer to what it should answer than the dense one.
        refined = aim.refinement.when == "stages" and aim.objective.kind == "task"
        towards = network.copy() if refined or self.train_steps else self.dense
        model = self._model(network, calibration.fit.risk(network.module, aim.objective), calibration, holdout_model)
        # Fitted before the removal, which moves the network in place: repair starts from what it was.
        moments = model.moments if aim.repair == "obs" else {}
        if work.removed is None:
            model.scored, model.checkpoint_point = work.scored, self.checkpoint_point
            work.removed = self.removal.step(
                work.masks, plan, model, holdout_model, keep_first=aim.keep_first, repaired=self.repaired
            )
            work.scored = {}
        elif work.moved is not None:
            restore(network.module, work.moved)
        self.masks, self.histogram = work.removed.masks, work.removed.histogram
        self._as_in_main()
        self.checkpoint_point()
        self.progress.step("selected")
        if aim.repair == "obs":
            self._compensate(moments, self.masks, work.before, intercepts, work.repaired)
        del model, moments  # its curvature, before repair and the next phases need the room
        release()
        if aim.repair == "least-squares":
            self._least_squares(calibration, intercepts, towards, work.repaired)
        return work.removed

    def _finish(self) -> None:
        """What follows where the last stage stands."""
        if self.refining is not None:
            self._refine()
        self._measure()
        self._name_emptied()
        if (measured := self.history[-1].cumulative_measured) is not None:
            self.watch("stage", len(self.history), measured)

    def _compensate(
        self,
        moments: Mapping[str, Moments],
        masks: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        intercepts: Mapping[str, Intercept],
        done: list[str],
    ) -> None:
        """``history``: the layers that are repaired, by name; it grows."""
        network = self.job.network
        solved = obs_update.repair(
            network.module,
            [layer for layer in network.layers if layer.name not in done],
            masks,
            before,
            moments,
            intercepts,
            damping=self.damping,
            note=self._choose,
        )
        self._solved(solved, done)
        apply_masks(network.module, masks)

    def _least_squares(
        self, calibration: Calibration, intercepts: Mapping[str, Intercept], towards: Network, done: list[str]
    ) -> None:
        network, batches = self.job.network, calibration.fit.batches
        where = Positions(batches.samples, self.job.config.seed)
        dense = least_squares.DenseOutputs(towards.module, towards.layers, batches, where)
        solved = least_squares.repair(
            network.module,
            network.layers,
            self.masks,
            dense,
            towards.module.state_dict(),
            intercepts,
            batches,
            damping=self.damping,
            note=self._choose,
            solved=frozenset(done),
        )
        self._solved(solved, done)

    def _solved(self, names: Iterator[str], done: list[str]) -> None:
        for name in done:
            self.progress.step(name)
        for name in names:
            done.append(name)
            self.progress.step(name)
            self.checkpoint_point()

    def _refine(self) -> None:
        assert self.refining is not None
        before, start = self.history[-1].seconds, time.perf_counter()
        self.progress.phase("refine", self.aim.refinement.steps)
        for refined in self.aim.refinement.run(
            self.job,
            self.dense,
            self.masks,
            self.aim.objective,
            self.calibration,
            self.seen,
            self.intercepts,
            self.generator,
            self.job.config.seed + 1_000_003 * (len(self.history) - 1),
            self.refining,
        ):
            if refined.text is not None:
                self.progress.note(f"refinement {refined.text}")
            self._refined = refined
            self.progress.step()
            self.history[-1] = replace(self.history[-1], seconds=before + time.perf_counter() - start)
            self.checkpoint_point()
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
        self.history.append(Stage(self._reached(target), None, None, None, time.perf_counter() - start))
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
        found = evaluate(self.job.network.module, self.calibration.holdout.batches, self.job.task)
        self.history[-1] = replace(self.history[-1], metric=found.metrics.get(self.job.config.metric))

    def _model(
        self, network: Network, risk: Risk, calibration: Calibration, holdout_model: TaylorModel | None = None
    ) -> TaylorModel:
        seed = self.job.config.seed
        model = TaylorModel(
            network,
            risk,
            Positions(calibration.fit.batches.samples, seed),
            damping=self.damping,
            seed=seed,
            note=self._choose,
            intercepts=self.intercepts,
            cache=self.cache,
            stage=1 + sum(stage.accepted for stage in self.history),  # one taken back has left the weights as they were
            holdout_model=holdout_model,
        )
        model.keep_first = self.aim.keep_first
        model.trained_between_stages = self.trained_between_stages
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
