"""The output that counts, what it means beside the targets, and the loss and metric that go with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import DataError
from prunetaylor.pipeline.planning.task import (
    Meaning,
    OutputFacts,
    TargetFacts,
    choose_metric,
    choose_output,
    distinguish_labels,
    explain_loss,
    interpret,
    refuse_targets,
)
from prunetaylor.taylor.losses.custom import CustomLoss

AUTO = from_values({}).config
IDS = TargetFacts((), "torch.int64", False, classes=3)
VALUES = TargetFacts((3,), "torch.float32", True)


@pytest.mark.parametrize(
    ("loss", "shape", "targets", "meaning"),
    [
        ("auto", (3,), IDS, ("classification", "values")),
        ("auto", (3, 1, 1), IDS, ("classification", "values")),
        ("auto", (3,), replace(IDS, shape=(1,)), ("classification", "values")),
        ("auto", (1,), IDS, ("regression", "values")),  # whole numbers, and a single output
        ("auto", (1,), replace(IDS, zeros_and_ones=True), ("binary", "values")),
        ("auto", (8, 20), replace(IDS, shape=(8,)), ("classification", "positions")),
        ("auto", (20, 8), replace(IDS, shape=(8,)), ("classification", "channels")),
        ("auto", (3, 8, 8), replace(IDS, shape=(8, 8)), ("classification", "channels")),
        ("auto", (8, 8, 3), replace(IDS, shape=(8, 8)), ("classification", "positions")),
        ("auto", (3,), VALUES, ("regression", "values")),
        ("auto", (3, 1), VALUES, ("regression", "values")),
        ("auto", (3,), replace(VALUES, zeros_and_ones=True), ("binary", "values")),
        ("auto", (3,), replace(VALUES, distribution="values"), ("classification", "values")),
        ("auto", (3, 8, 8), TargetFacts((3, 8, 8), "", True, distribution="channels"), ("classification", "channels")),
        ("auto", (1, 8, 8), TargetFacts((8, 8), "", True), ("regression", "values")),
        ("auto", (3,), replace(VALUES, shape=(5,)), None),
        ("auto", (3, 7, 7), replace(IDS, shape=(8, 8)), None),
        ("mse", (3,), IDS, None),
        ("mse", (3,), replace(VALUES, zeros_and_ones=True), ("regression", "values")),
        ("bce", (3,), VALUES, ("binary", "values")),
        ("cross-entropy", (3,), IDS, ("classification", "values")),
        ("cross-entropy", (3,), VALUES, None),
        ("auto", (3,), None, ("features", "values")),
        ("auto", (8, 20), None, ("features", "positions")),
        ("auto", (20, 8, 8), None, ("features", "values")),
        ("cross-entropy", (8, 20), None, ("classification", "positions")),
        ("bce", (3,), None, ("binary", "values")),
    ],
)
def test_what_an_output_means(
    loss: str, shape: tuple[int, ...], targets: TargetFacts | None, meaning: tuple[str, str] | None
) -> None:
    read = interpret(from_values({"loss": loss}).config, shape, targets)
    assert read == (None if meaning is None else Meaning(*meaning))


FEATURES, LOGITS = OutputFacts((0,), (12,)), OutputFacts((1,), (3,))
TOKENS = OutputFacts((0,), (8, 20))
NAMED = [OutputFacts(("features",), (3,)), OutputFacts(("logits",), (3,))]


@pytest.mark.parametrize(
    ("outputs", "targets", "chosen", "reason"),
    [
        ([LOGITS], IDS, 0, ""),
        ([FEATURES, LOGITS], IDS, 1, "the narrowest of 2 with room for class ids up to 2"),
        ([LOGITS, FEATURES], IDS, 0, "the narrowest of 2 with room for class ids up to 2"),
        ([LOGITS, FEATURES], replace(IDS, classes=7), 1, "it alone fits the targets"),
        ([FEATURES, LOGITS], VALUES, 1, "it alone fits the targets"),
        (NAMED, IDS, 1, "by its name, and it fits the targets"),
        (NAMED, None, 1, "by its name"),
        ([FEATURES, LOGITS], None, 0, "the first of several"),
        ([LOGITS, replace(LOGITS, path=(2,))], IDS, 0, "the first of 2 that fit the targets"),
        (
            [OutputFacts((0,), (8, 20)), OutputFacts((1,), (16,))],
            replace(IDS, shape=(8,)),
            0,
            "it alone fits the targets",
        ),
    ],
)
def test_which_output_counts(outputs: list[OutputFacts], targets: TargetFacts | None, chosen: int, reason: str) -> None:
    assert choose_output(AUTO, outputs, targets) == (outputs[chosen], reason)


def test_an_output_that_is_named() -> None:
    def choose(name: str) -> object:
        return choose_output(from_values({"model.output": name}).config, [*NAMED], IDS)[0]

    assert choose("features") == choose("0") == NAMED[0]
    assert choose("-1") == NAMED[1]
    with pytest.raises(DataError, match=r"model.output=scores, .*features, logits"):
        choose("scores")


def test_zeros_and_ones_are_labels_of_logits_or_values_by_what_the_outputs_are() -> None:
    binary, targets = Meaning("binary", "values"), replace(VALUES, zeros_and_ones=True)
    assert distinguish_labels(AUTO, binary, near=False) == binary
    assert distinguish_labels(AUTO, binary, near=True).task == "regression"
    assert distinguish_labels(from_values({"loss": "bce"}).config, binary, near=True) == binary
    assert "logits" in explain_loss(AUTO, binary, targets)
    assert "close to them" in explain_loss(AUTO, distinguish_labels(AUTO, binary, near=True), targets)


def test_targets_that_fit_no_output_name_the_others() -> None:
    with pytest.raises(DataError, match=r"shape \(5,\).*outputs of 12 values\n.*model.output=1"):
        refuse_targets(AUTO, [FEATURES, LOGITS], FEATURES, replace(VALUES, shape=(5,)))


@pytest.mark.parametrize(
    ("task", "axes", "width", "metric"),
    [
        ("classification", "values", 3, "top1"),
        ("classification", "positions", 3, "token_accuracy"),
        ("classification", "channels", 3, "miou"),
        ("binary", "values", 1, "top1"),
        ("binary", "values", 3, "f1"),
        ("regression", "values", 3, "r2"),
    ],
)
def test_the_metric_goes_with_the_task(task: str, axes: str, width: int, metric: str) -> None:
    meaning = Meaning(task, axes)
    assert choose_metric(AUTO, meaning, width, labelled=True).value == metric
    asked = from_values({"metric": "loss"}).config
    assert choose_metric(asked, meaning, width, labelled=True).reason == "as asked"


@pytest.mark.parametrize(
    ("task", "metric"), [("classification", "agreement"), ("binary", "agreement"), ("features", "cosine")]
)
def test_without_labels_the_metric_compares_with_the_dense_network(task: str, metric: str) -> None:
    assert choose_metric(AUTO, Meaning(task, "values"), 3, labelled=False).value == metric


def test_the_metric_of_next_tokens_is_perplexity_and_that_of_ones_own_loss_is_the_loss() -> None:
    assert choose_metric(AUTO, Meaning("classification", "positions"), 9, labelled=True, next_tokens=True).value == (
        "perplexity"
    )
    own = CustomLoss.from_function("m:f", abs)
    assert choose_metric(AUTO, Meaning(own, "own"), 3, labelled=True).value == "loss"
    assert choose_metric(AUTO, Meaning(own, "own"), 3, labelled=True, classes=True).value == "top1"
