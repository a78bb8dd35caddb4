"""Gradual pruning: stages between steps of training."""

from __future__ import annotations

from collections.abc import Mapping

from prunetaylor.core.errors import UsageError
from prunetaylor.data.samples import Batches
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pruning.selection.schedule import gradual, pruning_steps, sparsities
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


def gradual_levels(job: Job, batches: Batches) -> dict[int, float]:
    """The sparsity that is pruned to, by the number of steps done before; empty where all is pruned beforehand.

    UsageError where the stages do not fit into the epochs.
    """
    config, each = job.config.prune, -(-len(batches) // job.config.finetune.accumulate)
    if config.schedule == "one-shot":
        return {}
    during = config.during if config.during != "auto" else job.epochs * 2 / 3
    if during > job.epochs:
        raise UsageError(
            f"prune.during={during:g} is more than the {job.epochs} epochs of fine-tuning",
            "lower prune.during, or give more --epochs",
        )
    if isinstance(config.stages, list):
        levels = sparsities(config.sparsity, config.stages, True)
    else:
        usual = len(sparsities(config.sparsity, "auto", True))
        levels = gradual(config.sparsity, config.schedule, usual if config.stages == "auto" else config.stages)
    if len(levels) > (room := max(1, int(during * each))):  # the first one comes before any step
        if config.stages != "auto":
            raise UsageError(
                f"{len(levels)} stages do not fit into prune.during={during:g} epochs of {each} steps",
                "lower prune.stages, or raise prune.during",
            )
        levels = gradual(config.sparsity, config.schedule, room)
    return dict(zip(pruning_steps(len(levels), during * each), levels, strict=True))
