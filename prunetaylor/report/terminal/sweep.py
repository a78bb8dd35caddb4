"""A sweep as a table: live while it runs, ranked at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunetaylor.core.results.sweep import SweepResult, Trial
from prunetaylor.core.text import duration
from prunetaylor.report.formats import number, plain, quantity, settings, shorten
from prunetaylor.report.terminal.tables import new_table, print_alerts
from prunetaylor.report.titles import title

_VALUE_WIDTH = 24
_MARK = {"running": ">", "failed": "x", "stopped": "-", "waiting": ".", "done": ""}


def print_sweep(console: Console, sweep: SweepResult) -> None:
    """Print the ranked trials, the ranking samples, and the best trial with its result on the test samples."""
    console.print(ranked(sweep))
    if sweep.samples:
        console.print(Text(sweep.samples), style="dim")
    print_alerts(console, sweep.warnings)
    best = sweep.best
    if best is not None:
        console.print()
        words = [f"{title(name)} {quantity(name, value)}" for name, value in best.reported.items()]
        told = f": test {', '.join(words)}" if words else ""
        console.print(Text(f"best: trial {best.number} ({settings(best.parameters)}){told}"))


def ranked(sweep: SweepResult) -> Table:
    """Return a table of rank, trial, settings, objectives and cost; * marks the Pareto front."""
    keys = list(dict.fromkeys(key for trial in sweep.trials for key in trial.parameters))
    more = ["nonzero"] if "prune.sparsity" in keys else ["sparsity", "nonzero"]
    names = list(dict.fromkeys([*(name for name, _ in sweep.objectives), *sweep.metrics[:1], *more]))
    names = [name for name in names if any(name in trial.metrics for trial in sweep.trials)]
    several = len(sweep.objectives) > 1
    table = new_table(
        "rank", "trial", *(key.rpartition(".")[2] for key in keys), *map(title, names), "threads", "seconds"
    )
    for column in table.columns:
        column.no_wrap = True
    for trial in sweep.trials:
        rank = f"{trial.rank}{' *' if several and trial.front else ''}" if trial.rank else trial.state
        cells = [shorten(plain(trial.parameters.get(key, "")), _VALUE_WIDTH) for key in keys]
        cells += [quantity(name, trial.metrics.get(name)) for name in names]
        cells += [str(trial.threads or "-"), number(trial.metrics.get("seconds"), 3)]
        table.add_row(rank, str(trial.number), *cells)
    return table


def trial_table(trials: Sequence[Trial], phases: Mapping[int, str], objectives: Sequence[str], most: int) -> Table:
    """Return a table of the running, the failed and the latest finished trials, in at most ``most`` rows."""
    finished = [trial for trial in trials if trial.state == "done"]
    counts = {
        state: sum(trial.state == state for trial in trials) for state in ("done", "running", "failed", "stopped")
    }
    summary = ", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "done")
    table = new_table("trial", "", *map(title, objectives))
    remaining = time_left(trials)
    ends = "" if remaining is None else f", about {duration(remaining)} left"
    table.title, table.title_justify = f"{summary}, of {len(trials)}{ends}", "left"
    running = [trial for trial in trials if trial.state == "running"]
    failed = [trial for trial in trials if trial.state == "failed"]
    shown = [*running, *failed, *finished[::-1]][:most]
    for trial in sorted(shown, key=lambda one: one.number):
        told = (phases.get(trial.number) or "starts") if trial.state == "running" else trial.cause or ""
        cells = [quantity(name, trial.metrics.get(name)) for name in objectives]
        words = f"{_MARK[trial.state]} {settings(trial.parameters)} {told}".strip()
        table.add_row(str(trial.number), Text(words, overflow="ellipsis", no_wrap=True), *cells)
    return table


def time_left(trials: Sequence[Trial]) -> float | None:
    """Return the seconds until the last trial ends, or None before the first has finished.

    Waiting trials are expected to take as long as finished ones, with as many in parallel as now, each halfway through
    on average.
    """
    taken = [trial.metrics["seconds"] for trial in trials if trial.state == "done" and trial.metrics.get("seconds")]
    running, waiting = (sum(trial.state == state for trial in trials) for state in ("running", "waiting"))
    if not taken or not running:
        return None
    return sum(taken) / len(taken) * (waiting / running + 0.5)


def ended(trial: Trial, objectives: Sequence[str]) -> str:
    """Return one line about a trial that has ended."""
    head = f"trial {trial.number} ({settings(trial.parameters)})"
    if trial.state == "failed":
        return f"{head} failed: {trial.cause}"
    if trial.state == "stopped":
        step, value = trial.progress[-1] if trial.progress else (0, 0.0)
        return f"{head} stopped early, at step {step} with {abs(value):.4g}"
    words = [f"{title(name)} {quantity(name, trial.metrics.get(name))}" for name in objectives]
    return f"{head}: {', '.join(words)}, {number(trial.metrics.get('seconds'), 3)} s"
