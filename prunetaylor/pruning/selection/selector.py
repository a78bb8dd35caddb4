"""Which weights a stage removes: the weakest by the criterion, in a structure's groups, as many as its plan allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prunetaylor.core.results.outcome import Histogram, removed_at
from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import Criterion, ScoringContext, Solver, Structure
from prunetaylor.pruning.repair.masks import apply_masks
from prunetaylor.pruning.selection.histogram import histogram
from prunetaylor.pruning.selection.rank import keep_best
from prunetaylor.pruning.selection.schedule import Fixed
from prunetaylor.pruning.selection.trust_region import TrustRegion
from prunetaylor.taylor.model import TaylorModel


@dataclass(frozen=True)
class Selection:
    """``masks`` after it (True = keep), by parameter name, and the sparsity it went to.

    ``alone`` is the change of the error that removal without any repair is predicted to make, where that was asked.
    """

    masks: dict[str, Tensor]
    sparsity: float
    histogram: Histogram | None = None
    alone: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "histogram": None if self.histogram is None else asdict(self.histogram)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Selection:
        drawn = state["histogram"]
        return cls(**{**state, "histogram": None if drawn is None else Histogram(**drawn)})


@dataclass(frozen=True)
class Selector:
    """Removes weights of ``network`` in place."""

    network: Network
    criterion: Criterion
    structure: Structure
    generator: torch.Generator

    def weakest(self, masks: Mapping[str, Tensor], removed: int) -> Selection:
        """By a criterion that needs no data: until ``removed`` weights are gone."""
        scores = self.criterion.score(ScoringContext(self.network, masks, self.generator))
        return self._apply(scores, masks, self.ranked(scores, masks, removed), removed / self.network.prunable)

    def step(
        self,
        masks: Mapping[str, Tensor],
        plan: Fixed | TrustRegion,
        model: TaylorModel,
        holdout_model: TaylorModel,
        *,
        keep_first: bool,
        repaired: float | None,
    ) -> Selection:
        """Remove as much as ``plan`` allows by the predictions of ``holdout_model``, which no weight is fitted to.

        ``repaired``: what repair is expected to leave of the change that removal alone makes; None: nobody knows yet.
        """
        gone = sum(int((~mask).sum()) for mask in masks.values())
        now = gone / self.network.prunable

        def count(sparsity: float) -> int:
            # The smallest step of a small network may be less than one weight.
            return max(removed_at(sparsity, self.network.prunable), gone + 1)

        context = ScoringContext(self.network, masks, self.generator, model)
        if isinstance(self.criterion, Solver):
            # What a solver would do is known only once it has: its steps are as long as they have proved right.
            target = plan.propose(now, lambda _: 0.0)
            solved = self.criterion.solve(context, count(target))
            with torch.no_grad():
                for layer in self.network.layers:
                    layer.weight.add_(solved.displacement[layer.parameter].to(layer.weight))
            apply_masks(self.network.module, solved.masks)
            return Selection(solved.masks, target)

        scores = self.criterion.score(context)
        alone: dict[float, float] = {}

        def change(sparsity: float) -> float:
            after = self.ranked(scores, masks, count(sparsity))
            moves = {x.parameter: -x.weight.detach() * ~after[x.parameter] for x in self.network.layers}
            alone[sparsity] = holdout_model.predict(moves).change(keep_first)
            return 0.0 if repaired is None else repaired * alone[sparsity]

        target = plan.propose(now, change)
        return self._apply(scores, masks, self.ranked(scores, masks, count(target)), target, alone.get(target))

    def ranked(self, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], removed: int) -> dict[str, Tensor]:
        """The masks after which ``removed`` weights are gone, the best by score left."""
        layers, structure = self.network.layers, self.structure
        kept = keep_best(
            [structure.groups(layer, scores[layer.parameter]) for layer in layers],
            [~masks[layer.parameter].flatten() for layer in layers],
            removed,
            [layer.name for layer in layers],
        )
        return {x.parameter: structure.mask(x, keep) for x, keep in zip(layers, kept, strict=True)}

    def _apply(
        self,
        scores: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: dict[str, Tensor],
        sparsity: float,
        alone: float | None = None,
    ) -> Selection:
        apply_masks(self.network.module, after)
        return Selection(after, sparsity, histogram(scores, before, after), alone)
