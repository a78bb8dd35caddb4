"""Whatever a file says is shown and never obeyed, by every renderer there is: a new one is found and tried as well."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import inspect
import io
import pkgutil
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from torch import nn

import prunetaylor.report
from prunetaylor.core.results.inspection import CheckpointMetadata, Inspection, TensorInfo
from prunetaylor.core.results.outcome import (
    Alert,
    FirstOrder,
    Judgement,
    LayerResult,
    NetworkStats,
    PruneResult,
    Skipped,
)
from prunetaylor.core.results.scores import LayerScore, ScoreLevel, Scores
from prunetaylor.core.results.sweep import SweepResult, Trial
from prunetaylor.core.results.verdict import Verdict
from prunetaylor.report.ci.github import annotate, step_outputs, write_outputs
from prunetaylor.report.terminal.console import PlainConsole
from prunetaylor.sweep.results import to_csv
from support.documents import report
from support.verdicts import assert_valid_junit, verdict

EVIL = [
    "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "[bold red]x[/bold red][link=https://e.vil]y[/link]:smile:",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</svg></style></title><script>alert(1)</script>",
    "`|`\n| a | b |\n# head @team [a](javascript:b)",
    "x\r\n::error::forged\n##[add-mask]y ##vso[task.setvariable variable=PATH]z",
    "\u202egnp.exe\u2066\u200b\u2028\ud800\x00\x7f",
    "=cmd|' /C calc'!A0",
    "$\\frac{1}{0}$ {{ 7*7 }} {% raw %}",
    'a" onload="alert(1)" x="',
]
_KEPT = {"status", "unit", "on_inconclusive", "goal", "level", "state", "schema_version"}
"""Fields that hold one of a few words; a report that has others there is refused."""
_OWN_KEYS = {"metrics", "hashes", "configuration", "versions", "files"}
"""Mappings whose keys are a file's words too."""


def evil_json(value: Any, text: str, key: str = "") -> Any:
    if isinstance(value, dict):
        own = key in _OWN_KEYS
        return {text if own else k: evil_json(v, text, "configuration" if own else k) for k, v in value.items()}
    if isinstance(value, list):
        return [evil_json(one, text, key) for one in value]
    return text if isinstance(value, str) and key not in _KEPT else value


