"""The results of a sweep: ranks, the Pareto front, the best configuration, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prunetaylor.core import registry
from prunetaylor.core.config.describe import dump
from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.core.results.outcome import Alert
from prunetaylor.core.results.sweep import COSTS, SweepResult, Trial, field_sign
from prunetaylor.core.text import neutral
from prunetaylor.pipeline.files.run_folder import HTML_FILE
from prunetaylor.report.json_report import SCHEMA_VERSION, finite
from prunetaylor.sweep.definition import Sweep, SweepObjective
from prunetaylor.sweep.trial.files import ERROR, trial_folder

BEST = "best.yaml"
STATES = ("done", "stopped", "failed", "running", "waiting")
"""The states of a trial, in the order in which they are counted."""


def outcome(
    sweep: Sweep, folder: Path, trials: Sequence[Trial], samples: str, warnings: Sequence[Alert] = ()
) -> SweepResult:
    """Rank the trials of a sweep.

    One objective ranks them by its value. With several, the Pareto front comes first, then the front of the remaining
    trials, and so on, each sorted by the first objective. Of equal trials the one with fewer remaining weights comes
    first, then the earlier one.
    """
    finished = [trial for trial in trials if trial.state == "done"]
    ranked: list[Trial] = []
    for level, front in enumerate(fronts(finished, sweep.objectives)):
        front = sorted(front, key=lambda one: _key(one, sweep.objectives))
        ranked += [replace(t, rank=len(ranked) + i, front=level == 0) for i, t in enumerate(front, 1)]
    others = [trial for trial in trials if trial.state != "done"]
    named: list[tuple[str, str]] = [(one.name, one.goal) for one in sweep.objectives]
    best = ranked[0] if ranked else None
    every = [*ranked, *others]
    return SweepResult(sweep.name, str(folder), sweep.method, named, every, samples, best, list(warnings))


def fronts(trials: Sequence[Trial], objectives: Sequence[SweepObjective]) -> list[list[Trial]]:
    """Sort the trials into layers: first those that no other dominates, then those that only the first layer dominates,
    and so on."""
    remaining, layers = list(trials), []
    while remaining:
        front = [one for one in remaining if not any(_dominates(other, one, objectives) for other in remaining)]
        layers.append(front)
        remaining = [one for one in remaining if one not in front]
    return layers


def plotted_metric(sweep: SweepResult) -> tuple[str, int]:
    """Return the metric to plot against a cost, and 1 where a larger value is better, else -1."""
    names = [name for name, _ in sweep.objectives if name not in COSTS]
    name = (names or sweep.metrics or ["loss"])[0]
    goals = dict(sweep.objectives)
    return name, (1 if goals[name] == "maximize" else -1) if name in goals else field_sign(name)


def check_cost(name: str) -> None:
    """Raise UsageError where no trial can have such a field."""
    known = [*COSTS, *registry.names(registry.METRICS)]
    if name not in known:
        raise UsageError(f"unknown field {name!r}{close_match(name, known)}", f"one of {', '.join(known)}")


def best_config(sweep: Sweep, best: Trial) -> str:
    """Return the best trial's configuration as YAML, for ``prunetaylor prune -c``."""
    lines = dump(sweep.trial(best.number, best.parameters)).splitlines()
    value = ", ".join(f"{o.name} {v:.6g}" for o, v in zip(sweep.objectives, best.values, strict=True))
    head = f"# The best of the sweep {neutral(sweep.name)}: trial {best.number}, {value}. Use: `prunetaylor prune -c`."
    return "\n".join([head, *lines[1:]]) + "\n"


def links(trials: Sequence[Trial], folder: Path, home: Path) -> dict[int, str]:
    """Return the relative URL of each trial's report, or of its error, for a page in ``home``."""
    urls = {}
    for trial in trials:
        file = trial_folder(folder, trial.number) / (ERROR if trial.state == "failed" else HTML_FILE)
        if file.is_file():
            path = os.path.relpath(file.resolve(), home.resolve())
            urls[trial.number] = quote(Path(path).as_posix().encode("utf-8", "surrogateescape"))
    return urls


def to_json(sweep: SweepResult) -> dict[str, Any]:
    """Return the sweep as one JSON object, with the trials in the order of their ranks."""
    folder = Path(sweep.folder).resolve()
    best = sweep.best
    document = {
        "schema_version": SCHEMA_VERSION,
        "name": sweep.name,
        "folder": str(folder),
        "method": sweep.method,
        "metrics": [{"name": name, "goal": goal} for name, goal in sweep.objectives],
        "samples": sweep.samples,
        "warnings": [asdict(alert) for alert in sweep.warnings],
        "counts": {state: sum(t.state == state for t in sweep.trials) for state in STATES},
        "never_ran": sweep.never_ran,
        "best": None if best is None else {"trial": best.number, "reported": best.reported},
        "trials": [
            {**asdict(trial), "folder": str(trial_folder(folder, trial.number)), "error": _error(folder, trial)}
            for trial in sweep.trials
        ],
    }
    cleaned: dict[str, Any] = finite(document)
    return cleaned


def to_csv(sweep: SweepResult) -> str:
    """Return one row per trial, in the order of their ranks: rank, state, parameters, metrics."""
    keys = list(dict.fromkeys(key for trial in sweep.trials for key in trial.parameters))
    fields = list(dict.fromkeys(name for trial in sweep.trials for name in trial.metrics))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["rank", "trial", "state", "front", *map(_cell, keys), *map(_cell, fields), "threads", "cause"])
    for trial in sweep.trials:
        chosen = [_cell(trial.parameters.get(key)) for key in keys]
        measured = [trial.metrics.get(name, "") for name in fields]
        rows.writerow(
            [
                *(trial.rank or "", trial.number, trial.state, int(trial.front)),
                *(*chosen, *measured, trial.threads or "", _cell(trial.cause)),
            ]
        )
    return text.getvalue()


def _error(folder: Path, trial: Trial) -> str | None:
    return str(trial_folder(folder, trial.number) / ERROR) if trial.state == "failed" else None


def _cell(value: Any) -> Any:
    """Return a value for a CSV cell; an apostrophe keeps a spreadsheet from computing text such as ``=1+1``."""
    if value is None or isinstance(value, int | float):
        return value
    text = neutral(value if isinstance(value, str) else json.dumps(value))
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@", "|", "%")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _key(trial: Trial, objectives: Sequence[SweepObjective]) -> tuple[float, ...]:
    values = [-one.sign * value for one, value in zip(objectives, trial.values, strict=True)]
    return (*values, trial.metrics.get("nonzero", 0.0), trial.number)


def _dominates(one: Trial, other: Trial, objectives: Sequence[SweepObjective]) -> bool:
    """Return whether ``one`` is as good in every objective and better in one."""
    pairs = [(o.sign * a, o.sign * b) for o, a, b in zip(objectives, one.values, other.values, strict=True)]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
