"""One stage's step: select and remove weights, repair the others, predict and measure the change of the error.

Both changes are of the displacement by masks and the repair of the removal, before anything that follows acceptance.
They are taken on holdout samples: on the samples that repair is fitted to it looks better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.network.state import displacement, restore
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.stages.repair import repair_context, repair_removal
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.pipeline.stages.state import PruningState, StageProgress
from prunetaylor.pruning.selection.selector import Selection
from prunetaylor.runtime.processes.exchange import copy_from_main
from prunetaylor.taylor.layer_scores import LayerScores
from prunetaylor.taylor.memory import release
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.risk import Risk


@dataclass(frozen=True)
class Change:
    """A change of the mean error on holdout samples."""

    predicted: float  # by the Taylor model
    measured: float  # infinite where the network's outputs are not finite
    noise: float  # standard error of the measured change


@dataclass(frozen=True)
class StepOutcome:
    """The result of a step.

    Attributes:
        selection: the masks, the sparsity that was proposed, and what removal alone was predicted to change.
        start: the sparsity before the step.
        sparsity: the sparsity after it; of a small network it may be more than was proposed.
        removed: the number of weights that the step removed.
        error: the mean error before the step.
        change: the error's change by the step.
        damping: of the systems that were solved, relative to their mean diagonal.
    """

    selection: Selection
    start: float
    sparsity: float
    removed: int
    error: float
    change: Change
    damping: float


def run_step(
    setup: StageSetup, state: PruningState, calibration: Calibration, checkpoint_point: Callable[[], None]
) -> StepOutcome:
    """Move ``setup.job.network`` to where the stage of ``state`` takes it.

    The control of ``state`` proposes how far. Nothing in ``state`` changes but the progress of the stage, which a
    resumed run skips.
    """
    network, stage, progress = setup.job.network, state.start_stage(), setup.progress
    assert state.control is not None
    damping = state.control.damping
    holdout = calibration.holdout.risk(network.module, setup.plan.objective)
    holdout_model = setup.taylor_model(network, holdout, calibration, damping=damping, stage=state.stage_number)
    errors = holdout.values()
    selection = _select_and_repair(setup, state, stage, calibration, holdout_model, checkpoint_point)
    measured, noise = measure_change(holdout, errors)
    progress.step("measured")
    predicted = predict_change(holdout_model, network, setup.plan.keep_first_order)
    progress.step("predicted")
    removed = sum(int((~mask).sum()) for mask in selection.masks.values())
    return StepOutcome(
        selection=selection,
        start=state.removed / network.prunable,
        sparsity=reached(selection.sparsity, removed, network.prunable),
        removed=removed - state.removed,
        error=float(errors.mean()),
        change=Change(predicted, measured, noise),
        damping=damping,
    )


def change_since_dense(setup: StageSetup, state: PruningState, calibration: Calibration, damping: float) -> Change:
    """Predict and measure the change by everything that moved since the dense network."""
    objective = setup.plan.objective
    dense = calibration.holdout.risk(setup.dense.module, objective)
    model = setup.taylor_model(setup.dense, dense, calibration, damping=damping, stage=state.stage_number)
    moved = displacement(setup.job.network.module, setup.dense_state)
    predicted = model.predict(moved).change(setup.plan.keep_first_order)
    return Change(
        predicted, *measure_change(calibration.holdout.risk(setup.job.network.module, objective), dense.values())
    )


def measure_change(holdout: Risk, before: Tensor) -> tuple[float, float]:
    """Return the mean change of the error since ``before`` (N,), and its standard error.

    The change is infinite where the network's outputs are not finite.
    """
    try:
        changes = holdout.values() - before
    except NumericsError:
        return float("inf"), 0.0
    change = float(changes.mean())
    # One sample has no spread: all of its change may be chance.
    return change, float(changes.std() / len(changes) ** 0.5) if len(changes) > 1 else abs(change)


def predict_change(holdout_model: TaylorModel, network: Network, keep_first: bool) -> float:
    """Predict the change of the error from the model's point to the network's present state."""
    return holdout_model.predict(displacement(network.module, holdout_model.state)).change(keep_first)


def reached(proposed: float, removed: int, prunable: int) -> float:
    """Return the sparsity as it was proposed, unless more weights are gone than it says."""
    return proposed if removed == round(proposed * prunable) else removed / prunable


def synchronise(network: Network, masks: Mapping[str, Tensor]) -> None:
    """Give all processes the main one's weights and masks, should their machines round differently."""
    tensors = network.module.state_dict().values()
    copy_from_main([*(t for t in tensors if isinstance(t, Tensor)), *masks.values()])


def _repair_target(setup: StageSetup, state: PruningState) -> Network:
    """Return the network whose outputs repair restores: the dense one, unless the present one has become better.

    It has where it is refined towards the labels, or trained.
    """
    refined = setup.plan.refinement.when == "stages" and setup.plan.objective.kind == "task"
    return setup.job.network.copy() if refined or state.train_steps else setup.dense


def _select_and_repair(
    setup: StageSetup,
    state: PruningState,
    stage: StageProgress,
    calibration: Calibration,
    holdout_model: TaylorModel,
    checkpoint_point: Callable[[], None],
) -> Selection:
    """Select, remove and repair; a resumed stage skips the parts that it has already."""
    network, plan, damping = setup.job.network, setup.plan, holdout_model.damping
    target = _repair_target(setup, state)
    model = setup.taylor_model(
        network,
        calibration.fit.risk(network.module, plan.objective),
        calibration,
        damping=damping,
        stage=state.stage_number,
        holdout_model=holdout_model,
        layer_scores=LayerScores(stage.layer_scores, checkpoint_point),
    )
    repair = plan.removal_repair
    # Fitted before the removal, which moves the network in place.
    moments = model.moments if repair is not None and repair.needs_moments else {}
    selection = _select(setup, state, stage, model, holdout_model)
    checkpoint_point()
    setup.progress.step("selected")
    del model  # free the curvature before repair and the next phases need the memory
    release()

    def on_repaired(layer: str) -> None:
        stage.add_repaired(layer)
        checkpoint_point()

    if repair is not None:
        context = repair_context(
            setup,
            selection.masks,
            calibration.fit.batches,
            damping=damping,
            target=target,
            before=stage.weights,
            moments=moments,
            repaired=tuple(stage.repaired),
        )
        repair_removal(setup, repair, context, on_repaired)
    return selection


def _select(
    setup: StageSetup, state: PruningState, stage: StageProgress, model: TaylorModel, holdout_model: TaylorModel
) -> Selection:
    """Select and remove weights. A resumed stage has its selection; the network returns to where it was."""
    if stage.selection is None:
        assert state.control is not None
        selection = setup.selector.step(
            state.masks,
            state.control,
            model,
            holdout_model,
            keep_first=setup.plan.keep_first_order,
            repaired=state.repair_ratio,
        )
        stage.select(selection)
    else:
        selection = stage.selection
        if stage.restored is not None:
            restore(setup.job.network.module, stage.restored)
    synchronise(setup.job.network, selection.masks)
    return selection
