"""A verdict for GitHub Actions: the job's summary, outputs for later steps, annotations.

The environment says where each of them goes: GITHUB_STEP_SUMMARY, GITHUB_OUTPUT (files to append to) and GITHUB_ACTIONS
(whether console lines are read).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prunetaylor.core.files import append_text
from prunetaylor.core.results.verdict import Check, Verdict
from prunetaylor.core.text import neutral
from prunetaylor.report.ci.markdown import to_markdown
from prunetaylor.report.verdict_text import allowed, conclusion, shown


def write_summary(verdict: Verdict, environ: Mapping[str, str]) -> None:
    """Append to the job's summary, if there is one. OutputError if it cannot be written."""
    if summary := environ.get("GITHUB_STEP_SUMMARY"):
        _append(summary, to_markdown(verdict))


def write_outputs(verdict: Verdict, environ: Mapping[str, str]) -> None:
    """Append the step's outputs, if later steps can read them. OutputError if they cannot be written."""
    if outputs := environ.get("GITHUB_OUTPUT"):
        _append(
            outputs, "".join(f"{neutral(name)}={neutral(value)}\n" for name, value in step_outputs(verdict).items())
        )


def annotate(verdict: Verdict, environ: Mapping[str, str]) -> list[str]:
    """Return a console line for each limit that does not pass; none outside of GitHub Actions."""
    if environ.get("GITHUB_ACTIONS") != "true":
        return []
    level = "error" if verdict.exit_code else "warning"
    told = [f"::{level} title=prunetaylor%3A warning::{_escape(alert.text)}" for alert in verdict.warnings]
    return told + [_annotation(check, verdict) for check in verdict.checks if check.status != "pass"]


def step_outputs(verdict: Verdict) -> dict[str, str]:
    """Return names and values that later steps may read, as plain numbers without units."""
    outputs = {"verdict": verdict.status, "exit-code": str(verdict.exit_code)}
    if verdict.drop is not None:
        outputs["drop"] = f"{verdict.drop.value:.4f}"
    for check in verdict.checks:
        name = check.name.replace("_", "-")
        outputs[f"{name}-verdict"] = check.status
        outputs[f"{name}-value"] = f"{check.value:.6g}" if check.unit != "bytes" else str(int(check.value))
    return outputs


def _annotation(check: Check, verdict: Verdict) -> str:
    """Return ``::error title=...::message``, or a warning if the check does not fail the job."""
    level = "error" if verdict.exit_code and (check.status == "fail" or verdict.status != "fail") else "warning"
    text = f"{check.label} {shown(check.value, check)}, allowed {allowed(check)}: {check.why} ({conclusion(verdict)})"
    title = f"prunetaylor: {check.label} {check.status}"
    return f"::{level} title={_escape(title, ':,')}::{_escape(text)}"


def _escape(text: str, more: str = "") -> str:
    """Escape text as GitHub does: percent signs and line ends, and in a property the characters that end it."""
    text = neutral(text, 2000)
    for sign in ("%", "\r", "\n", *more):
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def _append(path: str, text: str) -> None:
    append_text(Path(path), text, remedy="it is named by the environment (GITHUB_*)")
