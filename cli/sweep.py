"""``prunetaylor sweep``: many runs from one file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunetaylor.core.errors import CheckpointRefused, OutputError, TrialsFailed, UsageError
from prunetaylor.pipeline.files.run_folder import HTML_FILE

from .support.completion import of_words
from .support.console import say, say_json, say_lines, say_path
from .support.options import (
    State,
    config_option,
    examples,
    json_option,
    method_option,
    split_words,
    trust_option,
    verbosity_options,
    words,
)

if TYPE_CHECKING:
    from prunetaylor.core.config.code import Trust
    from prunetaylor.core.results.sweep import SweepResult, Trial
    from prunetaylor.sweep.definition import Sweep
    from prunetaylor.sweep.engine_context import EngineFailed

_PLOTS = ("plot.svg", "plot.png")
_COST = "nonzero"


@click.command(
    short_help="Run many trials from one file, and rank the results.",
    epilog=examples(
        "prunetaylor sweep configs/sweep_digits.yaml --jobs 2",
        "prunetaylor sweep model.pt -m prune.sparsity=0.5,0.7,0.9 finetune.epochs=0",
        "prunetaylor sweep sweep.yaml --worker        # help a sweep that is running",
        "prunetaylor sweep --show sweeps/digits-1 --csv",
    ),
)
@words("[SWEEP.yaml | MODEL | DIR] [KEY=VALUE]...")
@config_option
@click.option(
    "-m",
    "--vary",
    multiple=True,
    metavar="KEY=V,V",
    shell_complete=of_words,
    help="Try each of these values of a setting (with MODEL).",
)
@method_option
@click.option("-o", "--output", metavar="DIR", help="Folder of the sweep.  [default: sweeps/NAME-N]")
@click.option(
    "--engine", metavar="NAME", help="Engine that runs the trials: local, ray, slurm.  [default: the file's, or local]"
)
@click.option(
    "--jobs", metavar="N", type=click.IntRange(min=1), help="Trials at the same time.  [default: one per GPU, or 1]"
)
@click.option("--address", metavar="HOST:PORT", help="Address of a running Ray cluster (engine ray).")
@click.option(
    "--storage", metavar="URL", help="Database for the sweep's state (PostgreSQL, MySQL).  [default: a file in DIR]"
)
@click.option("--worker", is_flag=True, help="Run trials of a sweep that was started elsewhere.")
@click.option(
    "--resume", is_flag=True, help="Continue an existing sweep, or fail. (The same command continues one anyway.)"
)
@click.option("--fail-fast", is_flag=True, help="Stop starting trials after the first failure.")
@click.option("--max-failures", metavar="N", type=click.IntRange(min=1), help="Stop starting trials after N failures.")
@click.option(
    "--show",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Print the results of a sweep without running anything.",
)
@click.option(
    "--cost", metavar="FIELD", default=_COST, help="Cost on the horizontal axis of the plot.  [default: nonzero]"
)
@click.option("--csv", "as_csv", is_flag=True, help="Print one CSV row per trial on stdout.")
@json_option
@trust_option
@verbosity_options
@click.pass_obj
def sweep(
    state: State,
    words: tuple[str, ...],
    file: Path | None,
    vary: tuple[str, ...],
    method: str | None,
    output: str | None,
    engine: str | None,
    jobs: int | None,
    address: str | None,
    storage: str | None,
    worker: bool,
    resume: bool,
    fail_fast: bool,
    max_failures: int | None,
    show: Path | None,
    cost: str,
    as_csv: bool,
    as_json: bool,
    trust_code: bool,
) -> None:
    """Find the best pruned network for a budget: run `prunetaylor prune` many times and rank the results.

    SWEEP.yaml names what varies (parameters), how (method: grid, random or bayes), the objective (metric or metrics),
    and the configuration to start from (base); -m does so for MODEL without a file. Each trial is an ordinary run in
    DIR/trials. Trials are ranked on other samples than the winner is reported on. DIR gets best.yaml, for
    `prunetaylor prune -c`, and a plot of accuracy against cost.

    The same command continues a sweep that was interrupted or had failures, as does DIR in place of the file.
    """
    from prunetaylor.sweep.leader import crew_of, join, lead
    from prunetaylor.sweep.results import check_cost

    check_cost(cost)
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other", "choose one")
    if fail_fast and max_failures:
        raise UsageError("--fail-fast is --max-failures 1", "choose one")
    if worker and (fail_fast or max_failures or as_csv or as_json):
        raise UsageError("--worker only runs trials", "give these options to the command that started the sweep")
    if show is not None:
        running = [file, vary, method, output, engine, jobs, address, worker, resume, fail_fast, max_failures]
        if words or any(running):
            raise UsageError(
                "--show does not run anything",
                "give it the folder of a sweep, and no more than --csv, --json, --cost and --storage",
            )
        _finish(state, show, storage, None if as_csv or as_json else cost, as_csv, as_json)
        return
    from .support.live_table import Board

    given = words if method is None else (*words, f"prune.method={method}")
    wanted, there, trust = _wanted(given, file, vary, output, (address, trust_code))
    from prunetaylor.sweep.engine_context import EngineFailed
    from prunetaylor.sweep.file import with_engine
    from prunetaylor.sweep.folder import place

    wanted = with_engine(wanted, engine, {"jobs": jobs, "address": address})
    folder = place(wanted, there, resume=resume or worker)
    crew = crew_of(wanted, folder, storage, trust)
    with Board(folder, [one.name for one in wanted.objectives], state.verbosity) as board:
        board.note(f"{folder}: {wanted.size} trials, {wanted.method}, engine {wanted.engine['name']}")
        if wanted.ignored:
            board.note(f"{', '.join(wanted.ignored)}: left aside, as every trial is a run of prunetaylor prune")
        if wanted.base.is_set("gate") or any(one.key.startswith("gate.") for one in wanted.parameters):
            board.note("gate: trials are ranked, not judged; `prunetaylor prune` judges the best configuration")
        stopped: EngineFailed | None = None
        try:
            if worker:
                join(wanted, crew, board)
            else:
                lead(wanted, crew, board, max_failures=1 if fail_fast else max_failures)
        except EngineFailed as err:  # what was done is shown all the same
            if worker:
                raise
            stopped = err
        except BaseException as err:
            if not isinstance(err, Exception):
                board.note(f"stopped; {_again(folder, storage, wanted)} continues it")
            raise
    if not worker:
        _finish(state, folder, storage, cost, as_csv, as_json, stopped)


def _wanted(
    words: tuple[str, ...],
    file: Path | None,
    vary: tuple[str, ...],
    output: str | None,
    trusts: tuple[str | None, bool],
) -> tuple[Sweep, Path | None, Trust]:
    """The sweep that a command line means, its folder where that is said, and the code that the user trusts.

    ``trusts`` are --address and --trust-code. What a sweep's folder names the user does not: it may be somebody else's.
    """
    address, trust_code = trusts
    from prunetaylor.core.config.code import Trust, code_in
    from prunetaylor.core.config.resolve import flat, resolve
    from prunetaylor.sweep.file import of_options, read
    from prunetaylor.sweep.folder import home_of, is_sweep, stored

    first, pairs = split_words(words)
    folder = Path(output) if output else None
    if first is None and folder is not None and is_sweep(folder):
        first = str(folder)
    if first is None:
        raise UsageError("no sweep given", "name SWEEP.yaml, or MODEL with -m prune.sparsity=0.5,0.7,0.9")
    if vary:
        found = of_options(first, vary, resolve(file, os.environ, pairs, {"model.checkpoint": first}))
        return found, folder, Trust(frozenset(found.code()), trust_code)
    if file is not None:
        raise UsageError("-c can be used only with MODEL and -m", "a sweep's file names its configuration: base: FILE")
    if is_sweep(home := home_of(Path(first))):
        found = stored(home)
        again = [code_in(flat(resolve(None, {}, [pair], {})).items()) for pair in pairs]
        elsewhere = folder is not None and folder.resolve() != home.resolve()
        if elsewhere or not all(code and code <= found.code() for code in again):
            raise UsageError(f"the sweep in {home} is what it is", "start another one from the file to change anything")
        trust = Trust(frozenset(code_in(flat(resolve(None, os.environ, pairs, {})).items())), trust_code)
        trust.require(found.code(), f"the sweep in {home}")
        if not trust_code and (cluster := found.engine.get("address")) not in (None, "auto", address):
            raise CheckpointRefused(
                f"the sweep in {home} works on the cluster at {cluster!r}, which can run code here in turn",
                f"if you trust it, name it: --address {shlex.quote(str(cluster))}; or pass --trust-code",
            )
        return found, home, trust
    if Path(first).suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"{first} is not a sweep, and nothing is varied", "give values to try: -m prune.sparsity=0.5,0.7,0.9"
        )
    found = read(Path(first), os.environ, pairs)
    return found, folder, Trust(frozenset(found.code()), trust_code)


def _finish(
    state: State,
    folder: Path,
    storage: str | None,
    cost: str | None,
    as_csv: bool,
    as_json: bool,
    stopped: EngineFailed | None = None,
) -> None:
    """Print what came of a sweep, and write it if ``cost``, of the plot, is said.

    TrialsFailed where trials failed or never ran, as the sweep was stopped before, by ``stopped`` perhaps.
    """
    from prunetaylor.sweep.folder import is_led, open_study
    from prunetaylor.sweep.results import outcome, to_csv, to_json
    from prunetaylor.sweep.trial.files import alerts, described

    study = open_study(folder, storage)
    found = outcome(study.sweep, folder, study.trials(), described(folder), alerts(folder))
    written: list[str] = []
    failure: OutputError | None = None
    try:
        if cost:
            _write(study.sweep, found, folder, cost, written)
    except OutputError as err:  # the results are printed all the same
        failure = err
    if as_json:
        say_json(to_json(found))
    elif as_csv:
        say_lines(to_csv(found))
    elif state.verbosity < 0:
        say_path(str(folder))
    else:
        from prunetaylor.report.terminal.run import print_list
        from prunetaylor.report.terminal.sweep import print_sweep

        from .support.console import console

        print_sweep(console(), found)
        print_list(console(), "written", written)
    never_ran = 0 if is_led(folder) else found.never_ran
    if found.failed or never_ran or stopped is not None:
        raise _incomplete(found, never_ran, stopped, f"{_again(folder, storage, study.sweep)} runs them")
    if failure is not None:
        again = f"`prunetaylor sweep --show {shlex.quote(str(folder))}` writes it again"
        raise OutputError(failure.cause, again) from failure


def _incomplete(found: SweepResult, never_ran: int, stopped: EngineFailed | None, again: str) -> TrialsFailed:
    """How a sweep ended that is not complete."""
    counts = [f"{found.failed} failed"] if found.failed else []
    counts += [f"{never_ran} never ran"] if never_ran else []
    said = [stopped.cause] if stopped is not None else []
    said += [f"of {len(found.trials)} trials {' and '.join(counts)}"] if counts else []
    remedies = [stopped.remedy] if stopped is not None and stopped.remedy else []
    return TrialsFailed("; ".join(said), "\n".join([*remedies, again]))


def _write(sweep: Sweep, found: SweepResult, folder: Path, cost: str, written: list[str]) -> None:
    """Write the best configuration, the plot and the page; ``written`` gets the files."""
    from prunetaylor.core.files import write_text
    from prunetaylor.sweep.results import BEST, best_config

    if found.best is not None:
        write_text(folder / BEST, best_config(sweep, found.best))
        written.append(str(folder / BEST))
        try:
            written += _plot(found, folder, cost)
        except UsageError as err:  # the results are no worse for want of a plot
            say(f"note: no plot is drawn: {err.cause}; {err.remedy}", err=True)
    write_text(folder / HTML_FILE, page_of(sweep, found, folder, cost, folder))
    written.append(str(folder / HTML_FILE))


def _again(folder: Path, storage: str | None, sweep: Sweep) -> str:
    """The command that goes on with a sweep; a database's address may hold a password."""
    from prunetaylor.core.config.code import again

    words = f"{shlex.quote(str(folder))}{again(sweep.code())}"
    if cluster := sweep.engine.get("address"):
        words += f" --address {shlex.quote(str(cluster))}"
    return f"`prunetaylor sweep {words}{' --storage URL' if storage else ''}`"


