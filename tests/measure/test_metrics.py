"""Every metric of the registry keeps the contract, and so does one of another installed package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from prunetaylor.core import registry
from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.results.metric import describe_metric
from prunetaylor.measure.comparison import metric_drop
from prunetaylor.measure.evaluate import evaluate_outputs
from prunetaylor.measure.metrics import load_metric
from prunetaylor.measure.paired import bootstrap_interval, drop_interval
from support.metric_contract import CONTRACT
from support.outside_package import install

ERROR_RATE = '''"""The share of samples that are wrong."""

from torch import Tensor

from prunetaylor.measure.metric import Predictions, SampleMetric


class ErrorRate(SampleMetric):
    name = "error_rate"
    title = "error rate"
    summary = "the share of samples whose class is not predicted"
    goal = "min"
    unit = "%"

    def values(self, predictions: Predictions) -> Tensor:
        return predictions.outputs.argmax(1) != predictions.targets
'''


@pytest.mark.parametrize("rule", CONTRACT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", registry.names(registry.METRICS))
def test_contract(name: str, rule: Callable[[str], None]) -> None:
    rule(name)


@pytest.fixture
def error_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package with a metric of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    registry.forget_packages()
    target = "prunetaylor_error_rate:ErrorRate"
    install(tmp_path, "error_rate", target, ERROR_RATE, "metrics")
    yield "error_rate"
    registry.forget_packages()
    sys.modules.pop("prunetaylor_error_rate", None)


def test_a_metric_of_another_package(error_rate: str) -> None:
    assert resolve(None, {}, [f"metric={error_rate}"], {}).config.metric == error_rate
    described = describe_metric(error_rate)
    assert (described.goal, described.unit, described.title) == ("min", "%", "error rate")
    targets = torch.zeros(50).long()
    dense, pruned = torch.eye(2)[targets], torch.eye(2)[targets]
    pruned[:5] = torch.tensor([0.0, 1.0])
    metric = load_metric(error_rate)
    sides = [evaluate_outputs(z, targets, "classification", metric) for z in (dense, pruned)]
    assert [side.metrics[error_rate] for side in sides] == [0, 10]
    drop = metric_drop(metric, *sides, seed=0)
    assert drop == drop_interval(~sides[0].records[0], ~sides[1].records[0])


def test_a_mean_that_should_fall_rises_as_its_drop() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (40,), generator=generator)
    sides = [
        evaluate_outputs(torch.randn(40, 3, generator=generator), targets, "classification", load_metric("loss"))
        for _ in range(2)
    ]
    expected = bootstrap_interval(-sides[0].losses, -sides[1].losses, torch.Generator().manual_seed(3))
    assert metric_drop(load_metric("loss"), *sides, seed=3) == expected
