"""The task of a network, from its outputs and the targets; the targets are checked against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.core.text import first_line
from prunetaylor.data.samples import Check, Checked, Inputs, Samples, Split, check_targets
from prunetaylor.measure.metric import Predictions
from prunetaylor.measure.metrics import load_metric
from prunetaylor.network.state import evaluating
from prunetaylor.pipeline.planning.task import TargetFacts, choose_task
from prunetaylor.runtime.user_code import load_object
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.objective import Task, loss_of
from prunetaylor.taylor.passes import compute_outputs

_SOME_TARGETS = 256
"""Targets whose values tell what they are."""


def find_task(config: Config, module: nn.Module, samples: Samples, x: Inputs, y: Tensor) -> tuple[Task, Samples]:
    """Return the task (or the user's loss), and the samples with their targets checked against it and the metric.

    ``x``, ``y``: a batch of one test sample, ready for the network.
    """
    with evaluating(module), torch.no_grad():
        outputs = _first_outputs(module, x)
    task = (
        _custom_loss(config.loss, samples) if ":" in config.loss else choose_task(config, _facts(outputs, y, samples))
    )
    if task == "classification":
        classes = outputs.shape[1]
        samples = _checked(samples, lambda targets, name, at: check_targets(targets, classes, name, at))
    elif task == "binary":
        samples = _checked(samples, _check_binary)
    else:
        loss_of(task).values(outputs, y)  # tells what is wrong with a function of the user's
    load_metric(config.metric).records(Predictions(outputs, y, outputs, task))  # tells what does not fit
    return task, samples


def _custom_loss(spec: str, samples: Samples) -> CustomLoss:
    if not samples.train.labelled:
        raise UsageError(
            f"the training samples have no labels, and loss={spec} does not define what the dense network answers",
            "use loss=cross-entropy, bce or mse",
        )
    return CustomLoss.from_function(spec, load_object(spec))


def _facts(outputs: Tensor, y: Tensor, samples: Samples) -> TargetFacts:
    """For outputs (1, K) and the targets y of the same sample."""
    same_size = y.numel() == outputs.numel()
    return TargetFacts(
        outputs=outputs.shape[1],
        shape=tuple(y.shape[1:]),
        dtype=str(y.dtype),
        floating=y.is_floating_point(),
        class_ids=not y.is_floating_point() and y.dim() == 1,
        same_size=same_size,
        zeros_and_ones=same_size and _zeros_and_ones(samples.test),
    )


def _zeros_and_ones(split: Split) -> bool:
    """Return whether the first targets are all 0 or 1."""
    _, y = split.fetch(range(min(len(split), _SOME_TARGETS)))
    return bool(((y == 0) | (y == 1)).all())


def _check_binary(targets: Tensor, name: str, indices: Sequence[int] | None) -> None:
    wrong = ((targets != 0) & (targets != 1)).nonzero()
    if len(wrong):
        at = wrong[0].tolist()
        value, sample = float(targets[tuple(at)]), at[0] if indices is None else indices[at[0]]
        raise DataError(
            f"{name}: {value:g} of sample {sample} is neither 0 nor 1",
            "loss=bce needs targets of 0 or 1",
        )


def _checked(samples: Samples, check: Check) -> Samples:
    """Return the samples with targets that are checked at once if they are in memory, otherwise batch by batch."""

    def one(split: Split, name: str) -> Split:
        targets = split.targets()
        if not split.labelled:
            return split
        if targets is None:
            return Checked(split, check, name)
        check(targets, name, None)
        return split

    validation = samples.validation
    return replace(
        samples,
        train=one(samples.train, "training targets"),
        test=one(samples.test, "test targets"),
        validation=None if validation is None else one(validation, "validation targets"),
    )


def _first_outputs(module: nn.Module, x: Inputs) -> Tensor:
    try:
        return compute_outputs(module, x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        text = first_line(error)
        raise DataError(
            f"the network does not take such inputs, {x.describe()}: {text}",
            "is this the data that the network was trained on? See --data and data.size",
        ) from error
