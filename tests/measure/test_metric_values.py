"""Every metric is what its formula says, in loops over samples in float64, with and without positions."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from prunetaylor.core.errors import UsageError
from prunetaylor.measure.metric import Predictions, SetMetric
from prunetaylor.measure.metrics import load_metric
from prunetaylor.measure.resampling import resampled_drops
from support.predictions import CLASSES, SAMPLES, case, random, value


def pairs(predictions: Predictions) -> list[tuple[int, int]]:
    """(predicted, true) class of every prediction that counts."""
    flat = predictions.outputs.reshape(-1, predictions.outputs.shape[-1]).tolist()
    targets = predictions.targets.flatten().tolist()
    return [(z.index(max(z)), int(y)) for z, y in zip(flat, targets, strict=True) if y >= 0]


def cross_entropies(predictions: Predictions) -> list[float]:
    flat = predictions.outputs.double().reshape(-1, predictions.outputs.shape[-1]).tolist()
    targets = predictions.targets.flatten().tolist()
    return [math.log(sum(map(math.exp, z))) - z[int(y)] for z, y in zip(flat, targets, strict=True) if y >= 0]


def areas(scores: list[list[float]], labels: list[list[bool]]) -> list[float]:
    """The area under each column's ROC curve, by all pairs of samples."""
    found = []
    for column, truth in zip(zip(*scores, strict=True), zip(*labels, strict=True), strict=True):
        high = [s for s, y in zip(column, truth, strict=True) if y]
        low = [s for s, y in zip(column, truth, strict=True) if not y]
        if high and low:
            wins = sum((a > b) + 0.5 * (a == b) for a in high for b in low)
            found.append(wins / len(high) / len(low))
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("positions", [False, True])
def test_of_classes(positions: bool) -> None:
    predictions = case("classification", positions=positions)
    found = pairs(predictions)
    right = Counter(p for p, y in found if p == y)
    predicted, true = Counter(p for p, _ in found), Counter(y for _, y in found)
    either = predicted.keys() | true.keys()
    assert value("token_accuracy", predictions) == pytest.approx(100 * mean([p == y for p, y in found]))
    f1 = [2 * right[c] / (predicted[c] + true[c]) for c in either]
    assert value("f1", predictions) == pytest.approx(100 * mean(f1))
    iou = [right[c] / (predicted[c] + true[c] - right[c]) for c in either]
    assert value("miou", predictions) == pytest.approx(100 * mean(iou))
    assert value("perplexity", predictions) == pytest.approx(math.exp(mean(cross_entropies(predictions))))


def test_of_one_class_a_sample() -> None:
    predictions = case("classification")
    outputs, targets = predictions.outputs.tolist(), predictions.targets.tolist()
    top5 = [sorted(z)[-5] <= z[y] for z, y in zip(outputs, targets, strict=True)]
    assert value("top5", predictions) == pytest.approx(100 * mean(top5))
    assert value("top1", predictions) == value("token_accuracy", predictions)
    shares = predictions.outputs.double().softmax(1).tolist()
    truth = [[y == c for c in range(CLASSES)] for y in targets]
    assert value("auc", predictions) == pytest.approx(100 * mean(areas(shares, truth)))
    assert value("loss", predictions) == pytest.approx(mean(cross_entropies(predictions)))


def test_of_soft_labels() -> None:
    predictions = case("classification")
    shares = torch.nn.functional.one_hot(predictions.targets, CLASSES) * 0.8 + 0.2 / CLASSES
    soft = Predictions(predictions.outputs, shares, predictions.dense_outputs, "classification")
    for name in ("top1", "top5", "token_accuracy", "f1", "auc"):
        assert value(name, soft) == value(name, predictions), name


@pytest.mark.parametrize("outputs", [1, 3])
def test_of_binary_labels(outputs: int) -> None:
    predictions = case("binary", outputs=outputs)
    predicted, true = (predictions.outputs > 0).tolist(), (predictions.targets > 0.5).tolist()
    columns = [list(zip(p, y, strict=True)) for p, y in zip(zip(*predicted), zip(*true), strict=True)]  # noqa: B905
    f1 = [2 * sum(p and y for p, y in c) / sum(p + y for p, y in c) for c in columns]
    assert value("f1", predictions) == pytest.approx(100 * mean(f1))
    assert value("auc", predictions) == pytest.approx(100 * mean(areas(predictions.outputs.tolist(), true)))
    if outputs == 1:
        assert value("top1", predictions) == pytest.approx(100 * mean([p == y for c in columns for p, y in c]))
    else:
        with pytest.raises(UsageError, match="top-1"):
            value("top1", predictions)


