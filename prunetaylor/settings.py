"""Settings of fine-tuning that contradict one another are refused, and what does nothing is named, before any work."""

from __future__ import annotations

from prunetaylor.config.schema import Config, FinetuneSection
from prunetaylor.errors import UsageError
from prunetaylor.objective import Kind
from prunetaylor.repair.distill import distillation_share


def check_finetuning(config: Config, epochs: int, kind: Kind, *, labelled: bool) -> list[str]:
    """Lines that name settings of no effect.

    ``labelled``: whether the training samples are; ``kind``: what the network's outputs are.

    UsageError for settings that cannot both be meant.
    """
    options = config.finetune
    gradual = {"finetune.rewind": options.rewind, "prune.during": config.prune.during != "auto"}
    if config.prune.schedule == "one-shot" and any(gradual.values()):
        key = next(key for key, meant in gradual.items() if meant)
        raise UsageError(
            f"{key} is about the steps of a gradual schedule, and prune.schedule is one-shot",
            f"add prune.schedule=cubic, or leave {key} at its default",
        )
    usual = FinetuneSection()
    if options.optimizer != "sgd" and options.momentum != usual.momentum:
        raise UsageError(
            f"finetune.momentum is of sgd, and finetune.optimizer is {options.optimizer}",
            "leave one of them at its default",
        )
    if not epochs:
        changed = [f"finetune.{key}" for key, value in options if key != "epochs" and value != getattr(usual, key)]
        return [f"fine-tuning: none, so that {', '.join(changed)} has no effect; give --epochs"] if changed else []
    if options.label_smoothing:
        if not labelled or distillation_share(options.distill) == 1:
            why = "there are none" if not labelled else "finetune.distill.weight=1 uses none"
            raise UsageError(
                f"finetune.label_smoothing smooths labels, and {why}", "leave finetune.label_smoothing at 0"
            )
        if kind != "classes":
            raise UsageError(
                "finetune.label_smoothing needs classes, one for each sample", "leave it at 0 with this loss"
            )
    return []
