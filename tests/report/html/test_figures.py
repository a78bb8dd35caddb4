"""Figures show what is, at axes that a reader understands: plain ticks, no share beyond 100 %, no name upon another."""

import re
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from prunetaylor.core.results.outcome import Drop
from prunetaylor.report.html import drawing, figures
from prunetaylor.report.pareto import Point
from support.documents import report

SVG = "{http://www.w3.org/2000/svg}"


def texts(drawn: str | None) -> list[str]:
    assert drawn is not None
    return ["".join(one.itertext()) for one in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def numbers(drawn: str | None) -> list[float]:
    """The plain numbers at the ticks."""
    found = [text.replace("\u2212", "-") for text in texts(drawn)]
    return [float(text) for text in found if re.fullmatch(r"-?\d+(\.\d+)?", text)]


def perfect() -> dict[str, Any]:
    """A report in which everything touches 100 %."""
    found = report(drop=Drop(0.0, -1.0, 1.0))
    for side in ("dense", "pruned"):
        found[side]["metrics"]["top1"] = 100.0
    for stage in found["stages"]:
        stage["metric"] = 100.0
    found["stages"][-1]["sparsity"] = found["sparsity"]["obtained"] = 1.0
    for i, one in enumerate(found["epochs"]):
        one["validation"], one["sparsity"] = 100.0, (0.5, 0.9, 1.0)[i]
    for layer in found["layers"]:
        layer["sparsity"] = 1.0
    return found


def all_of(found: dict[str, Any]) -> dict[str, str | None]:
    points = [Point(1e5 * i, 100.0 - i, (99.0 - i, 100.0), str(i)) for i in range(1, 40)]
    return {
        "layers": figures.sparsity_by_layer(found["layers"]),
        "saliency": figures.saliency(found["histogram"]),
        "predictions": figures.predictions(found["stages"]),
        "metric": figures.metric_by_stage(found)[0],
        "test": figures.metric_by_stage({**found, "stages": []})[0],
        "finetuning": figures.finetuning(found["epochs"], "top1"),
        "classes": figures.class_drops(found["classes"]),
        "runs": figures.drops_of_runs(["a", "b"], [found, found]),
        "sweep": figures.accuracy_against_cost(points, value="top1", sign=1, cost="nonzero"),
        "bytes": figures.accuracy_against_cost(points, value="loss", sign=-1, cost="bytes"),
    }


@pytest.mark.parametrize("document", [report(), perfect()], ids=["usual", "perfect"])
def test_no_tick_is_raw_mathematics(document: dict[str, Any]) -> None:
    for name, drawn in all_of(document).items():
        assert not [text for text in texts(drawn) if "$" in text or "\\" in text or "mathdefault" in text], name


@pytest.mark.parametrize("name", ["layers", "metric", "test", "finetuning"])
def test_no_axis_goes_beyond_what_can_be(name: str) -> None:
    found = numbers(all_of(perfect())[name])
    assert 100 in found
    assert max(found) == 100
    assert min(found) >= 0
    assert (
        max(numbers(figures.accuracy_against_cost([Point(0.5, 100, None, "x")], value="top1", sign=1, cost="sparsity")))
        <= 100
    )


def test_a_users_own_style_of_matplotlib_changes_nothing() -> None:
    before = all_of(report())
    with matplotlib.rc_context({"axes.formatter.use_mathtext": True, "figure.facecolor": "red", "font.size": 30}):
        assert all_of(report()) == before


@pytest.mark.parametrize("ends", [(1e-7, 2e-2), (0.011, 0.09), (3e-8, 2e-7), (0.5, 1e4)])
def test_a_logarithmic_axis_has_plain_numbers(ends: tuple[float, float]) -> None:
    stage = {"predicted_change": ends[0], "measured_change": ends[1], "accepted": True}
    ticks = [text for text in texts(figures.predictions([stage])) if re.fullmatch(r"[\d.]+(e-?\d+)?", text)]
    assert len(ticks) >= 4  # two an axis at least
    assert [float(text) for text in ticks]


def test_accuracy_is_of_one_kind_of_samples_in_one_line() -> None:
    for document in (report(), report(stages=[])):
        drawn, said = figures.metric_by_stage(document)
        assert drawn is not None
        markers = re.findall(r'id="[^"]*line2d_(\d+)"', drawn)
        assert markers
        assert "legend" not in drawn
        assert ("test samples" in said) != ("calibration samples" in said)


def boxes(monkeypatch: pytest.MonkeyPatch, points: list[Point]) -> list[tuple[float, float, float, float]]:
    """Where the names really lie, in pixels, as matplotlib lays them out."""
    found: list[tuple[float, float, float, float]] = []
    usual = drawing.labels

    def look(axes: Any, names: Any) -> None:
        usual(axes, names)
        canvas = FigureCanvasAgg(axes.figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        found.extend(one.get_window_extent(renderer).extents for one in axes.texts)

    monkeypatch.setattr(figures, "labels", look)
    assert figures.accuracy_against_cost(points, value="top1", sign=1, cost="nonzero")
    return found


@pytest.mark.parametrize("spread", [0.0, 0.1, 10.0])
def test_no_name_lies_upon_another(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    points = [Point(1e4 + 997 * i % 5000, 50 + spread * (i * 7 % 11), None, str(i)) for i in range(60)]
    found = boxes(monkeypatch, points)
    assert found
    for i, one in enumerate(found):
        for other in found[:i]:
            apart = one[2] <= other[0] + 1 or other[2] <= one[0] + 1 or one[3] <= other[1] + 1 or other[3] <= one[1] + 1
            assert apart


def test_many_runs_have_a_row_each() -> None:
    names = [f"a-rather-long-name-of-a-run-{i}" for i in range(40)]
    drawn = figures.drops_of_runs(names, [report()] * 40)
    assert len({text for text in texts(drawn) if text.endswith("%)")}) == 40
