"""The choice of the task: the output that counts, what it means, and the loss and the metric that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import DataError
from prunetaylor.core.results.choice import Choice
from prunetaylor.network.checkpoint.read import Checkpoint
from prunetaylor.taylor.objective import Task
from prunetaylor.taylor.outputs import Axes, OutputForm, Path, describe_path, parse_path

Shape = tuple[int, ...]

_NAMES = ("logits", "out")
"""Names that the outputs of a classification go by."""


@dataclass(frozen=True)
class TargetFacts:
    """The targets: the shape of one sample's, and the values of some of them."""

    shape: Shape
    dtype: str
    floating: bool
    classes: int = 0  # the largest whole number, and one more
    zeros_and_ones: bool = False  # nothing else
    distribution: Axes | None = None  # the axes in which they are shares of classes that sum to one


@dataclass(frozen=True)
class OutputFacts:
    """A tensor in what the network returns: the path to it, and the shape of one sample's part."""

    path: Path
    shape: Shape


@dataclass(frozen=True)
class Meaning:
    """The meaning of an output is its task, and the axes by which it and the targets are read."""

    task: Task
    axes: Axes


def with_recorded_loss(config: Config, checkpoints: Sequence[Checkpoint]) -> Config:
    """The configuration with the loss that a checkpoint says it was trained with, where none was asked for."""
    recorded = [one.metadata.extra.get("loss") for one in checkpoints if one.metadata is not None]
    known = [one for one in recorded if one in ("cross-entropy", "bce", "mse")]
    return config.model_copy(update={"loss": known[0]}) if known and asked(config.loss) is None else config


def interpret(config: Config, shape: Shape, targets: TargetFacts | None) -> Meaning | None:
    """Return what an output of this shape means beside the targets, or without any; None: it does not fit them.

    Zeros and ones are taken for labels here; :func:`distinguish_labels` decides.
    """
    loss = asked(config.loss)
    if targets is None:
        named = {"cross-entropy": "classification", "bce": "binary"}
        return _without_targets(shape, named.get(loss or "", "features"))
    if loss in (None, "cross-entropy") and (meaning := _classes(shape, targets)) is not None:
        return meaning
    if loss == "cross-entropy" or prod(shape) != prod(targets.shape):
        return None
    binary = loss == "bce" or (loss is None and targets.zeros_and_ones)
    return Meaning("binary" if binary else "regression", "values")


def _without_targets(shape: Shape, task: str) -> Meaning:
    candidates: dict[int, Axes] = {2: "positions", 3: "channels"}
    if task == "classification":
        return Meaning("classification", candidates.get(len(shape), "values"))
    if task == "binary":
        return Meaning("binary", "values")
    return Meaning("features", "positions" if len(shape) == 2 else "values")


def _classes(shape: Shape, targets: TargetFacts) -> Meaning | None:
    if targets.distribution is not None and shape == targets.shape:
        return Meaning("classification", targets.distribution)
    if targets.floating:
        return None
    if prod(targets.shape) == 1 and prod(shape) > 1:
        return Meaning("classification", "values")
    if len(shape) < 2 or not targets.shape:
        return None
    fits: dict[Axes, bool] = {
        "positions": shape[:-1] == targets.shape and shape[-1] > 1,
        "channels": shape[1:] == targets.shape and shape[0] > 1,
    }
    order: tuple[Axes, ...] = ("positions", "channels") if len(shape) == 2 else ("channels", "positions")
    return next((Meaning("classification", axes) for axes in order if fits[axes]), None)


def choose_output(
    config: Config, outputs: Sequence[OutputFacts], targets: TargetFacts | None
) -> tuple[OutputFacts, str]:
    """Return the tensor that counts among those that the network returns, and the reason.

    The reason is empty where there is only one. Raises DataError: there is none of the name that was asked for.
    """
    requested = asked(config.model.output)
    if requested is not None:
        return _requested(requested, outputs), AS_ASKED
    if len(outputs) == 1:
        return outputs[0], ""
    named = [one for one in outputs if one.path and one.path[-1] in _NAMES]
    fitting = [one for one in outputs if _has_room(config, one.shape, targets)]
    if targets is None or not fitting:
        return (named[0], "by its name") if named else (outputs[0], "the first of several")
    if len(fitting) == 1:
        return fitting[0], "it alone fits the targets"
    if named and named[0] in fitting:
        return named[0], "by its name, and it fits the targets"
    meaning = interpret(config, fitting[0].shape, targets)
    if meaning is not None and meaning.task == "classification":
        narrowest = min(fitting, key=lambda one: prod(one.shape))
        if prod(narrowest.shape) < max(prod(one.shape) for one in fitting):
            return narrowest, f"the narrowest of {len(fitting)} with room for class ids up to {targets.classes - 1}"
    return fitting[0], f"the first of {len(fitting)} that fit the targets"


def _requested(name: str, outputs: Sequence[OutputFacts]) -> OutputFacts:
    path = parse_path(name)
    for one in outputs:
        if one.path == path:
            return one
    if len(path) == 1 and isinstance(path[0], int) and -len(outputs) <= path[0] < len(outputs):
        return outputs[path[0]]
    known = ", ".join(describe_path(one.path) for one in outputs if one.path) or "a single tensor"
    raise DataError(f"model.output={name}, and the network returns {known}", "choose one of these, or leave it at auto")


