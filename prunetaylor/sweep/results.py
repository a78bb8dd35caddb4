"""What came of a sweep: ranks, the Pareto front, the best configuration, rows."""

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

from prunetaylor.core.config.describe import dump
from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.core.results.outcome import Alert
from prunetaylor.core.results.sweep import SweepResult, Trial
from prunetaylor.core.text import neutral
from prunetaylor.pipeline.files.run_folder import HTML_FILE
from prunetaylor.report.json_report import SCHEMA_VERSION, finite
from prunetaylor.sweep.definition import Objective, Sweep
from prunetaylor.sweep.trial.files import ERROR, trial_folder

BEST = "best.yaml"
COSTS = ("nonzero", "parameters", "flops", "flops_nonzero", "bytes", "seconds", "sparsity", "loss", "top1")
"""Numeric fields of every trial that a plot may be drawn against."""


def outcome(
    sweep: Sweep, folder: Path, trials: Sequence[Trial], samples: str, warnings: Sequence[Alert] = ()
) -> SweepResult:
    """The sweep with its trials ranked.

    By one objective they are ranked by its value; by several, the Pareto front comes first, then the front of what is
    left, and so on, each by the first objective. Ties go to the network with fewer weights left, then to the first.
    """
    done = [trial for trial in trials if trial.state == "done"]
    ranked: list[Trial] = []
    for level, front in enumerate(fronts(done, sweep.objectives)):
        front = sorted(front, key=lambda one: _key(one, sweep.objectives))
        ranked += [replace(t, rank=len(ranked) + i, front=level == 0) for i, t in enumerate(front, 1)]
    others = [trial for trial in trials if trial.state != "done"]
    named: list[tuple[str, str]] = [(one.name, one.goal) for one in sweep.objectives]
    best = ranked[0] if ranked else None
    every = [*ranked, *others]
    return SweepResult(sweep.name, str(folder), sweep.method, named, every, samples, best, list(warnings))


def fronts(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[list[Trial]]:
    """The trials in layers: those that no other dominates, those that only these dominate, and so on."""
    left, layers = list(trials), []
    while left:
        front = [one for one in left if not any(_dominates(other, one, objectives) for other in left)]
        layers.append(front)
        left = [one for one in left if one not in front]
    return layers


def accuracy(sweep_objectives: Sequence[tuple[str, str]], trials: Sequence[Trial]) -> tuple[str, int]:
    """The metric to hold against a cost, and 1 where more of it is better, else -1."""
    names = [name for name, _ in sweep_objectives if name in ("top1", "loss")]
    known = [name for name in ("top1", "loss") if any(name in trial.metrics for trial in trials)]
    name = (names or known or ["top1"])[0]
    return name, 1 if name == "top1" else -1


def check_cost(name: str) -> None:
    """UsageError where no trial can have such a field."""
    if name not in COSTS:
        raise UsageError(f"unknown field {name!r}{close_match(name, COSTS)}", f"one of {', '.join(COSTS)}")


def best_config(sweep: Sweep, best: Trial) -> str:
    """YAML of the best trial's configuration, ready for ``prunetaylor prune -c``."""
    lines = dump(sweep.trial(best.number, best.parameters)).splitlines()
    value = ", ".join(f"{o.name} {v:.6g}" for o, v in zip(sweep.objectives, best.values, strict=True))
    head = f"# The best of the sweep {neutral(sweep.name)}: trial {best.number}, {value}. Use: `prunetaylor prune -c`."
    return "\n".join([head, *lines[1:]]) + "\n"


def links(trials: Sequence[Trial], folder: Path, home: Path) -> dict[int, str]:
    """Addresses of the trials' reports, or of the errors of those that failed, as seen from a page in ``home``."""
    found = {}
    for trial in trials:
        file = trial_folder(folder, trial.number) / (ERROR if trial.state == "failed" else HTML_FILE)
        if file.is_file():
            way = os.path.relpath(file.resolve(), home.resolve())
            found[trial.number] = quote(Path(way).as_posix().encode("utf-8", "surrogateescape"))
    return found


def to_json(found: SweepResult) -> dict[str, Any]:
    """The sweep as one JSON object; trials in the order of their ranks."""
    folder = Path(found.folder).resolve()
    best = found.best
    said = {
        "schema_version": SCHEMA_VERSION,
        "name": found.name,
        "folder": str(folder),
        "method": found.method,
        "metrics": [{"name": name, "goal": goal} for name, goal in found.objectives],
        "samples": found.samples,
        "warnings": [asdict(alert) for alert in found.warnings],
        "counts": {state: sum(t.state == state for t in found.trials) for state in _states(found)},
        "never_ran": found.never_ran,
        "best": None if best is None else {"trial": best.number, "reported": best.reported},
        "trials": [
            {**asdict(trial), "folder": str(trial_folder(folder, trial.number)), "error": _error(folder, trial)}
            for trial in found.trials
        ],
    }
    cleaned: dict[str, Any] = finite(said)
    return cleaned


def to_csv(found: SweepResult) -> str:
    """A row a trial, in the order of their ranks: rank, state, parameters, metrics."""
    keys = list(dict.fromkeys(key for trial in found.trials for key in trial.parameters))
    fields = list(dict.fromkeys(name for trial in found.trials for name in trial.metrics))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["rank", "trial", "state", "front", *map(_cell, keys), *map(_cell, fields), "threads", "cause"])
    for trial in found.trials:
        chosen = [_cell(trial.parameters.get(key)) for key in keys]
        measured = [trial.metrics.get(name, "") for name in fields]
        rows.writerow(
            [
                *(trial.rank or "", trial.number, trial.state, int(trial.front)),
                *(*chosen, *measured, trial.threads or "", _cell(trial.cause)),
            ]
        )
    return text.getvalue()


def _states(found: SweepResult) -> list[str]:
    return ["done", "stopped", "failed", "running", "waiting"]


def _error(folder: Path, trial: Trial) -> str | None:
    return str(trial_folder(folder, trial.number) / ERROR) if trial.state == "failed" else None


def _cell(value: Any) -> Any:
    """What a cell shows: numbers as they are; a text that a spreadsheet would compute gets an apostrophe."""
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


def _key(trial: Trial, objectives: Sequence[Objective]) -> tuple[float, ...]:
    values = [-one.sign * value for one, value in zip(objectives, trial.values, strict=True)]
    return (*values, trial.metrics.get("nonzero", 0.0), trial.number)


def _dominates(one: Trial, other: Trial, objectives: Sequence[Objective]) -> bool:
    """Whether ``one`` is as good in every objective and better in one."""
    pairs = [(o.sign * a, o.sign * b) for o, a, b in zip(objectives, one.values, other.values, strict=True)]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
