"""The task of a network, from what it returns and the targets; the targets are checked against it and arranged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.core.results.choice import Choice
from prunetaylor.core.text import first_line
from prunetaylor.data.samples import Batches, Inputs, Samples, Split, TargetChange, check_targets, with_changed_targets
from prunetaylor.measure.metric import Predictions
from prunetaylor.measure.metrics import load_metric
from prunetaylor.pipeline.planning.task import (
    Meaning,
    OutputFacts,
    TargetFacts,
    choose_metric,
    choose_output,
    distinguish_labels,
    explain_loss,
    explain_output,
    interpret,
    refuse_targets,
)
from prunetaylor.runtime.user_code import load_object
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.objective import IGNORED, Task
from prunetaylor.taylor.outputs import Axes, OutputForm, arrange, set_output_form, tensors_in
from prunetaylor.taylor.passes import all_outputs, call_network, first_batch, forward_one

_FEW = 2
"""Samples that show what the network returns: with one, a network may drop the dimension of the samples."""
_SOME_TARGETS = 256
"""Targets whose values tell what they are."""
_ROUNDING = 1e-4
"""The most that the sum of shares may differ from one."""
_VOID = 255
"""The id of pixels without a class in many data sets (Pascal VOC, Cityscapes); they do not count."""


@dataclass(frozen=True)
class TaskChoice:
    """The task, why it has its loss, the samples with arranged targets, and further choices."""

    task: Task
    reason: str
    metric: str
    samples: Samples
    choices: tuple[Choice[object], ...]


def find_task(config: Config, module: nn.Module, samples: Samples, batches: Callable[[Split], Batches]) -> TaskChoice:
    """Return the task of a network on these samples, and let ``module`` carry the form of its outputs.

    ``batches`` gives a split as batches that are ready for the network.
    """
    few = samples.test.subset(range(min(_FEW, len(samples.test))))
    x, y = first_batch(batches(few))
    outputs = _output_facts(_result(module, x), len(y))
    split = next((one for one in (samples.test, samples.train) if one.labelled), None)
    targets = None if split is None else _target_facts(split, outputs)
    chosen, reason = choose_output(config, outputs, targets)
    form = OutputForm(chosen.path or None)
    choices = [explain_output(form, reason)] if reason else []
    if ":" in config.loss:
        meaning = Meaning(_custom_loss(config.loss, samples), "own")
    else:
        meaning = interpret(config, chosen.shape, targets) or refuse_targets(config, outputs, chosen, targets)
    set_output_form(module, replace(form, axes=meaning.axes))
    if meaning.task == "binary" and split is not None:
        meaning = distinguish_labels(config, meaning, _lie_near(module, batches(_some(split))))
    if not isinstance(meaning.task, str) and split is not None:
        _try_loss(meaning.task, module, batches(split.subset(range(min(_FEW, len(split))))))
    width = arrange(torch.empty(1, *chosen.shape), meaning.axes).shape[-1]
    ids = targets is not None and not targets.floating and not targets.shape and width > 1
    if targets is not None:
        samples = with_changed_targets(samples, _arrangement(meaning, targets, width))
    labelled, follow = samples.test.labelled, meaning.axes == "positions" and _follow_in_inputs(x, y)
    metric = choose_metric(config, meaning, width, labelled=labelled, classes=ids, next_tokens=follow)
    _try_metric(metric.value, meaning.task, module, batches(samples.test.subset(range(len(few)))))
    return TaskChoice(meaning.task, explain_loss(config, meaning, targets), metric.value, samples, (*choices, metric))


def _follow_in_inputs(inputs: Inputs, targets: Tensor) -> bool:
    """Return whether each target is the token that follows in the inputs, as a language model is trained."""
    for x in inputs.tensors():
        if not x.is_floating_point() and x.shape == targets.shape and x.dim() == 2 and x.shape[1] > 1:
            return bool(((targets[:, :-1] == x[:, 1:]) | (targets[:, :-1] == IGNORED)).all())
    return False


def _try_metric(name: str, task: Task, module: nn.Module, batches: Batches) -> None:
    """Compute the metric of a few samples, which says if outputs or targets do not have it."""
    x, targets = first_batch(batches)
    outputs = forward_one(module, x).float()
    load_metric(name).records(Predictions(outputs, targets if batches.split.labelled else None, outputs, task))


def _result(module: nn.Module, x: Inputs) -> object:
    try:
        return call_network(module, x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"the network does not take such inputs, {x.describe()}: {first_line(error)}",
            "is this the data that the network was trained on? See --data and data.size",
        ) from error


def _output_facts(result: object, samples: int) -> list[OutputFacts]:
    """Return the tensors of a result that have a row for each sample.

    Raises DataError: there is none.
    """
    tensors = tensors_in(result)
    if not tensors:
        OutputForm().read(result)  # says what it is instead
    facts = [OutputFacts(path, tuple(t.shape[1:])) for path, t in tensors.items() if t.dim() and len(t) == samples]
    if not facts:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors.values())
        raise DataError(
            f"the network returned {shapes} for {samples} samples: no tensor with a row for each",
            "wrap it so that the first dimension of its outputs is that of the samples",
        )
    return facts


def _target_facts(split: Split, outputs: Sequence[OutputFacts]) -> TargetFacts:
    """Return the facts about the targets of a split; values are looked at where they are in memory or decide."""
    known = split.targets()
    first = split.fetch([0])[1] if known is None else known[:1]
    shape = tuple(first.shape[1:])
    if known is None and (len(outputs) > 1 or any(prod(one.shape) == prod(shape) for one in outputs)):
        known = _some(split).fetch(range(min(_SOME_TARGETS, len(split))))[1]
    facts = TargetFacts(shape, str(first.dtype), first.is_floating_point())
    if known is None:
        return facts
    whole = not known.is_floating_point()
    return replace(
        facts,
        classes=int(known[known != _VOID].amax()) + 1 if whole and bool((known != _VOID).any()) else 0,
        zeros_and_ones=bool(((known == 0) | (known == 1)).all()),
        distribution=_distribution(known),
    )


def _distribution(targets: Tensor) -> Axes | None:
    """Return the axes in which targets (N, ...) are shares of classes: not negative, with the sum one."""
    if targets.dim() < 2 or bool((targets < 0).any()):
        return None
    candidates: dict[Axes, int] = {"values": 1} if targets.dim() == 2 else {"channels": 1, "positions": -1}
    for axes, dimension in candidates.items():
        sums = targets.double().sum(dimension)
        if targets.shape[dimension] > 1 and bool(((sums - 1).abs() < _ROUNDING).all()):
            return axes
    return None


def _some(split: Split) -> Split:
    """Return some of the samples, evenly spaced: data are often sorted by class."""
    count = min(_SOME_TARGETS, len(split))
    return split.subset([i * len(split) // count for i in range(count)])


def _lie_near(module: nn.Module, batches: Batches) -> bool:
    """Return whether the outputs are nearer to the targets than the targets' mean, as the outputs for values are."""
    outputs, targets = all_outputs(module, batches)
    values = targets.reshape(outputs.shape).to(outputs.dtype)
    return bool((outputs - values).square().mean() <= (values - values.mean(0)).square().mean())


