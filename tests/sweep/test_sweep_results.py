"""Ranks, fronts, the best configuration, rows and the plot."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.outcome import DENSE_AT_CHANCE, Alert
from prunetaylor.core.results.sweep import Trial
from prunetaylor.report.pareto import Point, draw, pareto
from prunetaylor.sweep.definition import SweepObjective
from prunetaylor.sweep.file import read
from prunetaylor.sweep.results import best_config, check_cost, fronts, outcome, to_csv, to_json
from prunetaylor.sweep.trial.files import SAMPLES, read_alerts, read_description, write_description

ONE = """
method: grid
metric: {name: top1}
parameters:
  prune.sparsity: {values: [0.5, 0.6, 0.7, 0.8, 0.9]}
base: {model: {checkpoint: net.pt}, prune: {stages: 3}}
"""
TWO = ONE.replace("metric: {name: top1}", "metrics: [top1, nonzero]")


def trial(number: int, top1: float, nonzero: int, *, several: bool = False) -> Trial:
    return Trial(
        number,
        "done",
        {"prune.sparsity": 0.4 + number / 10},
        {"top1": top1, "nonzero": nonzero, "seconds": 1.0},
        {"top1": (top1 - 2, top1 + 1)},
        {"top1": top1 - 1, "loss": 0.5},
        (top1, float(nonzero)) if several else (top1,),
    )


def test_by_one_objective_and_ties_by_weights(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(ONE)
    sweep = read(tmp_path / "s.yaml")
    trials = [trial(1, 90, 50), trial(2, 95, 40), trial(3, 95, 30), Trial(4, "failed", {}, cause="x"), trial(5, 80, 10)]
    found = outcome(sweep, tmp_path, trials, "halves")
    assert [(one.number, one.rank) for one in found.trials] == [(3, 1), (2, 2), (1, 3), (5, 4), (4, None)]
    assert found.best is not None
    assert found.best.number == 3
    assert found.failed == 1
    document = to_json(found)
    json.dumps(document, allow_nan=False)
    assert [one["number"] for one in document["trials"]] == [3, 2, 1, 5, 4]
    assert document["counts"]["failed"] == 1
    assert document["best"] == {"trial": 3, "reported": {"top1": 94, "loss": 0.5}}
    assert document["trials"][4]["error"].endswith("trials/0004/error.txt")
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [row["trial"] for row in rows] == ["3", "2", "1", "5", "4"]
    assert rows[0]["prune.sparsity"] == "0.7"
    assert rows[4]["cause"] == "x"


def test_by_two_objectives_the_front_comes_first(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TWO)
    points = [(1, 90, 50), (2, 95, 60), (3, 89, 55), (4, 70, 10), (5, 95, 70)]
    found = outcome(read(tmp_path / "s.yaml"), tmp_path, [trial(*one, several=True) for one in points], "")
    assert [one.number for one in found.trials] == [2, 1, 4, 5, 3]
    assert [one.front for one in found.trials] == [True, True, True, False, False]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_fronts_are_what_domination_says(values: list[tuple[int, int]]) -> None:
    objectives = [SweepObjective("top1", "maximize"), SweepObjective("nonzero", "minimize")]
    trials = [trial(i, a, b, several=True) for i, (a, b) in enumerate(values)]
    layers = fronts(trials, objectives)
    assert sorted(one.number for layer in layers for one in layer) == list(range(len(values)))
    for i, layer in enumerate(layers):
        for one in layer:
            better = [
                other
                for rest in layers[i:]
                for other in rest
                if other.values[0] >= one.values[0] and other.values[1] <= one.values[1] and other.values != one.values
            ]
            assert not better


def test_the_best_configuration_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(ONE)
    sweep = read(tmp_path / "s.yaml")
    text = best_config(sweep, trial(3, 95, 30))
    (tmp_path / "best.yaml").write_text(text)
    resolved = resolve(tmp_path / "best.yaml", {}, [], {})
    assert resolved.config == sweep.trial(3, {"prune.sparsity": 0.7}).config
    assert text.startswith("# The best of the sweep s: trial 3, top1 95.")


def test_pareto_in_a_plot() -> None:
    points = [Point(10, 70, None, "a"), Point(50, 90, None, "b"), Point(50, 80, None, "c"), Point(60, 85, None, "d")]
    assert [one.name for one in pareto(points, 1, "nonzero")] == ["a", "b"]
    assert [one.name for one in pareto(points, 1, "sparsity")] == ["d", "b"]
    assert [one.name for one in pareto(points, -1, "nonzero")] == ["a"]
    assert [one.name for one in pareto(points, -1, "top1")] == ["d", "c", "a"]  # more top-1 costs less


def test_the_plot_has_every_trial_its_bars_and_the_front(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [Point(10, 70, (66, 73), "11"), Point(50, 90, (88, 91), "12"), Point(60, 85, None, "13")]
    files = [tmp_path / "p.svg", tmp_path / "p.png"]
    draw(points, value="top1", sign=1, cost="nonzero", title="a sweep", files=files)
    svg = files[0].read_text()
    assert 'id="front"' in svg
    assert len(re.findall('id="LineCollection', svg)) == 3  # one bar a point
    for word in ("<!-- 11 -->", "<!-- 12 -->", "<!-- 13 -->", "non-zero parameters", "a sweep"):
        assert word in svg
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_an_unknown_field_is_refused() -> None:
    check_cost("flops_nonzero")
    with pytest.raises(UsageError, match=r"'nonzeros'.*'nonzero'"):
        check_cost("nonzeros")


def test_doubts_about_the_dense_network_reach_the_sweeps_results(tmp_path: Path) -> None:
    alert = Alert(DENSE_AT_CHANCE, "the network is no better than guessing")
    write_description(tmp_path, "halves", [alert])
    assert (read_description(tmp_path), read_alerts(tmp_path)) == ("halves", [alert])
    (tmp_path / "s.yaml").write_text(ONE)
    found = outcome(read(tmp_path / "s.yaml"), tmp_path, [], read_description(tmp_path), read_alerts(tmp_path))
    assert to_json(found)["warnings"] == [{"key": DENSE_AT_CHANCE, "text": alert.text}]
    (tmp_path / SAMPLES).write_text('{"warnings": [{"key": 3}]}')
    assert read_alerts(tmp_path) == []
