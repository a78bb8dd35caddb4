"""The output of ``prunetaylor sweep``: the table, JSON or CSV, the page, the plot, and the best configuration."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prunetaylor.core.errors import OutputError, TrialsFailed, UsageError
from prunetaylor.pipeline.files.run_folder import HTML_FILE

from ..terminal.console import console, say, say_json, say_lines, say_path
from .sweep_target import command_to_continue

if TYPE_CHECKING:
    from prunetaylor.core.results.sweep import SweepResult, Trial
    from prunetaylor.sweep.definition import Sweep
    from prunetaylor.sweep.engine_context import EngineFailed
    from prunetaylor.sweep.study.study import Study

DEFAULT_COST = "nonzero"
_PLOTS = ("plot.svg", "plot.png")
Format = Literal["table", "path", "json", "csv"]


@dataclass(frozen=True)
class Finish:
    """The form of a sweep's results, and the cost on the plot's axis; without a cost no file is written."""

    format: Format
    cost: str | None


def finish(folder: Path, storage: str | None, finish: Finish, engine_failure: EngineFailed | None = None) -> None:
    """Print the results of a sweep, and write its files.

    Raises:
        TrialsFailed: trials failed, or never ran as the sweep stopped before, perhaps by ``engine_failure``.
        OutputError: a file could not be written.
    """
    from prunetaylor.sweep.folder import is_running, open_study

    study = open_study(folder, storage)
    outcome = read_outcome(study, folder)
    written: list[str] = []
    failure: OutputError | None = None
    try:
        if finish.cost:
            _write_files(study.sweep, outcome, folder, finish.cost, written)
    except OutputError as err:  # the results are printed all the same
        failure = err
    _print(outcome, folder, finish.format, written)
    never_ran = 0 if is_running(folder) else outcome.never_ran
    if outcome.failed or never_ran or engine_failure is not None:
        command = command_to_continue(folder, storage, study.sweep)
        raise _incomplete(outcome, never_ran, engine_failure, f"{command} runs them")
    if failure is not None:
        command = f"`prunetaylor sweep --show {shlex.quote(str(folder))}` writes it again"
        raise OutputError(failure.cause, command) from failure


def read_outcome(study: Study, folder: Path) -> SweepResult:
    """Return the sweep's trials as they are now, with their ranks."""
    from prunetaylor.sweep.results import outcome
    from prunetaylor.sweep.trial.files import read_alerts, read_description

    return outcome(study.sweep, folder, study.trials(), read_description(folder), read_alerts(folder))


def _print(outcome: SweepResult, folder: Path, form: Format, written: list[str]) -> None:
    from prunetaylor.sweep.results import to_csv, to_json

    if form == "json":
        say_json(to_json(outcome))
    elif form == "csv":
        say_lines(to_csv(outcome))
    elif form == "path":
        say_path(str(folder))
    else:
        from prunetaylor.report.terminal.sweep import print_sweep
        from prunetaylor.report.terminal.tables import print_list

        print_sweep(console(), outcome)
        print_list(console(), "written", written)


def _incomplete(
    outcome: SweepResult, never_ran: int, engine_failure: EngineFailed | None, continuation: str
) -> TrialsFailed:
    """Return the error of a sweep that is not complete."""
    counts = [f"{outcome.failed} failed"] if outcome.failed else []
    counts += [f"{never_ran} never ran"] if never_ran else []
    causes = [engine_failure.cause] if engine_failure is not None else []
    causes += [f"of {len(outcome.trials)} trials {' and '.join(counts)}"] if counts else []
    remedies = [engine_failure.remedy] if engine_failure is not None and engine_failure.remedy else []
    return TrialsFailed("; ".join(causes), "\n".join([*remedies, continuation]))


def _write_files(sweep: Sweep, outcome: SweepResult, folder: Path, cost: str, written: list[str]) -> None:
    """Write the best configuration, the plot and the page, and append their paths to ``written``."""
    from prunetaylor.core.files import write_text
    from prunetaylor.sweep.results import BEST, best_config

    if outcome.best is not None:
        write_text(folder / BEST, best_config(sweep, outcome.best))
        written.append(str(folder / BEST))
        try:
            written += _draw_plot(outcome, folder, cost)
        except UsageError as err:  # the other results do not depend on the plot
            say(f"note: no plot: {err.cause}; {err.remedy}", err=True)
    write_text(folder / HTML_FILE, _page(sweep, outcome, folder, cost, folder))
    written.append(str(folder / HTML_FILE))


def _page(sweep: Sweep, outcome: SweepResult, folder: Path, cost: str, home: Path) -> str:
    """Return the page of the sweep in ``folder``, with links that work from the folder ``home``."""
    from prunetaylor.report.html.sweep_page import sweep_page
    from prunetaylor.sweep.results import best_config, links, plotted_metric

    value, sign = plotted_metric(outcome)
    best = best_config(sweep, outcome.best) if outcome.best is not None else ""
    urls = links(outcome.trials, folder, home)
    return sweep_page(outcome, value=value, sign=sign, cost=cost, links=urls, best=best)


def page(folder: Path, home: Path) -> str:
    """Return the page of the sweep in ``folder``, to be written into the folder ``home``."""
    from prunetaylor.sweep.folder import open_study

    study = open_study(folder, None)
    return _page(study.sweep, read_outcome(study, folder), folder, DEFAULT_COST, home)


def _draw_plot(outcome: SweepResult, folder: Path, cost: str) -> list[str]:
    """Draw accuracy against cost, and return the files; none where no trial has both. UsageError for a useless cost."""
    from prunetaylor.report.pareto import Point, draw
    from prunetaylor.sweep.results import plotted_metric

    value, sign = plotted_metric(outcome)

    def point(trial: Trial) -> Point:
        return Point(trial.metrics[cost], trial.metrics[value], trial.interval.get(value), str(trial.number))

    known = [trial for trial in outcome.trials if value in trial.metrics]
    points = [point(trial) for trial in known if cost in trial.metrics]
    if known and (cost == value or not points):
        cause = f"{value} is already the vertical axis" if points else f"no trial has {cost}"
        raise UsageError(cause, "name another field with --cost")
    if not points:
        return []
    files = [folder / name for name in _PLOTS]
    draw(points, value=value, sign=sign, cost=cost, title=outcome.name, files=files)
    return [str(file) for file in files]