@pytest.mark.parametrize("positions", [False, True])
def test_of_values(positions: bool) -> None:
    predictions = case("regression", positions=positions, outputs=3)
    z, y = (t.double().reshape(-1, 3).T.tolist() for t in (predictions.outputs, predictions.targets))
    errors = [a - b for row, truth in zip(z, y, strict=True) for a, b in zip(row, truth, strict=True)]
    assert value("mse", predictions) == pytest.approx(mean([e * e for e in errors]))
    assert value("mae", predictions) == pytest.approx(mean([abs(e) for e in errors]))
    each = [
        1 - sum((a - b) ** 2 for a, b in zip(row, truth, strict=True)) / sum((b - mean(truth)) ** 2 for b in truth)
        for row, truth in zip(z, y, strict=True)
    ]
    assert value("r2", predictions) == pytest.approx(mean(each))


def test_r2_of_targets_far_from_zero_and_of_constant_ones() -> None:
    y = torch.tensor([[1e7 + 1.0, 3.0], [1e7 + 2.0, 3.0], [1e7 + 3.0, 3.0]])
    far = Predictions(y.clone(), y, y, "regression")
    assert value("r2", far) == 1
    wrong = Predictions(y + torch.tensor([0.0, 1.0]), y, y, "regression")
    assert value("r2", wrong) == pytest.approx(0.5)


@pytest.mark.parametrize("positions", [False, True])
def test_of_the_dense_networks_outputs(positions: bool) -> None:
    """They need no targets; the dense network itself has exactly 1 and 100 %."""
    known = case("classification", positions=positions)
    predictions = Predictions(known.outputs, None, known.dense_outputs, "classification")
    a, b = (t.double().reshape(-1, CLASSES).tolist() for t in (known.outputs, known.dense_outputs))
    cosines = [
        sum(x * y for x, y in zip(p, q, strict=True)) / math.hypot(*p) / math.hypot(*q)
        for p, q in zip(a, b, strict=True)
    ]
    assert value("cosine", predictions) == pytest.approx(mean(cosines))
    same = [p.index(max(p)) == q.index(max(q)) for p, q in zip(a, b, strict=True)]
    assert value("agreement", predictions) == pytest.approx(100 * mean(same))
    itself = Predictions(known.outputs, None, known.outputs, "classification")
    assert (value("cosine", itself), value("agreement", itself)) == (1, 100)
    with pytest.raises(UsageError, match="no labels"):
        value("token_accuracy", predictions)


def test_a_vector_of_zeros_is_like_itself_only() -> None:
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    dense = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert value("cosine", Predictions(z, None, dense, "features")) == 0.5


@pytest.mark.parametrize(
    ("name", "predictions", "message"),
    [
        ("top5", case("classification", outputs=5), "more than five"),
        ("top1", case("classification", positions=True), "no top-1"),
        ("f1", case("regression"), "values, not classes"),
        ("agreement", case("features"), "values, not classes"),
        ("r2", case("classification"), "not values"),
        ("perplexity", case("binary"), "binary"),
        ("auc", case("classification", positions=True), "one prediction"),
    ],
)
def test_what_has_no_such_metric(name: str, predictions: Predictions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        value(name, predictions)


def test_areas_of_equal_scores_count_half() -> None:
    scores = torch.tensor([[0.0], [1.0], [1.0], [2.0], [1.0]])
    labels = torch.tensor([[0.0], [1.0], [0.0], [1.0], [0.0]])
    expected = areas(scores.tolist(), (labels > 0.5).tolist())
    assert value("auc", Predictions(scores, labels, scores, "binary")) == pytest.approx(100 * expected[0])
    one = Predictions(scores, torch.ones(5, 1), scores, "binary")
    assert math.isnan(value("auc", one))


@pytest.mark.parametrize("name", ["auc", "f1", "r2", "token_accuracy", "perplexity"])
def test_a_resample_is_the_metric_of_its_rows(name: str) -> None:
    predictions = case("regression" if name == "r2" else "classification")
    metric = load_metric(name)
    assert isinstance(metric, SetMetric)
    records = metric.records(predictions)
    for seed in range(3):
        rows = torch.randint(SAMPLES, (SAMPLES,), generator=torch.Generator().manual_seed(seed))
        assert metric.resampler(*records)(rows) == pytest.approx(metric.value(*(one[rows] for one in records)))


def test_resamples_without_the_metric_are_left_out() -> None:
    scores, labels = random(30, 1), torch.zeros(30, 1)
    labels[:2] = 1
    auc = load_metric("auc")
    assert isinstance(auc, SetMetric)
    sides = [auc.records(Predictions(z, labels, z, "binary")) for z in (scores, random(30, 1, seed=5))]
    (drop,) = resampled_drops(auc, *sides, torch.Generator().manual_seed(0), [0.95])
    assert drop.low <= drop.value <= drop.high
    assert math.isfinite(drop.high)
