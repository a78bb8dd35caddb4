"""The score of a network: one fit at the dense weights, and one step to each sparsity, predicted and measured.

The step removes the lowest scores, or what the criterion's own solver removes, and moves the kept weights in closed
form where the repair does so. The Taylor model predicts its cost, and the cost is measured; both on holdout samples.
Where the two disagree, the model cannot be trusted that far. ``prune`` does better than one step, by stages and repair.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from prunetaylor.core.errors import UsageError
from prunetaylor.core.pass_progress import listen
from prunetaylor.core.progress import Detail, Progress, part_listener
from prunetaylor.core.results.outcome import removed_at
from prunetaylor.core.results.scores import LayerScore, ScoreLevel, Scores
from prunetaylor.network.layer import Layer
from prunetaylor.network.state import displacement, restore
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import check_quickly, leave_out_outliers
from prunetaylor.pipeline.checks.settings import check_scoring
from prunetaylor.pipeline.choice_log import ChoiceLog
from prunetaylor.pipeline.estimates.memory import MemoryPlanner
from prunetaylor.pipeline.files.input_hashes import input_hashes
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.repair import one_step_repair
from prunetaylor.pipeline.preparation import copy_network, prepare
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.stages.repair import repair_context, repair_removal
from prunetaylor.pipeline.stages.setup import StageSetup, make_setup
from prunetaylor.pruning.interfaces import ScoringContext, Solver
from prunetaylor.pruning.masks import apply_masks
from prunetaylor.pruning.selection.trust_region import agrees
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.taylor.memory import use_chunks
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.passes import forward_own
from prunetaylor.taylor.risk import Risk

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""The sparsities that are tried."""
BY_LAYER = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Those at which each layer's share is predicted by itself, a forward-mode pass a layer."""


def run(job: Job, progress: Progress) -> Scores:
    """Score ``job.network``, which stays as it is.

    Raises:
        UsageError: there are no samples, the criterion has no scores, or the memory does not suffice.
    """
    start = time.perf_counter()
    if job.samples is None:
        raise UsageError("score needs samples to measure the error on", "name them with --data")
    notes = [*job.notes, *check_scoring(job.config)]
    for note in notes:
        progress.note(note)
    job = leave_out_outliers(job, progress)
    dense = copy_network(job)
    # The memory format is that of a run, whose fits in the cache serve here too.
    memory_format = use_memory_format(job.facts, job.network.module, dense.module)
    planner = MemoryPlanner(job, "score")
    with memory_format, listen(part_listener(progress)):
        with use_chunks(planner.plan_probe()):
            alerts = check_quickly(job, progress)
            prepared = prepare(job, dense, planner, progress, one_step=True)
        plan, memory, calibration = prepared.plan, prepared.memory, prepared.calibration
        for note in (memory.describe(), Detail(memory.details())):
            progress.note(note)
        with use_chunks(memory.divisors):
            setup = make_setup(prepared, ChoiceLog(progress), progress)
            levels, layers = _try_levels(setup, calibration, prepared.generator)
    return Scores(
        method=plan.method,
        repair=plan.repair,
        error=plan.objective.describe(),
        prunable=job.network.prunable,
        levels=levels,
        layers=layers,
        trusted_to=max((level.sparsity for level in levels if level.trusted), default=None),
        held_out=calibration.holdout.batches.samples,
        first_order=plan.first_order,
        skipped=job.network.skipped,
        choices=[*notes, *setup.choices.lines],
        seconds=time.perf_counter() - start,
        seed=job.config.seed,
        device=str(job.device),
        hashes=input_hashes(job),
        memory=memory.report,
        warnings=[*prepared.alerts, *alerts],
    )


@dataclass(frozen=True)
class _Fit:
    """The fits at the dense weights, which serve the steps to all sparsities.

    Attributes:
        context: the network, its masks and the Taylor model on the samples that repair is fitted to.
        holdout_model: the Taylor model on the holdout samples.
        holdout: the error on the holdout samples.
        dense_errors: (N,) on the holdout samples.
        scores: by parameter name; empty for a solver, which runs anew for each sparsity.
        constant_error: the error of answering all samples alike.
    """

    context: ScoringContext
    holdout_model: TaylorModel
    holdout: Risk
    dense_errors: Tensor
    scores: dict[str, Tensor]
    constant_error: float


