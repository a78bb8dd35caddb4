"""A stage's selection: the criterion's scores, the structure's groups, and as many of them as the plan allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prunetaylor.core.results.outcome import Histogram, removed_at
from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import Criterion, Groups, Masks, ScoringContext, Solver, Structure
from prunetaylor.pruning.masks import apply_masks
from prunetaylor.pruning.selection.budget import Budget, masks_after, select
from prunetaylor.pruning.selection.histogram import histogram
from prunetaylor.pruning.selection.schedule import Fixed
from prunetaylor.pruning.selection.trust_region import TrustRegion
from prunetaylor.taylor.model import TaylorModel


@dataclass(frozen=True)
class Selection:
    """The weights that a stage has selected.

    Attributes:
        masks: the weights that remain, by parameter name.
        sparsity: the one that was selected for.
        histogram: the scores of removed and kept weights; None for a solver.
        unrepaired: the change of the error that removal without repair is predicted to make; None if unknown.
    """

    masks: dict[str, Tensor]
    sparsity: float
    histogram: Histogram | None = None
    unrepaired: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "histogram": None if self.histogram is None else asdict(self.histogram)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Selection:
        bins = state["histogram"]
        return cls(**{**state, "histogram": None if bins is None else Histogram(**bins)})


@dataclass(frozen=True)
class Selector:
    """A selector removes weights of ``network`` in place."""

    network: Network
    criterion: Criterion
    structure: Structure
    generator: torch.Generator

    def weakest(self, masks: Masks, removed: int) -> Selection:
        """Remove the weights with the lowest scores until ``removed`` are zero, by a criterion that needs no data."""
        context = ScoringContext(self.network, masks, self.generator)
        scores = self.criterion.score(context)
        after = self._masks_within(self.structure.groups(context, scores), masks, removed)
        return self._apply(scores, masks, after, removed / self.network.prunable)

    def step(
        self,
        masks: Masks,
        plan: Fixed | TrustRegion,
        model: TaylorModel,
        holdout_model: TaylorModel,
        *,
        keep_first: bool,
        repaired: float | None,
    ) -> Selection:
        """Remove as much as ``plan`` allows by the predictions of ``holdout_model``, which no weight is fitted to.

        Args:
            masks: the weights that are not removed yet.
            repaired: the share of the change by removal alone that is expected to be left after repair; None: unknown.
        """
        removed = sum(int((~mask).sum()) for mask in masks.values())
        now = removed / self.network.prunable

        def count(sparsity: float) -> int:
            # The smallest step of a small network may be less than one weight.
            return max(removed_at(sparsity, self.network.prunable), removed + 1)

        context = ScoringContext(self.network, masks, self.generator, model)
        if isinstance(self.criterion, Solver):
            # A solver's change is known only after it has solved: its steps grow as long as they prove right.
            target = plan.propose(now, lambda _: 0.0)
            return self._solve(self.criterion, context, count(target), target)
        scores = self.criterion.score(context)
        groups = self.structure.groups(context, scores)
        unrepaired: dict[float, float] = {}

        def predict(sparsity: float) -> float:
            after = self._masks_within(groups, masks, count(sparsity))
            moves = {x.parameter: -x.weight.detach() * ~after[x.parameter] for x in self.network.layers}
            unrepaired[sparsity] = holdout_model.predict(moves).change(keep_first)
            return 0.0 if repaired is None else repaired * unrepaired[sparsity]

        target = plan.propose(now, predict)
        after = self._masks_within(groups, masks, count(target))
        return self._apply(scores, masks, after, target, unrepaired.get(target))

    def ranked(self, scores: Mapping[str, Tensor], masks: Masks, removed: int) -> dict[str, Tensor]:
        """Return the masks after which ``removed`` weights are zero, those with the lowest scores."""
        groups = self.structure.groups(ScoringContext(self.network, masks, self.generator), scores)
        return self._masks_within(groups, masks, removed)

    def _masks_within(self, groups: Sequence[Groups], masks: Masks, removed: int) -> dict[str, Tensor]:
        return masks_after(groups, select(groups, Budget(self.network.prunable - removed)), masks)

    def _solve(self, solver: Solver, context: ScoringContext, removed: int, sparsity: float) -> Selection:
        solved = solver.solve(context, removed)
        with torch.no_grad():
            for layer in self.network.layers:
                layer.weight.add_(solved.displacement[layer.parameter].to(layer.weight))
        apply_masks(self.network.module, solved.masks)
        return Selection(solved.masks, sparsity)

    def _apply(
        self,
        scores: Mapping[str, Tensor],
        before: Masks,
        after: dict[str, Tensor],
        sparsity: float,
        unrepaired: float | None = None,
    ) -> Selection:
        apply_masks(self.network.module, after)
        return Selection(after, sparsity, histogram(scores, before, after), unrepaired)