def evil(value: Any, text: str, key: str = "") -> Any:
    """The same of dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [one.name for one in dataclasses.fields(value) if one.init]
        kept = {"name"} if type(value).__name__ == "Check" else set()
        found = {name: evil(getattr(value, name), text, name) for name in names if name not in kept}
        return dataclasses.replace(value, **found)
    if isinstance(value, dict):
        return {k if key == "files" else text: evil(v, text, key) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(evil(one, text, key) for one in value)
    if isinstance(value, Path):
        return Path(text.replace("\x00", ""))
    return text if isinstance(value, str) and key not in _KEPT else value


SIDE = NetworkStats({"top1": 90.0}, 10, 5, 100, 50, 1000)
TRIALS = [
    Trial(1, "done", {"prune.method": "x"}, {"top1": 90.0, "nonzero": 5.0, "seconds": 1.0}, rank=1, values=(90.0,)),
    Trial(2, "failed", {"prune.method": "x"}, cause="x", worker="x"),
    Trial(3, "running", {"prune.method": "x"}),
]


def samples(text: str) -> dict[str, Any]:
    """A value for every type that a renderer takes, its strings all ``text``."""
    document = evil_json(report(), text)
    document["verdict"] = {"level": "bad", "text": text}
    document["warnings"] = [{"key": text, "text": text}]
    first = FirstOrder(0.1, 0.2, 0.1, kept=False, labels=True)
    outcome = PruneResult(
        nn.Linear(1, 1),
        {},
        text,
        "max",
        "%",
        evil(SIDE, text),
        evil(SIDE, text),
        _sparsity(),
        None,
        [],
        first,
        [LayerResult(text, (1,), 1, 0.5)],
        [Skipped(text, text)],
        [],
        [text],
        {"total": 1.0},
        0,
        text,
        {text: text},
        warnings=[Alert(text, text)],
        verdict=Judgement("bad", text),
    )
    layer = LayerScore(text, (1,), [0.5], [0.1])
    level = ScoreLevel(0.5, 1, 0.1, 0.1, 1.0, 0.1, True)
    scores = Scores(
        text, text, text, 2, [level], [layer], 0.5, 10, first, [Skipped(text, text)], [text], 1.0, 0, text, {text: text}
    )
    trials = [evil(one, text) for one in TRIALS]
    best = dataclasses.replace(trials[0], reported={text: 1.0})
    sweep = SweepResult(text, text, text, [(text, "maximize")], trials, text, best)
    info = TensorInfo(text, (1,), text, 1, 1, 1, text)
    return {
        "PruneResult": outcome,
        "Scores": scores,
        "Verdict": evil(verdict(warnings=[Alert("x", "x")]), text),
        "SweepResult": sweep,
        "Inspection": _inspection(info, text),
        "NetworkStats": evil(SIDE, text),
        "Document": document,
        "Mapping[str, Any]": document,
        "Mapping[str, str]": {"model": text},
        "Sequence[Document]": [document, document],
        "Sequence[Trial]": trials,
        "Mapping[int, str]": {},
        "Mapping[int, phase]": {},
        "Sequence[str]": [text, text],
        "Iterable[str]": [text],
        "Iterable[Alert]": [Alert(text, text)],
        "Sequence[Alert]": [Alert(text, text)],
        "str": text,
    }


def _sparsity() -> Any:
    from prunetaylor.core.results.outcome import Sparsity

    return Sparsity(0.5, 0.5, 2, 1, 1.0)


def _inspection(info: TensorInfo, text: str) -> Inspection:
    metadata = CheckpointMetadata(
        **{one.name: _metadata_field(one, text) for one in dataclasses.fields(CheckpointMetadata) if one.init}
    )
    usual: dict[str, Any] = {"tensors": [info], "notes": [text], "metadata": metadata, "path": Path("x")}
    given = {}
    for one in dataclasses.fields(Inspection):
        if one.init:
            given[one.name] = usual.get(one.name, text if "str" in str(one.type) else 1)
    return Inspection(**given)


def _metadata_field(one: Any, text: str) -> Any:
    kind = str(one.type)
    if kind.startswith(("dict", "Mapping")):
        return {}
    return text if kind.startswith("str") else None


def renderers() -> list[Callable[..., Any]]:
    """Every public function of the reports that prints to a console or makes a page or a document."""
    found = []
    for module in pkgutil.walk_packages(prunetaylor.report.__path__, "prunetaylor.report."):
        room = importlib.import_module(module.name)
        for name, function in inspect.getmembers(room, inspect.isfunction):
            if function.__module__ != module.name or name.startswith("_"):
                continue
            prints = any("Console" in str(one.annotation) for one in inspect.signature(function).parameters.values())
            writes = name.endswith("_page") or name in ("notebook",) or name.startswith("to_")
            if prints or (writes and inspect.signature(function).return_annotation == "str"):
                found.append(function)
    return found


RENDERERS = renderers()
_GIVEN = {"sweep_page": {"value": "top1", "sign": 1, "cost": "nonzero", "best": "x"}}


def rendered(function: Callable[..., Any], text: str) -> str:
    """What the function prints, on a terminal with all its colours, or returns."""
    known, file = samples(text), io.StringIO()
    console = PlainConsole(file=file, force_terminal=True, width=100, color_system="truecolor", legacy_windows=False)
    given: dict[str, Any] = {}
    for name, one in inspect.signature(function).parameters.items():
        if name in _GIVEN.get(function.__name__, {}):
            given[name] = _GIVEN[function.__name__][name]
        elif one.annotation == "Console":
            given[name] = console
        elif function.__name__ == "print_comparison" and name == "comparison":
            from prunetaylor.report.comparison import compare

            given[name] = compare([text, text + "2"], known["Sequence[Document]"])
        elif one.default is inspect.Parameter.empty:
            given[name] = known[one.annotation]  # a new type of parameter needs a sample above
        elif one.annotation == "bool":
            given[name] = True
    result = function(**given)
    return result if isinstance(result, str) else file.getvalue()


def controls(text: str) -> set[str]:
    return {c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def test_all_renderers_are_found() -> None:
    assert {one.__name__ for one in RENDERERS} >= {
        "print_outcome",
        "print_scores",
        "print_verdict",
        "print_sweep",
        "print_inspection",
        "print_comparison",
        "run_page",
        "compare_page",
        "sweep_page",
        "notebook",
        "to_junit",
        "to_markdown",
    }


@pytest.mark.parametrize("function", RENDERERS, ids=lambda one: one.__name__)
def test_nothing_is_obeyed(function: Callable[..., Any]) -> None:
    usual = rendered(function, "plain")
    for text in EVIL:
        shown = rendered(function, text)
        bare = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # the console's own colours
        assert not controls(bare), text
        assert "##[" not in bare
        assert "##vso[" not in bare
        assert not re.search(r"^\s*::[\w-]+::", bare, re.MULTILINE), text
        if function.__name__.endswith("_page") or function.__name__ == "notebook":
            assert tags(shown) == tags(usual), text
        if function.__name__ == "to_junit":
            assert_valid_junit(shown)
            assert [one.tag for one in ElementTree.fromstring(shown).iter()] == [
                one.tag for one in ElementTree.fromstring(usual).iter()
            ]
        if function.__name__ == "to_markdown":
            assert tags(shown.replace("@<!-- -->", "@")) == tags(usual), text
            assert "@team" not in shown
            assert [line.count("|") - line.count("\\|") for line in shown.splitlines()] == [
                line.count("|") for line in usual.splitlines()
            ]


def tags(text: str) -> list[str]:
    """The elements of a page but those of its drawings' geometry, which differs with the length of names."""
    found = re.findall(r"<\s*(/?[a-zA-Z!][\w-]*)", text)
    return sorted({one.lower() for one in found})


