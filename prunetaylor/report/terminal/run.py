"""A run as aligned text that reads well in 80 columns, in a terminal and in a log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prunetaylor.core.results.judgement import prediction_check, prediction_status
from prunetaylor.core.text import neutral

if TYPE_CHECKING:
    from prunetaylor.core.results.inspection import Inspection
    from prunetaylor.core.results.outcome import Alert, Flips, NetworkStats, PruneResult

_NAME_WIDTH = 34
_LINE = 2000
BRIEF = 8
JUDGED = {"ok": "bold green", "caution": "bold yellow", "bad": "bold red"}
"""Styles of verdicts, by their level."""


def print_outcome(
    console: Console, outcome: PruneResult, files: Mapping[str, str], *, verbose: bool = False, said: Iterable[str] = ()
) -> None:
    """The verdict, dense against pruned, the stages, the layers, and what was chosen or left alone.

    ``verbose`` shows every layer; ``said`` are the choices that the user has read already.
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
    heard = set(said)
    if verbose:
        print_list(console, "automatic choices", [choice for choice in outcome.choices if choice not in heard])
    print_list(console, "skipped layers", [f"{one.name}: {one.why}" for one in outcome.skipped])
    print_list(console, "written", files.values())


def print_side(console: Console, side: NetworkStats, warnings: Sequence[Alert] = ()) -> None:
    """One network's numbers, and what is doubtful about them."""
    console.print(_sides({"": side}, {}))
    print_alerts(console, warnings)


def print_alerts(console: Console, warnings: Iterable[Alert]) -> None:
    """Each warning in red, after an empty line."""
    for alert in warnings:
        console.print()
        console.print(Text(f"warning: {alert.text}", style="bold red"))


def print_inspection(console: Console, found: Inspection) -> None:
    """What is in a checkpoint: its form, what it says of itself, and every tensor."""
    facts = pairs_table()
    for label, value in inspection_facts(found):
        facts.add_row(label, value)
    console.print(facts)
    console.print()
    table = new_table("tensor", "shape", "type", "non-zero", "zeros")
    for tensor in found.tensors:
        note = f"same as {shorten(tensor.tied_to)}" if tensor.tied_to else percent(tensor.sparsity)
        name, cells = shorten(tensor.name), (tensor.dtype, f"{tensor.nonzero:,}", note)
        table.add_row(name, "x".join(map(str, tensor.shape)) or "scalar", *cells)
    console.print(table)
    bad = [f"{t.name}: {t.nonfinite:,} values are NaN or infinite" for t in found.tensors if t.nonfinite]
    print_list(console, "not finite", bad)
    print_list(console, "notes", found.notes)


def inspection_facts(found: Inspection) -> list[tuple[str, str]]:
    """Label and value of everything that stands above the table of tensors; what is empty is left out."""
    said = found.metadata
    facts = [
        ("path", str(found.path)),
        ("form", f"{found.form} ({found.container})" if found.container != found.form else found.form),
        ("file", size(found.bytes)),
        ("sha256", found.sha256),
        ("prefix removed", found.prefix_removed),
        ("tensors", f"{len(found.tensors):,} with {found.elements:,} values, {percent(found.sparsity)} of them zeros"),
    ]
    if said is None:
        facts.append(("says", "nothing of its network or data"))
    else:
        facts += [("network", said.arch or ""), ("arguments", _flat(said.args)), ("data", _flat(said.data))]
        facts.append(("removed", _removed(said.masks)))
    return [(label, value) for label, value in facts if value]


def _removed(masks: Mapping[str, Mapping[str, int]]) -> str:
    size, kept = (sum(mask.get(key, 0) for mask in masks.values()) for key in ("size", "kept"))
    return f"{size - kept:,} of {size:,} prunable weights ({percent(1 - kept / size)})" if size else ""


def number(value: float | None, digits: int = 4) -> str:
    """``digits`` significant ones; a dash for what is not known."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def count(value: int | None) -> str:
    """1,234 up to a million, then 1.23 M and so on; a dash for what is not known."""
    if value is None:
        return "-"
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:,}"


def size(value: int) -> str:
    """Bytes in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value} B"


def flipped(flips: Flips) -> str:
    """What the pruned network lost and won, and how likely so uneven a split is by chance."""
    return f"{flips.lost:,} lost, {flips.won:,} won; McNemar's exact p {number(flips.mcnemar_p, 3)}"


def percent(fraction: float) -> str:
    """A fraction in percent with two digits after the point."""
    return f"{100 * fraction:.2f} %"


def shorten(name: str, width: int = _NAME_WIDTH) -> str:
    """A name in one line of at most ``width`` characters: the ends of a long one tell it from its neighbours."""
    name = neutral(name, _LINE)
    if len(name) <= width:
        return name
    tail = width * 2 // 3
    return f"{name[: width - tail - 2]}..{name[-tail:]}"


def _change(outcome: PruneResult) -> dict[str, str]:
    dense, pruned = outcome.dense, outcome.pruned
    change = {
        "non-zero": f"-{percent(1 - pruned.nonzero / dense.nonzero)}" if dense.nonzero else "",
        "FLOPs, non-zero": _less(dense.flops_nonzero, pruned.flops_nonzero),
    }
    for name in dense.metrics.keys() & pruned.metrics.keys():
        difference = pruned.metrics[name] - dense.metrics[name]
        if math.isfinite(difference):
            digits, unit = (2, " pp") if name == "top1" else (4, "")
            change[name] = f"{round(difference, digits) + 0.0:+.{digits}f}{unit}"  # + 0.0: there is no -0.00
    return change


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


def metric(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.2f} %" if name == "top1" else f"{value:.4f}"


def _facts(outcome: PruneResult, verbose: bool) -> Table:
    table = pairs_table()
    cut, drop, first = outcome.sparsity, outcome.drop, outcome.first_order
    table.add_row(
        "sparsity",
        f"{percent(cut.obtained)} (asked: {percent(cut.asked)}), {cut.removed:,} of {cut.prunable:,} weights",
    )
    if drop is not None:
        table.add_row("drop", f"{drop.value:.2f} pp, 95 % interval {drop.low:.2f} to {drop.high:.2f} pp")
    if outcome.loss_rise is not None and (drop is None or outcome.metric == "loss"):
        value, low, high = (number(x) for x in astuple(outcome.loss_rise))
        table.add_row("rise of loss", f"{value}, 95 % interval {low} to {high}")
    elif drop is None:
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


def first_order(kept: bool, labels: bool) -> str:
    """What became of the error with labels' first-order term; ``labels``: whether that error was gone by."""
    if not labels:
        return " with labels, which are not used"
    return ", kept" if kept else ", not kept"


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


def print_list(console: Console, title: str, lines: Iterable[str]) -> None:
    lines = [neutral(line, _LINE) for line in lines]
    if not lines:
        return
    console.print()
    console.print(title, style="bold")
    for line in lines:
        # a path must stay in one piece; prose is wrapped
        if " " in line:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        else:
            console.print(Text(f"  {line}"), soft_wrap=True)


def new_table(first: str, *others: str, padding: int = 3) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, padding, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        # a window that is too narrow breaks numbers, and loses none
        justify: JustifyMethod = "left" if name in ("shape", "type", "verdict") else "right"
        table.add_column(name, justify=justify, overflow="fold")
    return table


def pairs_table() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _flat(mapping: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in mapping.items())
