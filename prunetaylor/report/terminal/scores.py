"""The result of ``score`` as tables that fit 80 columns: how far a network can be pruned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from prunetaylor.report.formats import number, percent, shorten
from prunetaylor.report.terminal.run import BRIEF
from prunetaylor.report.terminal.tables import new_table, print_list

if TYPE_CHECKING:
    from prunetaylor.core.results.scores import LayerScore, ScoreLevel, Scores

_NAME_WIDTH = 26


def print_scores(console: Console, scores: Scores, *, verbose: bool = False, known_choices: Iterable[str] = ()) -> None:
    """Print the levels, how far to trust them, and the layers.

    ``verbose`` prints every layer; choices in ``known_choices`` have been read already and are left out.
    """
    console.print(f"change of the error ({scores.error})", style="bold")
    console.print(_levels(scores.levels))
    console.print()
    console.print(Text(verdict(scores)))
    layers = scores.layers
    # The levels at which layers are looked at one by one; the JSON has the sparsities at all of them.
    shown = [i for i, change in enumerate(layers[0].predicted_changes) if change is not None]
    if not verbose and shown and len(layers) > BRIEF:
        layers = sorted(layers, key=lambda one: -(one.predicted_changes[shown[-1]] or 0.0))[:BRIEF]
    for title, cell in (("sparsity of each layer", _sparsity), ("predicted change by each layer's part alone", _part)):
        console.print()
        console.print(title, style="bold")
        lines = new_table("layer", *(f"at {scores.levels[i].sparsity:.0%}" for i in shown))
        for layer in layers:
            lines.add_row(shorten(layer.name, _NAME_WIDTH), *(cell(layer, i) for i in shown))
        console.print(lines)
    if len(layers) < len(scores.layers):
        console.print(f"and {len(scores.layers) - len(layers)} more layers (-v shows all; so does --json)", style="dim")
    known = set(known_choices)
    print_list(console, "automatic choices", [choice for choice in scores.choices if choice not in known])
    print_list(console, "skipped", [f"{one.name}: {one.why}" for one in scores.skipped])


def verdict(scores: Scores) -> str:
    """Return how far the table can be trusted, and what it does not show."""
    beyond = [level.sparsity for level in scores.levels if not level.trusted]
    if not scores.levels:
        return "The network already has more zero weights than any of the sparsities would remove."
    if not beyond:
        text = f"The model is right within a factor of two up to {scores.levels[-1].sparsity:.0%}."
    elif scores.trusted_to is None:
        text = f"The model is wrong by more than a factor of two from {beyond[0]:.0%} on: do not rely on it."
    else:
        text = (
            f"The model is right within a factor of two up to {scores.trusted_to:.0%}; "
            f"from {beyond[0]:.0%} on it is not reliable."
        )
    moved = {
        **dict.fromkeys(("least-squares", "obs"), ", with the kept weights adjusted"),
        "batch-norm": ", before the repair of batch-norm statistics",
    }.get(scores.repair, "")
    return (
        f"{text} Each row is one step of {scores.method} from the dense weights{moved}, on {scores.held_out:,} samples "
        "that were not fitted. `prunetaylor prune` works in stages and repairs after each: its "
        "results are better than these numbers, especially at high sparsity."
    )


def _levels(levels: Iterable[ScoreLevel]) -> object:
    lines = new_table("sparsity", "predicted", "measured", "gain ratio", "class changed", "reliable")
    for level in levels:
        changed = "-" if level.changed_classes is None else percent(level.changed_classes)
        changes = (number(level.predicted_change, 3), number(level.measured_change, 3), number(level.gain_ratio, 3))
        lines.add_row(f"{level.sparsity:.0%}", *changes, changed, "yes" if level.trusted else "no")
    return lines


def _sparsity(layer: LayerScore, level: int) -> str:
    return f"{layer.sparsities[level]:.1%}"


def _part(layer: LayerScore, level: int) -> str:
    return number(layer.predicted_changes[level], 3)