def _try_loss(loss: CustomLoss, module: nn.Module, batches: Batches) -> None:
    """Call a loss of the user's, which says what is wrong with it."""
    x, targets = first_batch(batches)
    loss.values(forward_one(module, x).float(), targets)


def _custom_loss(spec: str, samples: Samples) -> CustomLoss:
    if not samples.train.labelled:
        raise UsageError(
            f"the training samples have no labels, and loss={spec} does not define what the dense network answers",
            "use loss=cross-entropy, bce or mse",
        )
    return CustomLoss.from_function(spec, load_object(spec))


def _arrangement(meaning: Meaning, targets: TargetFacts, classes: int) -> TargetChange:
    """Return the function that checks targets and arranges them as the outputs are."""

    def arranged(given: Tensor, name: str, at: Sequence[int] | None) -> Tensor:
        if meaning.task == "binary":
            _check_binary(given, name, at)
        if meaning.task != "classification":
            return given
        if targets.distribution is None:
            return _class_ids(given, meaning.axes, classes, name, at)
        shares = arrange(given, meaning.axes)
        if not targets.zeros_and_ones:
            return shares
        _check_one_hot(shares, name, at)
        return shares.argmax(-1)

    return arranged


def _class_ids(targets: Tensor, axes: Axes, classes: int, name: str, at: Sequence[int] | None) -> Tensor:
    """Return class ids as (B,) or (B, P)."""
    if axes == "values":
        check_targets(targets, classes, name, at)
        return targets if targets.dim() == 1 else targets.flatten()
    counted = targets != IGNORED
    if classes <= _VOID:
        counted &= targets != _VOID
    check_targets(torch.where(counted, targets, 0), classes, name, at)
    return torch.where(counted, targets, IGNORED).flatten(1)


def _check_one_hot(shares: Tensor, name: str, at: Sequence[int] | None) -> None:
    wrong = ((shares.amax(-1) != 1) | (shares.sum(-1) != 1)).nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        raise DataError(
            f"{name}: sample {row if at is None else at[row]} is not one-hot, as the first samples are",
            "give one-hot targets throughout, or class ids",
        )


def _check_binary(targets: Tensor, name: str, indices: Sequence[int] | None) -> None:
    wrong = ((targets != 0) & (targets != 1)).nonzero()
    if len(wrong):
        at = wrong[0].tolist()
        value, sample = float(targets[tuple(at)]), at[0] if indices is None else indices[at[0]]
        raise DataError(
            f"{name}: {value:g} of sample {sample} is neither 0 nor 1",
            "loss=bce needs targets of 0 or 1",
        )
