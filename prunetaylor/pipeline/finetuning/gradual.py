"""Gradual pruning: stages between steps of training."""

from __future__ import annotations

from collections.abc import Mapping

from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pruning.training.train import Training


class GradualPruning:
    """Prunes to ``levels``: the sparsity by the number of training steps before it; empty if nothing is gradual."""

    def __init__(self, stages: Stages, levels: Mapping[int, float]) -> None:
        self._stages, self.levels = stages, levels

    def prune_at(self, step: int, training: Training | None) -> bool:
        """Prune if a stage comes after ``step`` steps of training; return whether one did."""
        if step not in self.levels:
            return False
        if training is not None:
            training.check()  # values that are not finite now come from training, not from pruning
        self._stages.prune_to(self.levels[step])
        if training is not None:
            training.prune(self._stages.state.masks)
        return True
