"""A metric of the user's own: its drop resampled in pairs, and what it may not do."""

from pathlib import Path

import pytest
import torch

from prunetaylor.core.errors import DataError, NumericsError, UsageError
from prunetaylor.core.results.outcome import Drop
from prunetaylor.gate.limits import metric_drop
from prunetaylor.measure.metrics import load_metric
from prunetaylor.measure.paired import tango
from prunetaylor.measure.resampling import RESAMPLES, resampled_drops
from prunetaylor.report.json_report import verdict_to_json
from prunetaylor.report.verdict_text import interval, verdict_facts
from support.verdicts import assert_valid_json, verdict

CODE = """
import torch
def accuracy(outputs, targets):
    return 100 * (outputs.argmax(1) == targets).double().mean()
def broken(outputs, targets):
    return outputs[10**6]
def empty(outputs, targets):
    return float("nan")
number = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "metrics.py").write_text(CODE)
    return str(tmp_path / "metrics.py")


def outputs(right: torch.Tensor) -> torch.Tensor:
    """Two classes, the true one 0: outputs that are right where ``right`` says so."""
    return torch.stack([right.double(), 1 - right.double()], 1)


def test_of_the_accuracy_it_gives_nearly_what_tango_gives(code: str) -> None:
    dense, pruned = torch.ones(2000).bool(), torch.ones(2000).bool()
    dense[:60], pruned[40:180] = False, False  # 120 lost, 40 won
    steps = []
    drops = resampled_drops(
        load_metric(f"{code}:accuracy"),
        (outputs(dense), torch.zeros(2000).long()),
        (outputs(pruned), torch.zeros(2000).long()),
        torch.Generator().manual_seed(0),
        (0.95, 0.9),
        lambda: steps.append(1),
    )
    assert len(steps) == RESAMPLES
    for drop, level in zip(drops, (0.95, 0.9), strict=True):
        assert drop.value == pytest.approx(4)
        assert (drop.low, drop.high) == pytest.approx([100 * x for x in tango(120, 40, 2000, level)], abs=0.15)


def test_samples_on_which_nothing_flips_do_not_bound_a_metric(code: str) -> None:
    """Networks that differ, and are right on the same 40 samples: another may tell. Of equal ones there is no doubt."""
    right = torch.ones(40).bool()
    dense, targets = outputs(right), torch.zeros(40).long()

    def limits(pruned: torch.Tensor) -> Drop:
        metric, generator = load_metric(f"{code}:accuracy"), torch.Generator().manual_seed(0)
        return resampled_drops(metric, (dense, targets), (pruned, targets), generator, (0.9,))[0]

    check = metric_drop("accuracy", limits(0.9 * dense), 40, 0.5)
    assert (check.status, check.samples_needed) == ("inconclusive", None)
    assert "no bound" in check.why
    assert interval(check) == "-"
    found = verdict([check], metric="accuracy", unit="", drop=limits(0.9 * dense))
    assert ("drop", "0, no interval") in verdict_facts(found)
    document = verdict_to_json(found)
    assert_valid_json(document)
    assert document["checks"][0]["high"] is None
    assert metric_drop("accuracy", limits(dense), 40, 0).status == "pass"


def test_what_is_no_metric(code: str) -> None:
    with pytest.raises(UsageError, match="is a int, not a function"):
        load_metric(f"{code}:number")
    x, y = torch.zeros(3, 2), torch.zeros(3).long()
    with pytest.raises(DataError, match="failed: IndexError"):
        load_metric(f"{code}:broken").value(x, y)
    with pytest.raises(NumericsError, match="gave nan"):
        load_metric(f"{code}:empty").value(x, y)
