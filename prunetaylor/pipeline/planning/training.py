"""The choices of fine-tuning: validation samples, learning rate, precision, distillation."""

from __future__ import annotations

from typing import cast

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config, FinetuneSection
from prunetaylor.core.errors import DataError
from prunetaylor.core.results.choice import Choice
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pruning.training.settings import DistillSettings, Precision, TrainingSettings

MAX_VALIDATION = 2000
"""Samples to choose between epochs by, at most: where two epochs differ in a twentieth of the answers, the standard
error of the difference of their accuracies is half a point. The rest is left to train on."""
USUAL_LR = {"sgd": 0.05, "adamw": 0.001}
USUAL_DISTILLATION = 0.9
"""Mostly the dense network's outputs, which say more than a label does."""


def choose_validation(config: Config, facts: Facts, epochs: int) -> Choice[int] | None:
    """Return the number of training samples that choose between epochs, or None if none are needed.

    Raises DataError if there are too few.
    """
    if not facts.training_samples or not epochs or facts.has_validation:
        return None
    train, share = facts.training_samples, asked(config.data.validation)
    count = min(round(train / 10), MAX_VALIDATION) if share is None else round(share * train)
    if count < 1 or train - count < 2:
        raise DataError(
            f"{train} training samples are too few to hold some out for validation", "use --epochs 0, or more samples"
        )
    reason = AS_ASKED if share is not None else f"a tenth of the training samples, at most {MAX_VALIDATION:,}"
    line = f"validation: {count} of the {train} training samples, held out of calibration and fine-tuning"
    return Choice("data.validation", count, reason, line)


def choose_distillation(options: FinetuneSection, labelled: bool) -> Choice[float]:
    """Return the share of the dense network's outputs in the training loss."""
    key, weight = "finetune.distill.weight", asked(options.distill.weight)
    if not labelled:
        reason = "there are no labels; teacher: the dense network"
        return Choice(key, 1.0, reason, f"distillation: weight 1 ({reason})")
    if weight is not None:
        return Choice(key, weight, AS_ASKED)
    weight, reason = USUAL_DISTILLATION, "teacher: the dense network"
    return Choice(key, weight, reason, f"distillation: weight {weight:g} ({reason})")


def choose_training(config: Config, facts: Facts, epochs: int) -> tuple[TrainingSettings, list[Choice[object]]]:
    """Return the settings of fine-tuning, and the choices that were open."""
    options = config.finetune
    lr, precision = _choose_lr(options), _choose_precision(options, facts)
    distillation = choose_distillation(options, facts.labelled)
    distill = DistillSettings(**{**options.distill.model_dump(), "weight": distillation.value})
    values = {"epochs": epochs, "lr": lr.value, "precision": precision.value, "distill": distill}
    return TrainingSettings(**{**options.model_dump(), **values}), [distillation, lr, precision]


def _choose_lr(options: FinetuneSection) -> Choice[float]:
    key, lr = "finetune.lr", asked(options.lr)
    lr, reason = (USUAL_LR[options.optimizer], f"the default of {options.optimizer}") if lr is None else (lr, AS_ASKED)
    return Choice(key, lr, reason, f"learning rate {lr:g}: {reason}")


def _choose_precision(options: FinetuneSection, facts: Facts) -> Choice[Precision]:
    requested, half = cast(Precision | None, asked(options.precision)), facts.half_precision
    if requested is not None:
        precision, reason = requested, AS_ASKED
    elif half is None:
        precision, reason = "float32", f"mixed precision gains nothing on {facts.device}"
    else:
        precision, reason = half, "the GPU computes in bf16" if half == "bf16" else "the GPU does not compute in bf16"
    shown = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    return Choice("finetune.precision", precision, reason, f"precision {shown}: {reason}")
