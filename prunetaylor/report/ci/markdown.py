"""A verdict as Markdown, for a job's summary or a comment. Text that comes from files is escaped."""

from __future__ import annotations

import re

from prunetaylor.core.results.verdict import Verdict
from prunetaylor.report.formats import percent, shorten
from prunetaylor.report.verdict_text import allowed, conclusion, interval, shown, verdict_facts

LAYERS = 100
"""Layers that are listed, the sparsest first: a summary must stay under 60 kB."""
CLASSES = 10
_NAME = 60
_TEXT = 400
_SIGNS = {"pass": "\u2705", "fail": "\u274c", "inconclusive": "\u2754"}


def to_markdown(verdict: Verdict) -> str:
    """Return the verdict, its limits and facts, with classes and layers folded away."""
    lines = [f"### {_SIGNS[verdict.status]} prunetaylor check: {escape(conclusion(verdict))}", ""]
    lines += [f"> **warning: {escape(alert.text)}**\n" for alert in verdict.warnings]
    lines += ["| limit | measured | one-sided 95 % | allowed | verdict |", "| --- | ---: | ---: | ---: | --- |"]
    for check in verdict.checks:
        cells = (escape(check.label), shown(check.value, check), interval(check), escape(allowed(check)))
        lines.append(f"| {' | '.join(cells)} | {_SIGNS[check.status]} {check.status} |")
    lines.append("")
    lines += [f"- **{escape(check.label)}**: {escape(check.why)}" for check in verdict.checks]
    lines += ["", "| | |", "| --- | --- |"]
    lines += [f"| {escape(label)} | {escape(text)} |" for label, text in verdict_facts(verdict)]
    lines += _classes(verdict) + _layers(verdict)
    lines += ["", *(f"> {escape(note)}  " for note in verdict.notes)]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, in one line of at most 400 characters."""
    text = " ".join(shorten(text, _TEXT).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]()#|~!]|:(?=//)|(?<=www)\.)", r"\\\1", text)
    return text.replace("@", "@<!-- -->")  # a backslash does not keep it from naming somebody


def _classes(verdict: Verdict) -> list[str]:
    lost = [one for one in verdict.classes if one.lost or one.won][:CLASSES]
    if not lost:
        return []
    rows = [
        f"| {one.label} | {one.samples:,} | {one.lost:,} | {one.won:,} | {one.drop.value:.2f} pp "
        f"({one.drop.low:.2f} to {one.drop.high:.2f}) |"
        for one in lost
    ]
    head = ["| class | samples | lost | won | drop, 95 % interval |", "| ---: | ---: | ---: | ---: | ---: |"]
    return _folded(f"Classes that changed most ({len(lost)} of {len(verdict.classes)})", [*head, *rows])


def _layers(verdict: Verdict) -> list[str]:
    layers = sorted(verdict.layers, key=lambda one: -one.sparsity)[:LAYERS]
    if not layers:
        return []
    rows = [
        f"| {escape(shorten(one.name, _NAME))} | {'x'.join(map(str, one.shape))} | {one.removed:,} "
        f"| {percent(one.sparsity)} |"
        for one in layers
    ]
    head = ["| layer | shape | removed | sparsity |", "| --- | ---: | ---: | ---: |"]
    omitted = len(verdict.layers) - len(layers)
    more = f"; {omitted} layers with less sparsity are omitted" if omitted else ""
    return _folded(f"Sparsity of {len(layers)} layers{more}", [*head, *rows])


def _folded(title: str, lines: list[str]) -> list[str]:
    return ["", f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]
