"""A verdict in every form: aligned text, JUnit by its schema, JSON by ours, Markdown that stays small and escaped."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from prunetaylor.core.errors import OutputError
from prunetaylor.core.results.outcome import Drop, LayerResult
from prunetaylor.core.results.verdict import Verdict
from prunetaylor.report.ci.github import annotate, step_outputs, write_outputs, write_summary
from prunetaylor.report.ci.junit import to_junit
from prunetaylor.report.ci.markdown import CLASSES, LAYERS, escape, to_markdown
from prunetaylor.report.json_report import verdict_to_json
from prunetaylor.report.terminal.verdict import print_verdict
from prunetaylor.report.verdict_text import conclusion
from support.verdicts import assert_valid_json, assert_valid_junit, checks, class_drop, verdict

FAILED = verdict(checks(lost=300))
OPEN = verdict(checks(lost=70))


def shown(found: Verdict, width: int = 80) -> list[str]:
    file = io.StringIO()
    print_verdict(Console(file=file, width=width, highlight=False, markup=False, emoji=False), found)
    assert file.getvalue().isascii()
    assert "\x1b" not in file.getvalue()
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_text_is_aligned_and_fits_80_columns() -> None:
    lines = shown(verdict())
    assert max(map(len, lines)) <= 80
    rows = {line.split("  ")[0]: line for line in lines[:7]}
    assert rows["drop"].split() == ["drop", "0.40", "pp", "0.25", "to", "0.56", "<=", "0.5", "pp", "inconclusive"]
    assert rows["sparsity"].split() == ["sparsity", "80.00", "%", "-", ">=", "80", "%", "pass"]
    assert rows["size"].split() == ["size", "1.23", "MB", "-", "<=", "2.00", "MB", "pass"]
    assert rows["FLOPs"].split() == ["FLOPs", "44.00", "%", "-", "<=", "50", "%", "pass"]
    assert rows["latency ratio"].split() == ["latency", "ratio", "0.87", "0.85", "to", "0.89", "<=", "0.9", "pass"]
    text = " ".join(" ".join(lines).split())
    assert "10,000 test samples of folder:cifar (not used for pruning)" in text
    assert "60 lost, 20 won; McNemar's exact p 8.58e-06" in text
    assert "worst classes 3: 3.8 pp of 1,000, 5: 1.9 pp of 1,000" in text
    assert "samples would decide it" in text


def test_a_narrow_window_loses_nothing() -> None:
    lines = shown(FAILED, width=40)
    assert max(map(len, lines)) <= 40
    assert "\u2026" not in "".join(lines)


def test_colour_is_for_verdicts_on_a_terminal_alone() -> None:
    def colours(**how: bool) -> set[str]:
        file = io.StringIO()
        print_verdict(Console(file=file, width=80, force_terminal=True, color_system="standard", **how), FAILED)
        return set(re.findall(r"\x1b\[(?:1;)?(3\dm)", file.getvalue()))

    assert colours() == {"31m", "32m", "33m"}
    assert colours(no_color=True) == set()


@pytest.mark.parametrize(
    ("found", "settled", "status", "code"),
    [
        (verdict(checks(lost=22)[:1]), None, "pass", 0),
        (FAILED, "pass", "fail", 3),
        (OPEN, None, "inconclusive", 4),
        (OPEN, "pass", "inconclusive", 0),
        (OPEN, "warn", "inconclusive", 0),
        (OPEN, "fail", "inconclusive", 3),
    ],
)
def test_the_exit_code_and_every_form_agree(found: Verdict, settled: str | None, status: str, code: int) -> None:
    found = replace(found, on_inconclusive=settled)
    assert (found.status, found.exit_code) == (status, code)
    assert conclusion(found).startswith(f"{status}: the gate ")
    assert f"exit code {code}" in shown(found)[-1]
    document = verdict_to_json(found, {"seed": 0})
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert_valid_json(document)
    assert (document["verdict"], document["exit_code"]) == (status, code)
    junit = to_junit(found)
    assert_valid_junit(junit)
    suite = ElementTree.fromstring(junit)[0]
    assert suite.get("tests") == str(len(found.checks))
    assert (suite.get("failures") != "0") == (code != 0)
    assert len(suite.findall("testcase/failure")) == int(suite.get("failures", ""))
    assert len(suite.findall("testcase/skipped")) == int(suite.get("skipped", "")) == (settled == "warn") * 2
    assert f"exit code {code}" in to_markdown(found)
    assert step_outputs(found)["exit-code"] == str(code)


def test_a_loss_rises_in_its_own_unit() -> None:
    from prunetaylor.gate.limits import metric_drop

    check = metric_drop("loss", Drop(0.02, 0.012, 0.03), 1000, 0.025)
    found = verdict([check], metric="loss", goal="min", unit="", drop=Drop(0.02, 0.01, 0.031), flips=None, classes=[])
    text = " ".join(" ".join(shown(found)).split())
    assert "drop of loss 0.02 0.012 to 0.03 <= 0.025 inconclusive" in text
    assert "rise of loss 0.02, two-sided 95 % interval 0.01 to 0.031" in text
    assert_valid_json(verdict_to_json(found))


def test_nothing_measured_is_null_not_nan() -> None:
    document = verdict_to_json(verdict(checks()[2:3], drop=None, flips=None, classes=[], latency=None, data=None))
    assert_valid_json(document)
    assert document["drop"] is None
    broken = dict(document, verdict="maybe")
    with pytest.raises(Exception, match="'maybe' is not one of"):
        assert_valid_json(broken)


def test_the_summary_of_200_layers_and_1000_classes_is_under_60_kb() -> None:
    layers = [LayerResult("block." * 40 + str(i), (2048, 2048, 3, 3), 12_345_678, 0.9) for i in range(200)]
    classes = [class_drop(i, 50, 3, 1) for i in range(1000)]
    text = to_markdown(verdict(layers=layers, classes=classes, notes=["n" * 5000] * 5))
    assert len(text.encode()) < 60_000
    assert f"Sparsity of {LAYERS} layers; {200 - LAYERS} layers with less sparsity are omitted" in text
    assert f"Classes that changed most ({CLASSES} of 1000)" in text


HOSTILE = "</details><script>alert(1)</script>|`x`\n# [a](b) @you <img src=x>"


def test_names_from_files_are_text_and_nothing_else() -> None:
    found = verdict(
        layers=[LayerResult(HOSTILE, (1,), 1, 0.5)],
        notes=[HOSTILE],
        files={"dense": HOSTILE, "pruned": "p\x00\x1b[31m"},
        data=HOSTILE,
    )
    text = to_markdown(found)
    assert "<script>" not in text
    assert "<img" not in text
    assert text.count("</details>") == 2
    for line in text.splitlines():
        if line.startswith("| ") and "script" in line:
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            assert len(cells) in (2, 4)
    junit = to_junit(found)
    assert_valid_junit(junit)
    values = [p.get("value") for p in ElementTree.fromstring(junit).iter("property")]
    assert r"p\x00\x1b[31m" in values


@given(st.text(max_size=60))
@settings(max_examples=30, deadline=None)
def test_any_text_survives_xml_and_is_one_cell(text: str) -> None:
    found = verdict(notes=[], files={"dense": text, "pruned": "p"})
    assert_valid_junit(to_junit(found))
    escaped = escape(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)[|`*_\[\]<>]", escaped.replace("@<!-- -->", "@"))


def test_github_gets_a_summary_outputs_and_annotations(tmp_path: Path) -> None:
    summary, outputs = tmp_path / "summary.md", tmp_path / "outputs"
    summary.write_text("before\n")
    files = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs)}
    write_summary(FAILED, files)
    write_outputs(FAILED, files)
    assert annotate(FAILED, files) == []
    assert summary.read_text() == "before\n" + to_markdown(FAILED)
    lines = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    assert lines["verdict"] == "fail"
    assert lines["max-drop-verdict"] == "fail"
    assert lines["max-size-value"] == "1234567"
    assert float(lines["max-flops-value"]) == 0.44
    notes = annotate(FAILED, {"GITHUB_ACTIONS": "true"})
    assert [note.split(" title")[0] for note in notes] == ["::error", "::warning"]
    assert all("\n" not in note and "%25" in note for note in notes)
    write_summary(FAILED, {})
    write_outputs(FAILED, {})
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("settled", "level"), [(None, "error"), ("fail", "error"), ("warn", "warning")])
def test_an_annotation_is_an_error_where_the_job_fails(settled: str | None, level: str) -> None:
    notes = annotate(replace(OPEN, on_inconclusive=settled), {"GITHUB_ACTIONS": "true"})
    assert notes
    assert all(note.startswith(f"::{level} ") for note in notes)


def test_a_summary_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="GITHUB"):
        write_summary(FAILED, {"GITHUB_STEP_SUMMARY": str(tmp_path / "none" / "summary.md")})
