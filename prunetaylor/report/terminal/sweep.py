"""A sweep as a table: live while it runs, ranked at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunetaylor.core.results.sweep import SweepResult, Trial
from prunetaylor.core.text import duration
from prunetaylor.report.terminal.run import count, new_table, number, print_alerts, shorten, size
from prunetaylor.report.titles import title

_VALUE_WIDTH = 24
_MARK = {"running": ">", "failed": "x", "stopped": "-", "waiting": ".", "done": ""}


def print_sweep(console: Console, found: SweepResult) -> None:
    """The ranked trials, the samples they are ranked on, and the best one on the samples it is reported on."""
    console.print(ranked(found))
    if found.samples:
        console.print(Text(found.samples), style="dim")
    print_alerts(console, found.warnings)
    best = found.best
    if best is not None:
        console.print()
        words = [f"{title(name)} {field(name, value)}" for name, value in best.reported.items()]
        told = f": test {', '.join(words)}" if words else ""
        console.print(Text(f"best: trial {best.number} ({chosen(best.parameters)}){told}"))


def ranked(found: SweepResult) -> Table:
    """Rank, trial, what was varied, the objectives and what the network costs; * is the Pareto front."""
    keys = list(dict.fromkeys(key for trial in found.trials for key in trial.parameters))
    more = ["top1", "nonzero"] if "prune.sparsity" in keys else ["top1", "sparsity", "nonzero"]
    names = list(dict.fromkeys([*(name for name, _ in found.objectives), *more]))
    names = [name for name in names if any(name in trial.metrics for trial in found.trials)]
    several = len(found.objectives) > 1
    table = new_table(
        "rank", "trial", *(key.rpartition(".")[2] for key in keys), *map(title, names), "threads", "seconds"
    )
    for column in table.columns:
        column.no_wrap = True
    for trial in found.trials:
        rank = f"{trial.rank}{' *' if several and trial.front else ''}" if trial.rank else trial.state
        cells = [shorten(_plain(trial.parameters.get(key, "")), _VALUE_WIDTH) for key in keys]
        cells += [field(name, trial.metrics.get(name)) for name in names]
        cells += [str(trial.threads or "-"), number(trial.metrics.get("seconds"), 3)]
        table.add_row(rank, str(trial.number), *cells)
    return table


def live(trials: Sequence[Trial], phases: Mapping[int, str], objectives: Sequence[str], most: int) -> Table:
    """Where each trial stands: what runs, what failed, and the last that are done, ``most`` rows at most."""
    done = [trial for trial in trials if trial.state == "done"]
    counts = {
        state: sum(trial.state == state for trial in trials) for state in ("done", "running", "failed", "stopped")
    }
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "done")
    table = new_table("trial", "", *map(title, objectives))
    left = time_left(trials)
    ends = "" if left is None else f", about {duration(left)} left"
    table.title, table.title_justify = f"{said}, of {len(trials)}{ends}", "left"
    running = [trial for trial in trials if trial.state == "running"]
    failed = [trial for trial in trials if trial.state == "failed"]
    shown = [*running, *failed, *done[::-1]][:most]
    for trial in sorted(shown, key=lambda one: one.number):
        told = (phases.get(trial.number) or "starts") if trial.state == "running" else trial.cause or ""
        cells = [field(name, trial.metrics.get(name)) for name in objectives]
        words = f"{_MARK[trial.state]} {chosen(trial.parameters)} {told}".strip()
        table.add_row(str(trial.number), Text(words, overflow="ellipsis", no_wrap=True), *cells)
    return table


def time_left(trials: Sequence[Trial]) -> float | None:
    """Seconds until the last trial ends, if those to come take as long as those that are done; None before the first.

    As many as run now go on at a time, and are halfway through on average.
    """
    taken = [trial.metrics["seconds"] for trial in trials if trial.state == "done" and trial.metrics.get("seconds")]
    running, waiting = (sum(trial.state == state for trial in trials) for state in ("running", "waiting"))
    if not taken or not running:
        return None
    return sum(taken) / len(taken) * (waiting / running + 0.5)


def ended(trial: Trial, objectives: Sequence[str]) -> str:
    """One line of a trial that has come to its end."""
    head = f"trial {trial.number} ({chosen(trial.parameters)})"
    if trial.state == "failed":
        return f"{head} failed: {trial.cause}"
    if trial.state == "stopped":
        step, value = trial.progress[-1] if trial.progress else (0, 0.0)
        return f"{head} stopped early, at step {step} with {abs(value):.4g}"
    words = [f"{title(name)} {field(name, trial.metrics.get(name))}" for name in objectives]
    return f"{head}: {', '.join(words)}, {number(trial.metrics.get('seconds'), 3)} s"


def chosen(parameters: Mapping[str, Any]) -> str:
    """What was varied, by the last part of each key."""
    return ", ".join(f"{key.rpartition('.')[2]}={_plain(value)}" for key, value in parameters.items())


def field(name: str, value: float | None) -> str:
    """A field of a trial's result in its own unit."""
    if value is None:
        return "-"
    if name == "top1":
        return f"{value:.2f} %"
    if name == "sparsity":
        return f"{value:.2%}".replace("%", " %")
    if name == "bytes":
        return size(int(value))
    return count(int(value)) if name in ("nonzero", "flops", "flops_nonzero", "parameters") else number(value)


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