def test_markup_of_rich_is_text() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=100)
    console.print("[red]x[/red] :smile:", EVIL[1])
    assert "[red]x[/red] :smile: [bold red]x[/bold red][link=https://e.vil]y[/link]" in file.getvalue()


@pytest.mark.parametrize("text", EVIL)
def test_githubs_lines_stay_lines(text: str, tmp_path: Path) -> None:
    found: Verdict = evil(verdict(), text)
    lines = annotate(found, {"GITHUB_ACTIONS": "true"})
    assert lines
    for line in lines:
        assert not controls(line)
        assert "\n" not in line
        assert line.startswith(("::error ", "::warning "))
    write_outputs(found, {"GITHUB_OUTPUT": str(tmp_path / "out")})
    assert len((tmp_path / "out").read_text().splitlines()) == len(step_outputs(found))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " =", "|", "%"])
def test_no_cell_is_a_formula(start: str) -> None:
    text = f"{start}cmd()"
    trial = Trial(1, "failed", {"model.arch": text, text: 1}, cause=text)
    found = SweepResult("x", "x", "grid", [("top1", "maximize")], [trial], "", None)
    rows = list(csv.reader(io.StringIO(to_csv(found))))
    assert len(rows) == 2
    cells = [cell for row in rows for cell in row if "cmd" in cell]
    assert len(cells) == 3
    assert all(cell[0] in "'\\" for cell in cells)
    numbers = SweepResult("x", "x", "grid", [], [Trial(1, "done", {"a": -0.5, "b": "-1e-3"})], "", None)
    assert list(csv.reader(io.StringIO(to_csv(numbers))))[1][4:6] == ["-0.5", "-1e-3"]
