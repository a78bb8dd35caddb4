"""A run is measured by its metric: results, choice of epochs, and every report name that metric and no other."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from torch import nn
from torch.nn.functional import mse_loss

from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.measure.metrics import load_metric
from prunetaylor.report.html.run_page import run_page
from prunetaylor.report.json_report import to_json
from prunetaylor.report.summary import outcome_lines
from prunetaylor.report.terminal.run import print_outcome
from support.networks import ConvNet, mlp, trained
from support.runs import TEST, quick
from support.samples import curve

OWN = """
def error_rate(outputs, targets):
    return float((outputs.argmax(1) != targets).double().mean())
error_rate.goal = "min"
"""


def reports(outcome: PruneResult) -> str:
    """Everything that a run says, in one text."""
    document = json.loads(json.dumps(to_json(outcome, {}, {"metric": outcome.metric})))
    file = io.StringIO()
    print_outcome(Console(file=file, width=200), outcome, {})
    return "\n".join([json.dumps(document), file.getvalue(), run_page(document, "run"), *outcome_lines(outcome)])


def assert_measured_by(outcome: PruneResult, name: str) -> None:
    metric = load_metric(name)
    assert (outcome.metric, outcome.goal, outcome.unit) == (name, metric.goal, metric.unit)
    before, after = (side.metrics[name] for side in (outcome.dense, outcome.pruned))
    assert set(outcome.dense.metrics) == set(outcome.pruned.metrics) == {name, "loss"}
    assert outcome.drop.value == pytest.approx(metric.sign * (before - after), abs=1e-6)
    assert outcome.drop.low <= outcome.drop.value <= outcome.drop.high
    assert outcome.stages[-1].metric is not None
    document = to_json(outcome, {})
    assert document["metric"] == {"name": name, "goal": metric.goal, "unit": metric.unit}
    assert document["drop"]["unit"] == ("pp" if metric.unit == "%" else "")
    assert (document["drop_pp"] is None) == (metric.unit != "%")
    text = reports(outcome)
    assert metric.title in text
    assert name == "top1" or not [word for word in ("top1", "top-1") if word in text]


@pytest.mark.parametrize("name", ["top1", "f1", "auc", "token_accuracy", "perplexity", "cosine", "agreement"])
def test_classes(conv: ConvNet, name: str) -> None:
    outcome = quick(conv, sparsity=0.7, metric=name, prune__method="magnitude")
    assert_measured_by(outcome, name)
    if name in ("cosine", "agreement"):
        assert outcome.dense.metrics[name] == {"cosine": 1, "agreement": 100}[name]
        assert outcome.pruned.metrics[name] < outcome.dense.metrics[name]


@pytest.mark.parametrize("name", ["mse", "mae", "r2", "cosine"])
def test_values(name: str) -> None:
    data, test = curve(200, 1), curve(100, 2)
    dense = trained(mlp(), data, mse_loss, 100)
    assert_measured_by(quick(dense, data, test, sparsity=0.5, metric=name, prune__method="magnitude"), name)


def test_a_function_of_ones_own(conv: ConvNet, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    outcome = quick(conv, sparsity=0.9, metric="own.py:error_rate", prune__method="magnitude", prune__repair="none")
    assert_measured_by(outcome, "own.py:error_rate")
    assert outcome.goal == "min"
    assert outcome.drop.value > 0  # there are more errors


@pytest.mark.parametrize("name", ["perplexity", "agreement"])
def test_the_best_epoch_is_chosen_by_it(conv: ConvNet, name: str) -> None:
    how = {"sparsity": 0.9, "metric": name, "prune__method": "magnitude", "finetune__epochs": 3}
    outcome = quick(conv, **how, data__batch_size=32)
    values = [epoch.validation for epoch in outcome.epochs]
    assert all(value >= 1 for value in values) if name == "perplexity" else all(0 <= value <= 100 for value in values)
    assert_measured_by(outcome, name)


def test_samples_that_do_not_define_it_are_refused(conv: ConvNet) -> None:
    one_class = TEST[1] == TEST[1][0]
    with pytest.raises(DataError, match="AUC is not defined on these"):
        quick(
            conv, test=(TEST[0][one_class], TEST[1][one_class]), sparsity=0.5, metric="auc", prune__method="magnitude"
        )


def test_what_does_not_fit_is_refused_before_any_work(conv: nn.Module) -> None:
    with pytest.raises(UsageError, match="targets are not values"):
        quick(conv, sparsity=0.5, metric="r2")
