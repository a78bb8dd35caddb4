"""A metric of torchmetrics by name, held against ours; without the package it says what to install."""

from __future__ import annotations

import sys

import pytest

from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.measure.metrics import load_metric
from support.predictions import case, value


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    name = "torchmetrics:MulticlassF1Score"
    assert resolve(None, {}, [f"metric={name}"], {}).config.metric == name  # a check of settings imports nothing
    with pytest.raises(UsageError, match="needs the package torchmetrics\npip install 'torchmetrics"):
        load_metric(name)


@pytest.fixture
def installed() -> None:
    """torchmetrics, an extra that need not be installed."""
    from prunetaylor.runtime.torchvision_import import repair_imports

    repair_imports()
    pytest.importorskip("torchmetrics")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("positions", [False, True])
def test_of_classes(positions: bool) -> None:
    predictions = case("classification", positions=positions)
    for theirs, ours in (("MulticlassF1Score", "f1"), ("MulticlassJaccardIndex", "miou")):
        metric = load_metric(f"torchmetrics:{theirs}")
        assert (metric.goal, metric.unit) == ("max", "")
        assert 100 * metric.value(*metric.records(predictions)) == pytest.approx(value(ours, predictions), rel=1e-5)


@pytest.mark.usefixtures("installed")
def test_of_each_task() -> None:
    texts, labels, values = case("classification", positions=True), case("binary", outputs=3), case("regression")
    for theirs, ours, predictions, scale in (
        ("Perplexity", "perplexity", texts, 1),
        ("AUROC", "auc", labels, 100),
        ("AUROC", "auc", case("binary", outputs=1), 100),
        ("MeanSquaredError", "mse", values, 1),
        ("R2Score", "r2", values, 1),
    ):
        metric = load_metric(f"torchmetrics:{theirs}")
        assert metric.goal == load_metric(ours).goal, theirs
        found = scale * metric.value(*metric.records(predictions))
        assert found == pytest.approx(value(ours, predictions), rel=1e-4), theirs


@pytest.mark.usefixtures("installed")
def test_what_is_no_metric() -> None:
    with pytest.raises(UsageError, match="no metric 'MulticlassF1Skore'; did you mean 'MulticlassF1Score'"):
        load_metric("torchmetrics:MulticlassF1Skore")
    with pytest.raises(UsageError, match="does not say whether larger values are better"):
        load_metric("torchmetrics:MeanMetric")
    f1, mse = load_metric("torchmetrics:F1Score"), load_metric("torchmetrics:MeanSquaredError")
    with pytest.raises(UsageError, match="values, not classes"):
        f1.records(case("regression"))
    with pytest.raises(DataError, match="torchmetrics:MeanSquaredError failed"):
        mse.value(*mse.records(case("classification")))
