"""A run's page and the comparison's: whole, small, and nothing in it but what it shows."""

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from prunetaylor.core.results.outcome import ClassDrop, Drop, LayerResult, Skipped
from prunetaylor.report.comparison import compare, differing
from prunetaylor.report.html import figures
from prunetaylor.report.html.comparison_page import compare_page
from prunetaylor.report.html.run_page import run_page
from prunetaylor.report.terminal.comparison import print_comparison
from support.documents import report

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "</title><script>alert('x')</script><img src=http://a.b/c onerror=alert(1)> $\\frac{1}{0}$ \"'&{{ 7*7 }}"


class Page(HTMLParser):
    """Elements, attributes and text, each element closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_self_contained(text: str) -> Page:
    """No script, no event, nothing fetched, every reference to something in the page, under 1 MB."""
    assert len(text.encode()) < 1_000_000
    page = Page(text)
    assert not {"script", "iframe", "object", "img", "base", "form"} & set(page.tags)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href", "action"):
            assert value == "data:," or value.removeprefix("#") in ids, (tag, value)
        assert not re.search(r"url\((?!#)", value), value
        assert all(found in ids for found in re.findall(r"url\(#([^)]*)\)", value)), value
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    return page


def test_everything_is_there() -> None:
    page = assert_self_contained(run_page(report(), "resnet20-1"))
    text = " ".join(page.text.split())
    for said in (
        "resnet20-1: 80.00 % of the weights removed",
        "-2.36 pp (-2.81 to -1.92)",
        "Of 10,000 test samples, 412 became wrong and 176 became right",
        "Gate: inconclusive, exit code 4",
        "69.00 % (taken back)",
        "head.parametrized: its weight is computed from another",
        "prunetaylor prune -c runs/resnet20-1/config.yaml -o again",
        "ab" * 32,
        "prune.sparsity",
        "layer3.2.conv2",
        "10 of 10 classes changed",
        "First-order term: 3.12 % of the change predicted for a probe, not kept",
    ):
        assert said in text, said
    assert page.tags.count("svg") == 6
    assert page.tags.count("figure") == 6


@pytest.mark.parametrize(
    ("believed", "said"),
    [
        ([True] * 6, "Prediction check: OK at every stage"),
        ([True, True, False, True, False, True], "disagree at stage 5; trust the measured accuracy only"),
        ([False] * 6, "at every stage; trust the measured accuracy only"),
        ([None] * 6, "Prediction check: nothing was predicted"),
    ],
)
def test_a_page_says_from_where_on_the_model_should_not_be_believed(believed: list[bool | None], said: str) -> None:
    usual = report()
    for stage, right in zip(usual["stages"], believed, strict=True):
        stage["believed"] = right
        if right is None:
            stage["cumulative_predicted"] = None
    assert said in " ".join(assert_self_contained(run_page(usual, "run")).text.split())


def test_without_data_stages_epochs_or_gate() -> None:
    bare = report(stages=[], epochs=[], drop=None, flips=None, classes=[], histogram=None, first_order=None, layers=[])
    bare["dense"]["metrics"] = bare["pruned"]["metrics"] = {}
    bare["gate"] = None
    page = assert_self_contained(run_page(bare, "none"))
    assert "The drop is not known" in page.text
    assert "svg" not in page.tags
    assert "Gate" not in page.text


def test_a_report_from_before_these_figures_has_its_page() -> None:
    old = report()
    for key in ("flips", "classes", "histogram", "gate"):
        del old[key]
    for stage in old["stages"]:
        del stage["metric"]
    page = assert_self_contained(run_page(old, "old"))
    assert page.tags.count("svg") == 4


def test_nothing_from_a_file_is_markup_or_mathematics() -> None:
    hostile = report(
        layers=[LayerResult(HOSTILE, (1,), 1, 0.5), LayerResult("$x^$", (1,), 1, 0.5)],
        skipped=[Skipped(HOSTILE, HOSTILE)],
        choices=[HOSTILE],
        device=HOSTILE,
        hashes={HOSTILE: HOSTILE},
    )
    hostile["configuration"] = {HOSTILE: [HOSTILE]}
    hostile["files"] = {"config": f"{HOSTILE}/config.yaml"}
    hostile["versions"] = {HOSTILE: HOSTILE}
    hostile["gate"]["checks"][0] |= {"why": HOSTILE, "label": HOSTILE}
    hostile["gate"]["verdict"] = HOSTILE
    page = assert_self_contained(run_page(hostile, HOSTILE))
    assert page.text.count("<script>alert('x')</script>") >= 8
    assert "49" not in page.text.replace("49 ", "")  # nothing was rendered twice: {{ 7*7 }} stays as it is
    assert "$x^$" in page.text


def test_a_large_network_stays_under_a_megabyte() -> None:
    layers = [LayerResult("block." * 60 + str(i), (2048, 2048, 3, 3), 12_345_678, 0.9) for i in range(1500)]
    classes = [ClassDrop(i, 50, 3, 1, Drop(4.0, -1.0, 9.0)) for i in range(1000)]
    large = report(layers=layers, classes=classes, choices=["c" * 10_000] * 20)
    large["configuration"]["model"]["args"] = {"blocks": list(range(50_000))}
    page = assert_self_contained(run_page(large, "large"))
    assert "1000 of 1000 classes changed" in page.text


@pytest.mark.parametrize(
    "drawn",
    [
        figures.sparsity_by_layer([]),
        figures.saliency(None),
        figures.predictions([]),
        figures.predictions([{"predicted_change": -1.0, "measured_change": 1.0, "accepted": True}]),
        figures.finetuning([], "top1"),
        figures.class_drops([]),
        figures.drops_of_runs(["a"], [report(drop=None)]),
    ],
)
def test_nothing_to_show_is_no_figure(drawn: str | None) -> None:
    assert drawn is None


def test_figures_take_the_pages_colours_and_keep_their_text() -> None:
    drawn = figures.predictions(report()["stages"])
    assert drawn is not None
    assert "var(--first)" in drawn
    assert "#04040" not in drawn
    assert "predicted change of the error" in drawn
    assert " width=" not in drawn.partition(">")[0]


def other() -> dict[str, Any]:
    found = report(drop=Drop(1.2, 0.9, 1.5), hashes={"checkpoint": "ab" * 32, "data": "ef" * 32})
    found["configuration"]["prune"]["sparsity"] = 0.7
    found["gate"] = None
    return found


def shown(names: list[str], documents: list[dict[str, Any]]) -> list[str]:
    file = io.StringIO()
    print_comparison(Console(file=file, width=80, highlight=False, markup=False), compare(names, documents))
    assert "\x1b" not in file.getvalue()
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_runs_side_by_side_in_80_columns() -> None:
    lines = shown(["resnet20-1", "a-run-with-a-long-name-12"], [report(), other()])
    assert max(map(len, lines)) <= 80
    heads = " ".join(" ".join(lines[:2]).split())
    for name in ("method", "top-1", "drop (95 %), pp", "FLOPs,"):
        assert name in heads
    row = "resnet20-1  obs  80.00 %  85.93 %  2.36 (1.92..2.81)  21.30 M  open"
    assert " ".join(lines[2].split()) == " ".join(row.split())
    assert "  prune.sparsity: resnet20-1 0.8, a-ru..e-12 0.7" in [re.sub(r"a-\S+12", "a-ru..e-12", x) for x in lines]
    assert "  the runs were measured on different samples (their data hashes differ)" in lines


def test_drops_of_other_metrics_have_their_units() -> None:
    shares, values = report(metric="f1"), report(metric="mse", goal="min", unit="", drop=Drop(0.02, 0.01, 0.03))
    for one, name in ((shares, "f1"), (values, "mse")):
        one["dense"]["metrics"] = one["pruned"]["metrics"] = {name: 0.5}
    lines = shown(["a", "b"], [shares, values])
    heads = " ".join(" ".join(lines[:2]).split())
    assert "metric" in heads
    assert "drop (95 %)" in heads
    assert "pp" not in heads
    assert any("2.36 pp (1.92..2.81)" in line for line in lines)
    assert any("0.02 (0.01..0.03)" in line for line in lines)
    assert [run["drop"] for run in compare(["b"], [values])["runs"]] == [
        {"value": 0.02, "low": 0.01, "high": 0.03, "unit": ""}
    ]


def test_the_comparison_in_json_and_as_a_page() -> None:
    found = compare(["a", "b"], [report(), other()])
    assert [run["drop_pp"]["value"] for run in found["runs"]] == [2.36, 1.2]
    assert found["settings"] == {"prune.sparsity": ["0.8", "0.7"]}
    assert differing([report(), report()]) == {}
    page = assert_self_contained(compare_page([HOSTILE, "$b^$"], [report(), other()]))
    assert page.tags.count("svg") == 1
    assert "prune.sparsity" in page.text
    assert page.text.count("<script>alert('x')</script>") >= 3
