"""Settings that contradict one another are refused, and what does nothing is named, before any work."""

from __future__ import annotations

from collections.abc import Iterable

from prunetaylor.core.config.schema import CalibrationSection, Config, FinetuneSection, PruneSection
from prunetaylor.core.errors import UsageError
from prunetaylor.pruning.interfaces import Criterion
from prunetaylor.pruning.training.distillation import distillation_share
from prunetaylor.taylor.objective import Task

_OF_FILES = {
    "gate.": "look at outcome.drop",
    "model.": "pass the network itself",
    "data.source": "pass the samples themselves",
    "data.root": "pass the samples themselves",
    "data.download": "pass the samples themselves",
    "data.size": "resize the samples that are passed",
    "data.normalize": "pass normalize=",
    "data.augment": "pass augment=",
    "output": "outcome.save(folder) writes a run's folder",
    "checkpoint.": "only `prunetaylor prune` can resume a run",
    "track": "pass progress=, whose measured() receives all numbers",
}
"""Settings without effect on ``prunetaylor.prune``, by how they begin, and what there is instead."""

_UNDAMPED = ("none", "batch-norm")
"""Repairs that solve for nothing."""


def check_from_python(keys: Iterable[str], *, named: bool = False) -> None:
    """UsageError for settings of files, where networks and samples are given and nothing is written.

    ``named``: the network and the samples are named, as on a command line.
    """
    for key in keys:
        for start, instead in _OF_FILES.items():
            if key.startswith(start) and not (named and start.startswith(("model.", "data."))):
                raise UsageError(f"{key} concerns files, and no file is read or written here", instead)


def check_pruning(config: Config, criterion: Criterion, *, data: bool) -> list[str]:
    """Lines that name settings of no effect.

    UsageError for repair or refinement without ``data``.
    """
    options, usual, said = config.prune, PruneSection(), []
    for key, given in (("refine", options.refine), ("repair", options.repair)):
        if not data and given not in ("auto", "none"):
            raise UsageError(f"prune.{key}={given} needs samples", f"name them with --data, or set prune.{key}=none")
    idle = []
    if options.refine == "none" or (options.refine == "auto" and criterion.default_repair != "least-squares"):
        idle += ["refine_steps", "refine_by"]
    if (
        not criterion.uses_damping
        and (criterion.default_repair if options.repair == "auto" else options.repair) in _UNDAMPED
    ):
        idle.append("damping")
    idle = [key for key in idle if getattr(options, key) != getattr(usual, key)]
    if idle:
        said.append(f"no effect: {', '.join(f'prune.{key}' for key in idle)}")
    drawn = CalibrationSection()
    unused = [f"calibration.{key}" for key, value in config.calibration if value != getattr(drawn, key)]
    if unused and not data:
        said.append(f"no effect: {', '.join(unused)}, because there are no samples")
    return said


def check_scoring(config: Config) -> list[str]:
    """A line that names settings of no effect on scores."""
    options, usual = config.prune, PruneSection()
    keys = ("stages", "schedule", "during", "refine", "refine_steps", "refine_by")
    idle = [f"prune.{key}" for key in keys if getattr(options, key) != getattr(usual, key)]
    return [f"no effect: {', '.join(idle)}, because each row is one step from the dense weights"] if idle else []


def check_finetuning(config: Config, epochs: int, task: Task, *, labelled: bool) -> list[str]:
    """Lines that name settings of no effect.

    ``labelled``: whether the training samples are; ``task``: what the network's outputs are.

    UsageError for settings that cannot both be meant.
    """
    options = config.finetune
    gradual = {"finetune.rewind": options.rewind, "prune.during": config.prune.during != "auto"}
    if config.prune.schedule == "one-shot" and any(gradual.values()):
        key = next(key for key, meant in gradual.items() if meant)
        raise UsageError(
            f"{key} applies to gradual schedules, and prune.schedule is one-shot",
            f"add prune.schedule=cubic, or leave {key} at its default",
        )
    usual = FinetuneSection()
    if options.optimizer != "sgd" and options.momentum != usual.momentum:
        raise UsageError(
            f"finetune.momentum applies to sgd, and finetune.optimizer is {options.optimizer}",
            "leave one of them at its default",
        )
    if not epochs:
        changed = [f"finetune.{key}" for key, value in options if key != "epochs" and value != getattr(usual, key)]
        return [f"no effect: {', '.join(changed)} (fine-tuning is off; set --epochs)"] if changed else []
    if options.label_smoothing:
        if not labelled or distillation_share(options.distill) == 1:
            why = "there are none" if not labelled else "finetune.distill.weight=1 uses none"
            raise UsageError(
                f"finetune.label_smoothing smooths labels, and {why}", "leave finetune.label_smoothing at 0"
            )
        if task != "classification":
            raise UsageError(
                "finetune.label_smoothing needs classes, one for each sample", "leave it at 0 with this loss"
            )
    if options.distill.temperature != usual.distill.temperature:
        taught = not labelled or distillation_share(options.distill) > 0
        if not taught or task == "regression":
            why = (
                "outputs that are values are not softened" if taught else "finetune.distill.weight=0 learns from labels"
            )
            return [f"no effect: finetune.distill.temperature, as {why}"]
    return []
