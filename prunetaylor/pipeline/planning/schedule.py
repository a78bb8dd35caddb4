"""The choice of the schedule: the sparsity of each stage, and when it is reached."""

from __future__ import annotations

from dataclasses import dataclass

from prunetaylor.core.config.asked import AS_ASKED, asked, asked_stages
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.choice import Choice
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.refinement import Refinement
from prunetaylor.pruning.interfaces import Criterion
from prunetaylor.pruning.selection.schedule import gradual, pruning_steps, sparsities, usual_stages
from prunetaylor.pruning.selection.trust_region import FRESH_STAGE_FRACTION


@dataclass(frozen=True)
class Schedule:
    """Either ``levels``, the sparsity after each stage, or the share of the rest that an adaptive stage may remove."""

    levels: tuple[float, ...] = ()
    max_fraction: float | None = None  # None: the levels are fixed


def choose_schedule(
    config: Config, facts: Facts, method: str, criterion: Criterion, refinement: Refinement
) -> tuple[Schedule, Choice[object]]:
    """The stages before any training."""
    key, target, stages = "prune.stages", config.prune.sparsity, asked_stages(config.prune.stages)
    if stages is None and criterion.max_stage_fraction is not None and facts.has_data:
        fresh = config.calibration.resample and refinement.when == "stages"
        most = FRESH_STAGE_FRACTION if fresh else criterion.max_stage_fraction
        reason = f"each goes as far as predictions hold, at most {most:.0%} of what is left"
        return Schedule(max_fraction=most), Choice(key, "adaptive", reason)
    reason = AS_ASKED if stages is not None else f"{method} needs no stages"
    if stages is None:
        stages = 1 if criterion.max_stage_fraction is None else usual_stages(target)
    levels = sparsities(target, stages)
    return Schedule(tuple(levels)), Choice(key, list(levels), reason)


def choose_gradual(config: Config, epochs: int, training_samples: int) -> tuple[dict[int, float], list[Choice[object]]]:
    """The sparsity that is pruned to, by the number of training steps done before; empty where all is pruned at once.

    UsageError where the stages do not fit into the epochs.
    """
    options, stages = config.prune, asked_stages(config.prune.stages)
    if options.schedule == "one-shot" or not epochs:
        return {}, []
    each = steps_per_epoch(training_samples, config.data.batch_size, config.finetune.accumulate)
    during = asked(options.during)
    reason = AS_ASKED if during is not None else "two thirds of the epochs"
    during = epochs * 2 / 3 if during is None else during
    if during > epochs:
        raise UsageError(
            f"prune.during={during:g} is more than the {epochs} epochs of fine-tuning",
            "lower prune.during, or give more --epochs",
        )
    if isinstance(stages, list):
        levels = sparsities(options.sparsity, stages)
    else:
        levels = gradual(
            options.sparsity, options.schedule, usual_stages(options.sparsity) if stages is None else stages
        )
    if len(levels) > (room := max(1, int(during * each))):  # the first one comes before any step
        if stages is not None:
            raise UsageError(
                f"{len(levels)} stages do not fit into prune.during={during:g} epochs of {each} steps",
                "lower prune.stages, or raise prune.during",
            )
        levels = gradual(options.sparsity, options.schedule, room)
    by_step = dict(zip(pruning_steps(len(levels), during * each), levels, strict=True))
    steps = ", ".join(f"{level:.1%} at epoch {step / each:.2g}" for step, level in by_step.items())
    why = AS_ASKED if stages is not None else f"a {options.schedule} schedule"
    choices = [
        Choice("prune.stages", list(levels), why, f"schedule {options.schedule}: {steps}" if levels else ""),
        Choice("prune.during", during, reason),
    ]
    return by_step, choices


def steps_per_epoch(samples: int, batch_size: int, accumulate: int) -> int:
    """Optimizer steps of an epoch; a last batch that is not full is left out, unless it is the only one."""
    batches = samples // batch_size or (1 if samples else 0)
    return -(-batches // accumulate)