def page_of(sweep: Sweep, found: SweepResult, folder: Path, cost: str, home: Path) -> str:
    """The page of the sweep in ``folder``, as it is to lie in the folder ``home``."""
    from prunetaylor.report.html.sweep_page import sweep_page
    from prunetaylor.sweep.results import accuracy, best_config, links

    value, sign = accuracy(found.objectives, found.trials)
    best = best_config(sweep, found.best) if found.best is not None else ""
    known = links(found.trials, folder, home)
    return sweep_page(found, value=value, sign=sign, cost=cost, links=known, best=best)


def page(folder: Path, home: Path) -> str:
    """The page of the sweep that is kept in ``folder``."""
    from prunetaylor.sweep.folder import open_study
    from prunetaylor.sweep.results import outcome
    from prunetaylor.sweep.trial.files import alerts, described

    study = open_study(folder, None)
    found = outcome(study.sweep, folder, study.trials(), described(folder), alerts(folder))
    return page_of(study.sweep, found, folder, _COST, home)


def _plot(found: SweepResult, folder: Path, cost: str) -> list[str]:
    """Draw accuracy against cost, if there is anything to draw; the files."""
    from prunetaylor.report.pareto import Point, draw
    from prunetaylor.sweep.results import accuracy

    value, sign = accuracy(found.objectives, found.trials)

    def point(trial: Trial) -> Point:
        return Point(trial.metrics[cost], trial.metrics[value], trial.interval.get(value), str(trial.number))

    known = [trial for trial in found.trials if value in trial.metrics]
    points = [point(trial) for trial in known if cost in trial.metrics]
    if known and (cost == value or not points):
        why = f"{value} is what it would be drawn against" if points else f"no trial has {cost}"
        raise UsageError(why, "name another field with --cost")
    if not points:
        return []
    files = [folder / name for name in _PLOTS]
    draw(points, value=value, sign=sign, cost=cost, title=found.name, files=files)
    return [str(file) for file in files]
