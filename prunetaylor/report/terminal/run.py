"""A run as tables that fit 80 columns, in a terminal and in a log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunetaylor.core.results.judgement import prediction_check, prediction_status
from prunetaylor.report.formats import (
    change,
    count,
    drop_label,
    drop_text,
    first_order,
    flipped,
    metric,
    number,
    percent,
    shorten,
    size,
)
from prunetaylor.report.terminal.tables import new_table, pairs_table, print_alerts, print_list

if TYPE_CHECKING:
    from prunetaylor.core.results.outcome import Alert, NetworkStats, PruneResult

BRIEF = 8
JUDGED = {"ok": "bold green", "caution": "bold yellow", "bad": "bold red"}
"""Styles of verdicts, by their level."""


def print_outcome(
    console: Console,
    outcome: PruneResult,
    files: Mapping[str, str],
    *,
    verbose: bool = False,
    known_choices: Iterable[str] = (),
) -> None:
    """Print the verdict, dense against pruned, the stages, the layers, the choices and the skipped layers.

    ``verbose`` prints every layer and the automatic choices; ``known_choices`` have been read already and are left out.
    """
    if outcome.verdict is not None:
        # no line ends between a number and its unit
        text = outcome.verdict.text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" pp", "\N{NO-BREAK SPACE}pp")
        console.print(Text(text, style=JUDGED[outcome.verdict.level]))
        console.print()
    console.print(_sides({"dense": outcome.dense, "pruned": outcome.pruned}, _change(outcome)))
    console.print()
    console.print(_facts(outcome, verbose))
    if outcome.stages:
        console.print()
        console.print(_stages(outcome))
        checked = prediction_check(outcome.stages)
        console.print(Text(checked.text, style="dim" if checked.level == "ok" else JUDGED[checked.level]))
    if outcome.epochs:
        console.print()
        console.print(_epochs(outcome))
    console.print()
    _print_layers(console, outcome, verbose)
    known = set(known_choices)
    if verbose:
        print_list(console, "automatic choices", [choice for choice in outcome.choices if choice not in known])
    print_list(console, "skipped layers", [f"{one.name}: {one.why}" for one in outcome.skipped])
    print_list(console, "written", files.values())


def print_side(console: Console, side: NetworkStats, warnings: Sequence[Alert] = ()) -> None:
    """Print one network's numbers, and the warnings about it."""
    console.print(_sides({"": side}, {}))
    print_alerts(console, warnings)


def _change(outcome: PruneResult) -> dict[str, str]:
    dense, pruned = outcome.dense, outcome.pruned
    cells = {
        "non-zero": f"-{percent(1 - pruned.nonzero / dense.nonzero)}" if dense.nonzero else "",
        "FLOPs, non-zero": _less(dense.flops_nonzero, pruned.flops_nonzero),
    }
    for name in dense.metrics.keys() & pruned.metrics.keys():
        before, after = dense.metrics[name], pruned.metrics[name]
        if math.isfinite(after - before):
            cells[name] = change(name, before, after)
    return cells


def _less(before: int | None, after: int | None) -> str:
    return f"-{percent(1 - after / before)}" if before and after is not None else ""


def _sides(sides: Mapping[str, NetworkStats], change: Mapping[str, str]) -> Table:
    table = new_table("", *sides, *(["change"] if change else []))
    table.show_header = any(sides)
    rows = {name: [metric(name, side.metrics.get(name)) for side in sides.values()] for name in _metric_names(sides)}
    rows |= {
        "parameters": [f"{side.parameters:,}" for side in sides.values()],
        "non-zero": [f"{side.nonzero:,}" for side in sides.values()],
        "FLOPs": [count(side.flops) for side in sides.values()],
        "FLOPs, non-zero": [count(side.flops_nonzero) for side in sides.values()],
        "file": [size(side.bytes) for side in sides.values()],
    }
    for label, cells in rows.items():
        table.add_row(label, *cells, *([change.get(label, "")] if change else []))
    return table


def _metric_names(sides: Mapping[str, NetworkStats]) -> list[str]:
    return list(dict.fromkeys(name for side in sides.values() for name in side.metrics))


def _facts(outcome: PruneResult, verbose: bool) -> Table:
    table = pairs_table()
    cut, drop, first = outcome.sparsity, outcome.drop, outcome.first_order
    table.add_row(
        "sparsity",
        f"{percent(cut.obtained)} (requested: {percent(cut.asked)}), {cut.removed:,} of {cut.prunable:,} weights, "
        f"which are {percent(cut.prunable_share)} of all parameters",
    )
    if drop is not None:
        table.add_row(drop_label(outcome.metric_description), drop_text(drop, outcome.unit))
    else:
        table.add_row("drop", "unknown: no samples to measure it on")
    if outcome.flips is not None:
        table.add_row("flips", flipped(outcome.flips))
    if first is not None:
        table.add_row("converged", first.converged)
    if first is not None and verbose:
        table.add_row(
            "first order",
            f"{percent(first.share)} of a probe's predicted change{first_order(first.kept, first.labels)}; "
            f"gradient norm {number(first.gradient_norm, 3)}, {number(first.noise_norm, 3)} from sampling alone",
        )
    table.add_row("time", f"{outcome.seconds.get('total', math.nan):.1f} s on {outcome.device}, seed {outcome.seed}")
    return table


def _stages(outcome: PruneResult) -> Table:
    table = new_table("stage", "sparsity", "predicted", "measured", "gain ratio", "since dense", "seconds")
    for i, stage in enumerate(outcome.stages, 1):
        changes = (stage.predicted_change, stage.measured_change)
        how = prediction_status(stage)
        since = number(stage.cumulative_ratio, 3) + (f" {how}" if how in ("off", "noise") else "")
        ratios = (number(stage.gain_ratio, 3), since)
        sparsity = percent(stage.sparsity) + ("" if stage.accepted else " (taken back)")
        table.add_row(str(i), sparsity, *(number(change) for change in changes), *ratios, f"{stage.seconds:.1f}")
    return table


def _epochs(outcome: PruneResult) -> Table:
    table = new_table("epoch", "sparsity", "loss", "validation", "seconds")
    for epoch in outcome.epochs:
        values = number(epoch.loss), number(epoch.validation), f"{epoch.seconds:.1f}"
        table.add_row(str(epoch.epoch), percent(epoch.sparsity), *values)
    return table


def _print_layers(console: Console, outcome: PruneResult, verbose: bool) -> None:
    layers = outcome.layers
    shown = layers if verbose or len(layers) <= BRIEF else sorted(layers, key=lambda one: -one.removed)[:BRIEF]
    table = new_table("layer", "shape", "removed", "sparsity")
    for layer in shown:
        table.add_row(
            shorten(layer.name), "x".join(map(str, layer.shape)), f"{layer.removed:,}", percent(layer.sparsity)
        )
    console.print(table)
    if len(shown) < len(layers):
        console.print(f"and {len(layers) - len(shown)} more layers (-v shows all; so does the report)", style="dim")
