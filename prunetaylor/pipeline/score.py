"""How far can this be pruned? One fit at the dense weights, and at every sparsity what one step from them would cost.

The step removes the lowest scores, or what the criterion's own solver does, and moves the kept weights where the
repair does, in closed form from the dense fit. Its cost is predicted by the Taylor model and measured, both on held-out
samples: where the two part, the model is no longer to be believed. Stages and repair in ``prune`` do better than any
one step.
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
from prunetaylor.pipeline.checks.sanity import glance, set_aside
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.memory_plan import make_plan
from prunetaylor.pipeline.run import hashes, training_split
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pipeline.validation import check_scoring
from prunetaylor.pruning.interfaces import ScoringContext, Solver
from prunetaylor.pruning.repair.intercepts import Intercept
from prunetaylor.pruning.repair.masks import apply_masks
from prunetaylor.pruning.selection.trust_region import agrees
from prunetaylor.taylor.memory import use_chunks
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.passes import Risk, all_outputs

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Sparsities that are looked at."""
BY_LAYER = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Those at which each layer's part is predicted by itself, a forward-mode pass a layer."""


def run(job: Job, progress: Progress) -> Scores:
    """Score ``job.network``, which is left as it was. UsageError without samples, scores or room in memory."""
    start = time.perf_counter()
    if job.samples is None:
        raise UsageError("score needs samples to measure the error on", "name them with --data")
    job.choices += check_scoring(job.config)
    set_aside(job, progress)
    plan = make_plan(job, "score")
    training, _ = training_split(job)
    assert training is not None
    outlook = _Outlook(job, job.network, training, progress)
    # Laid out as in a run, which finds the fits in the cache by what they were taken of.
    layout = use_memory_format(job, job.network.module, outlook.dense.module)
    with layout as said, use_chunks(plan.chunks), listen(part_listener(progress)):
        job.choices += said
        for choice in (*job.choices, plan.describe(), Detail(plan.details())):
            progress.note(choice)
        glance(job, progress)
        levels, layers, held_out = outlook.look()
    return Scores(
        method=job.method,
        repair=outlook.aim.repair,
        error=outlook.aim.objective.describe(),
        prunable=job.network.prunable,
        levels=levels,
        layers=layers,
        trusted_to=max((level.sparsity for level in levels if level.trusted), default=None),
        held_out=held_out,
        first_order=outlook.aim.first_order,
        skipped=job.network.skipped,
        choices=[*job.choices, *outlook.choices],
        seconds=time.perf_counter() - start,
        seed=job.config.seed,
        device=str(job.device),
        hashes=hashes(job),
        memory=plan.report,
        warnings=job.warnings,
    )


@dataclass
class _Fit:
    """What is fitted once, at the dense weights. ``holdout_model`` is the Taylor model on the held-out samples."""

    model: TaylorModel
    holdout_model: TaylorModel
    held: Risk
    dense_outputs: Tensor
    intercepts: Mapping[str, Intercept]
    scores: dict[str, Tensor]  # empty for a solver, which chooses anew at each sparsity