def _has_room(config: Config, shape: Shape, targets: TargetFacts | None) -> bool:
    meaning = None if targets is None else interpret(config, shape, targets)
    if meaning is None or targets is None:
        return False
    if meaning.task != "classification" or targets.distribution is not None:
        return True
    width = {"channels": shape[0], "positions": shape[-1]}.get(meaning.axes, prod(shape)) if shape else 1
    return targets.classes <= width


def distinguish_labels(config: Config, meaning: Meaning, near: bool | None) -> Meaning:
    """Return the meaning with targets of zeros and ones told apart: labels of logits, or values.

    ``near``: the outputs lie nearer to the targets than the targets' mean does, as values do and logits do not; None:
    nobody looked.
    """
    if meaning.task != "binary" or asked(config.loss) is not None or not near:
        return meaning
    return Meaning("regression", "values")


def refuse_targets(
    config: Config, outputs: Sequence[OutputFacts], chosen: OutputFacts, targets: TargetFacts | None
) -> NoReturn:
    """Raise DataError: the targets do not fit the output."""
    assert targets is not None  # any output fits none
    loss = asked(config.loss)
    others = [describe_path(one.path) for one in outputs if one.path and one.path != chosen.path]
    known = prod(chosen.shape) if len(chosen.shape) == 1 else chosen.shape
    raise DataError(
        f"targets of shape {targets.shape} and type {targets.dtype} do not fit outputs of "
        + (f"{known} values" if isinstance(known, int) else f"shape {known}")
        + ("" if loss is None else f" and loss={loss}"),
        (f"choose another output (model.output={' or '.join(others)}), or " if others else "")
        + "give class ids, one a sample, token or pixel, or floating-point targets of the outputs' size; or set "
        "loss=FILE.py:FUNCTION",
    )


def explain_output(form: OutputForm, reason: str) -> Choice[object]:
    """Return the choice of the output that counts."""
    name = describe_path(form.path or ())
    return Choice("model.output", name, reason, f"output: {name} ({reason})")


def explain_loss(config: Config, meaning: Meaning, targets: TargetFacts | None) -> str:
    """Return why the loss of the task is taken."""
    if asked(config.loss) is not None:
        return AS_ASKED
    if targets is None:
        return "there are no labels"
    if meaning.task == "classification":
        if targets.distribution is not None:
            return "the targets are shares of classes"
        each = {"positions": ", one for each token", "channels": ", one for each pixel"}.get(meaning.axes, "")
        return f"the targets are class ids{each}"
    if meaning.task == "binary":
        return "the targets are zeros and ones, and the outputs logits"
    if targets.zeros_and_ones:
        return "the targets are zeros and ones, and the outputs are close to them"
    return "the targets are floating-point values" if targets.floating else "the targets are numbers"


def explain_task(config: Config, task: Task, reason: str = "") -> Choice[str]:
    """Return the loss that goes with ``task``, and why it is taken."""
    if not isinstance(task, str):
        return Choice("loss", task.name, AS_ASKED)
    loss, usual = {
        "classification": ("cross-entropy", "the targets are class ids"),
        "binary": ("bce", "the targets are zeros and ones"),
        "regression": ("mse", "the targets are floating-point values"),
        "features": ("mse", "there are no labels"),
    }[task]
    return Choice("loss", loss, AS_ASKED if asked(config.loss) is not None else reason or usual)


def choose_metric(
    config: Config, meaning: Meaning, width: int, *, labelled: bool, classes: bool = False, next_tokens: bool = False
) -> Choice[str]:
    """Return the metric of the task, and the reason.

    Args:
        width: outputs of a prediction.
        labelled: the test samples have labels.
        classes: the predictions of a loss of the user's are right or wrong.
        next_tokens: each target is the token that follows in the inputs.
    """
    requested = asked(config.metric)
    if requested is not None:
        return Choice("metric", requested, AS_ASKED)
    return Choice("metric", *_usual_metric(meaning, width, labelled=labelled, classes=classes, next_tokens=next_tokens))


def _usual_metric(meaning: Meaning, width: int, *, labelled: bool, classes: bool, next_tokens: bool) -> tuple[str, str]:
    """Return the usual metric of a task, and why."""
    task, axes = meaning.task, meaning.axes
    if not labelled:
        compared = "agreement" if task in ("classification", "binary") else "cosine"
        return compared, "the test samples have no labels"
    if not isinstance(task, str):
        return ("top1", "the targets are class ids") if classes else ("loss", "the loss is your own")
    if next_tokens:
        return "perplexity", "the targets are the next tokens"
    if task == "classification":
        return {
            "values": ("top1", "there is a class for each sample"),
            "positions": ("token_accuracy", "there is a class for each token"),
            "channels": ("miou", "there is a class for each pixel"),
        }[axes]
    if task == "binary":
        return ("top1", "there is one label for each sample") if width == 1 else ("f1", "there are several labels")
    return "r2", "the targets are values"
