"""A gate's verdict as text that fits 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from prunetaylor.core.results.verdict import Verdict
from prunetaylor.report.terminal.tables import new_table, pairs_table, print_alerts, print_list
from prunetaylor.report.verdict_text import allowed, conclusion, interval, shown, verdict_facts

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Print the limits with their measurements, the facts, the reasons, and the conclusion."""
    table = new_table("limit", "measured", "one-sided 95 %", "allowed", "verdict")
    for check in verdict.checks:
        cells = (shown(check.value, check), interval(check), allowed(check))
        table.add_row(check.label, *cells, Text(check.status, style=COLOURS[check.status]))
    console.print(table)
    console.print()
    facts = pairs_table()
    for label, text in verdict_facts(verdict):
        facts.add_row(label, text)
    console.print(facts)
    print_list(console, "why", [f"{check.label}: {check.why}" for check in verdict.checks])
    print_list(console, "notes", verdict.notes)
    print_alerts(console, verdict.warnings)
    console.print()
    console.print(Text(conclusion(verdict), style=f"bold {COLOURS[verdict.status]}"))