def _try_levels(
    setup: StageSetup, calibration: Calibration, generator: torch.Generator
) -> tuple[list[ScoreLevel], list[LayerScore]]:
    """Try every sparsity beyond the present one, and put the network back each time."""
    network = setup.job.network
    sparsities = [level for level in LEVELS if removed_at(level, network.prunable) > network.zeros]
    steps_per_level = 1 + (len(network.layers) if setup.plan.removal_repair else 0)
    setup.progress.phase("score", steps_per_level * len(sparsities) + 1)
    fit = _fit(setup, calibration, generator)
    setup.progress.step("fitted")
    levels: list[ScoreLevel] = []
    layers = [LayerScore(layer.name, tuple(layer.weight.shape), [], []) for layer in network.layers]
    for sparsity in sparsities:
        try:
            masks = _step(setup, fit, removed_at(sparsity, network.prunable))
            moves = displacement(network.module, fit.holdout_model.state)
            levels.append(_measure(setup, fit, moves, sparsity, trusted=all(level.trusted for level in levels)))
            for layer, row in zip(network.layers, layers, strict=True):
                row.sparsities.append(float((~masks[layer.parameter]).double().mean()))
                row.predicted_changes.append(_predict_layer(setup, fit, layer, moves) if sparsity in BY_LAYER else None)
        finally:
            restore(network.module, fit.holdout_model.state)
        setup.progress.step(f"{sparsity:.0%}")
    return levels, layers


def _fit(setup: StageSetup, calibration: Calibration, generator: torch.Generator) -> _Fit:
    network, objective, damping = setup.job.network, setup.plan.objective, setup.job.config.prune.damping
    holdout = calibration.holdout.risk(network.module, objective)
    holdout_model = setup.taylor_model(network, holdout, calibration, damping=damping, stage=1)
    risk = calibration.fit.risk(network.module, objective)
    model = setup.taylor_model(network, risk, calibration, damping=damping, stage=1, holdout_model=holdout_model)
    context, scores = ScoringContext(network, network.masks(), generator, model), {}
    if not isinstance(setup.criterion, Solver):
        scores = setup.criterion.score(context)
    repair = one_step_repair(setup.plan.repair)
    if repair is not None and repair.needs_moments:
        assert model.moments  # fitted now, before the network moves
    errors = _compare(holdout)[0]
    return _Fit(context, holdout_model, holdout, errors, scores, calibration.spread(setup.job.task))


@torch.no_grad()
def _step(setup: StageSetup, fit: _Fit, removed: int) -> dict[str, Tensor]:
    """Remove so many weights and move the others, in place; return the masks."""
    network = setup.job.network
    if isinstance(setup.criterion, Solver):
        step = setup.criterion.solve(fit.context, removed)
        masks, moves = step.masks, step.displacement
    else:
        masks = setup.selector.ranked(fit.scores, fit.context.masks, removed)
        moves = {layer.parameter: -layer.weight * ~masks[layer.parameter] for layer in network.layers}
    repair = one_step_repair(setup.plan.repair)
    if repair is not None:
        model = fit.context.model
        context = repair_context(
            setup,
            masks,
            model.risk.batches,
            damping=model.damping,
            before=fit.holdout_model.state,
            moments=model.moments if repair.needs_moments else {},
        )
        repair_removal(setup, repair, context)
        return masks
    for layer in network.layers:
        layer.weight.add_(moves[layer.parameter].to(layer.weight))
    apply_masks(network.module, masks)
    return masks


def _measure(
    setup: StageSetup, fit: _Fit, moves: Mapping[str, Tensor], sparsity: float, *, trusted: bool
) -> ScoreLevel:
    """Predict and measure the change by ``moves``, which the network has made; ``trusted``: all smaller steps are."""
    predicted = fit.holdout_model.predict(moves).change(setup.plan.keep_first_order)
    errors, changed = _compare(fit.holdout)
    measured = float((errors - fit.dense_errors).double().mean())
    # No allowance for noise: a change that the samples cannot resolve is no reason to trust the model.
    right = agrees(predicted, measured, 0.0, fit.constant_error)
    return ScoreLevel(
        sparsity,
        removed_at(sparsity, setup.job.network.prunable),
        predicted,
        measured if isfinite(measured) else None,
        measured / predicted if isfinite(measured) and predicted != 0 else None,
        float(changed.double().mean()) if setup.job.task == "classification" else None,
        right and trusted,
    )


def _compare(risk: Risk) -> tuple[Tensor, Tensor]:
    """Return the error of each sample (N,), and for classes the share of its predictions that the dense network does
    not make.
    """
    assert risk.dense is not None
    errors, changed = [], []
    for batch in forward_own(risk.module, risk.batches):
        assert batch.outputs is not None
        outputs, dense = batch.outputs.float(), risk.dense.of(batch.start, batch.x)
        errors.append(risk.objective.values(outputs, risk.reference(batch.start, batch.x, batch.targets)))
        if risk.objective.task == "classification":
            changed.append((outputs.argmax(-1) != dense.argmax(-1)).float().view(len(outputs), -1).mean(1))
    none = [torch.empty(0, device=risk.batches.device)]
    return gather_rows(torch.cat(errors or none)), gather_rows(torch.cat(changed or none))


def _predict_layer(setup: StageSetup, fit: _Fit, layer: Layer, moves: Mapping[str, Tensor]) -> float:
    """Predict the change if only this layer moved."""
    intercept = setup.intercepts.get(layer.name)
    names = [layer.parameter, *([intercept.key] if intercept else [])]
    return fit.holdout_model.predict({name: moves[name] for name in names}).change(setup.plan.keep_first_order)