class _Outlook(Stages):
    """The samples, the error and the models of a run's first stage, with steps that are tried and taken back."""

    REFINES = False

    @property
    def nothing_to_prune(self) -> bool:
        return False  # each sparsity is tried, whatever was asked for

    def look(self) -> tuple[list[ScoreLevel], list[LayerScore], int]:
        """The levels, the layers at each of them, and the number of held-out samples."""
        network = self.job.network
        self.begin()
        calibration = self.calibration
        wanted = [level for level in LEVELS if removed_at(level, network.prunable) > self.removed]
        each = 1 + (len(network.layers) if self.aim.solves else 0)
        self.progress.phase("score", each * len(wanted) + 1)
        fit = self._fit(calibration)
        self.progress.step("fitted")
        levels: list[ScoreLevel] = []
        layers = [LayerScore(layer.name, tuple(layer.weight.shape), [], []) for layer in network.layers]
        for sparsity in wanted:
            try:
                levels.append(self._try(sparsity, fit, layers, levels))
            finally:
                restore(network.module, fit.holdout_model.state)
            self.progress.step(f"{sparsity:.0%}")
        return levels, layers, calibration.holdout.batches.samples

    def _fit(self, calibration: Calibration) -> _Fit:
        network = self.job.network
        held = calibration.holdout.risk(network.module, self.aim.objective)
        holdout_model = self._model(network, held, calibration)
        model = self._model(
            network, calibration.fit.risk(network.module, self.aim.objective), calibration, holdout_model
        )
        scores: dict[str, Tensor] = {}
        if not isinstance(self.criterion, Solver):
            scores = self.criterion.score(ScoringContext(network, self.masks, self.generator, model))
        if self.aim.solves:
            assert model.moments  # fitted now: the network is about to move
        return _Fit(
            model,
            holdout_model,
            held,
            calibration.holdout.dense_outputs,
            self.intercepts,
            scores,
        )

    def _try(self, sparsity: float, fit: _Fit, layers: list[LayerScore], before: list[ScoreLevel]) -> ScoreLevel:
        """Take the step, predict and measure it, and add what it is to each layer to ``layers``."""
        network = self.job.network
        removed = removed_at(sparsity, network.prunable)
        self._step(removed, fit, layers)
        moved = displacement(network.module, fit.holdout_model.state)
        predicted = fit.holdout_model.predict(moved).change(self.aim.keep_first)
        for layer, row in zip(network.layers, layers, strict=True):
            row.predicted_changes.append(self._part(layer, fit, moved) if sparsity in BY_LAYER else None)
        outputs, _ = all_outputs(network.module, fit.held.batches)
        objective, reference = self.aim.objective, fit.held.reference
        change = objective.values(outputs, reference) - objective.values(fit.dense_outputs, reference)
        measured = float(change.double().mean())
        changed = None
        if objective.task == "classification":
            changed = float((outputs.argmax(1) != fit.dense_outputs.argmax(1)).double().mean())
        # Of noise no allowance is made: what the samples cannot tell is no reason to believe.
        right = agrees(predicted, measured, 0.0, self.calibration.spread(self.job.task))
        return ScoreLevel(
            sparsity,
            removed,
            predicted,
            measured if isfinite(measured) else None,
            measured / predicted if isfinite(measured) and predicted != 0 else None,
            changed,
            right and all(level.trusted for level in before),
        )

    @torch.no_grad()
    def _step(self, removed: int, fit: _Fit, layers: list[LayerScore]) -> None:
        """Remove so many weights and move the others, in place."""
        network = self.job.network
        masks, moving = self._select_once(removed, fit)
        if self.aim.solves:
            self._compensate(fit.model.moments, masks, fit.holdout_model.state, fit.intercepts, [])
        else:
            for layer in network.layers:
                layer.weight.add_(moving[layer.parameter].to(layer.weight))
            apply_masks(network.module, masks)
        for layer, row in zip(network.layers, layers, strict=True):
            row.sparsities.append(float((~masks[layer.parameter]).double().mean()))

    def _select_once(self, removed: int, fit: _Fit) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Masks (True = keep) and the displacement without repair, by parameter name."""
        if isinstance(self.criterion, Solver):
            context = ScoringContext(self.job.network, self.masks, self.generator, fit.model)
            step = self.criterion.solve(context, removed)
            return step.masks, step.displacement
        masks = self.removal.ranked(fit.scores, self.masks, removed)
        return masks, {layer.parameter: -layer.weight * ~masks[layer.parameter] for layer in self.job.network.layers}

    def _part(self, layer: Layer, fit: _Fit, moved: Mapping[str, Tensor]) -> float:
        """What one layer's part of a displacement of the state would cost by itself."""
        intercept = fit.intercepts.get(layer.name)
        names = [layer.parameter, *([intercept.key] if intercept else [])]
        return fit.holdout_model.predict({name: moved[name] for name in names}).change(self.aim.keep_first)
