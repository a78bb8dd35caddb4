"""The command ``prunetaylor sweep``: it runs many trials from one file and ranks them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunetaylor.core.errors import UsageError
from prunetaylor.pipeline.files.signals import Terminated

from .support.completion import complete_words
from .support.options import (
    State,
    config_option,
    examples,
    json_option,
    method_option,
    trust_option,
    verbosity_options,
    words,
)
from .support.sweep_output import DEFAULT_COST, Finish, Format, finish
from .support.sweep_target import SweepTarget, command_to_continue, find_sweep

if TYPE_CHECKING:
    from prunetaylor.sweep.engine_context import EngineFailed

    from .terminal.live_table import LiveTable


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
    shell_complete=complete_words,
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
    "--cost", metavar="FIELD", default=DEFAULT_COST, help="Cost on the horizontal axis of the plot.  [default: nonzero]"
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
    from prunetaylor.sweep.results import check_cost

    check_cost(cost)
    form = _format(state, as_csv, as_json)
    if show is not None:
        running = [file, vary, method, output, engine, jobs, address, worker, resume, fail_fast, max_failures]
        if words or any(running):
            raise UsageError(
                "--show does not run anything",
                "give it the folder of a sweep, and no more than --csv, --json, --cost and --storage",
            )
        finish(show, storage, Finish(form, None if as_csv or as_json else cost))
        return
    if fail_fast and max_failures:
        raise UsageError("--fail-fast is --max-failures 1", "choose one")
    if worker and (fail_fast or max_failures or as_csv or as_json):
        raise UsageError("--worker only runs trials", "give these options to the command that started the sweep")
    given = words if method is None else (*words, f"prune.method={method}")
    target = find_sweep(given, config=file, vary=vary, output=output, address=address, trust_code=trust_code)
    target = _on_engine(target, engine, jobs, address)
    folder = _prepare(target, resume=resume or worker)
    if worker:
        _run_as_worker(state, target, folder, storage)
        return
    failure = _run_as_leader(state, target, folder, storage, max_failures=1 if fail_fast else max_failures)
    finish(folder, storage, Finish(form, cost), failure)


def _format(state: State, as_csv: bool, as_json: bool) -> Format:
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other", "choose one")
    return "csv" if as_csv else "json" if as_json else "path" if state.verbosity < 0 else "table"


def _on_engine(target: SweepTarget, engine: str | None, jobs: int | None, address: str | None) -> SweepTarget:
    """Return the sweep with the engine and the options of the command line."""
    from prunetaylor.sweep.file import with_engine

    return replace(target, sweep=with_engine(target.sweep, engine, {"jobs": jobs, "address": address}))


def _prepare(target: SweepTarget, *, resume: bool) -> Path:
    from prunetaylor.sweep.folder import prepare_folder

    return prepare_folder(target.sweep, target.folder, resume=resume)


def _run_as_worker(state: State, target: SweepTarget, folder: Path, storage: str | None) -> None:
    """Run trials of a sweep that another process leads."""
    from prunetaylor.sweep.leader import make_context, run_worker

    with _display(state, target, folder, storage) as table:
        context = make_context(target.sweep, folder, storage, target.trust, target.cache_dir)
        run_worker(target.sweep, context, table)


def _run_as_leader(
    state: State, target: SweepTarget, folder: Path, storage: str | None, *, max_failures: int | None
) -> EngineFailed | None:
    """Run all trials. Return the failure of the engine, if it failed: finished trials are shown all the same."""
    from prunetaylor.sweep.engine_context import EngineFailed
    from prunetaylor.sweep.leader import make_context, run_leader

    with _display(state, target, folder, storage) as table:
        context = make_context(target.sweep, folder, storage, target.trust, target.cache_dir)
        try:
            run_leader(target.sweep, context, table, max_failures=max_failures)
        except EngineFailed as err:
            return err
    return None


@contextmanager
def _display(state: State, target: SweepTarget, folder: Path, storage: str | None) -> Iterator[LiveTable]:
    """Show a sweep while it runs: notes first, then its trials; and how to continue it if it is interrupted."""
    from .terminal.live_table import LiveTable

    sweep = target.sweep
    with LiveTable(folder, [one.name for one in sweep.objectives], state.verbosity) as table:
        table.note(f"{folder}: {sweep.size} trials, {sweep.method}, engine {sweep.engine['name']}")
        if sweep.ignored:
            table.note(f"{', '.join(sweep.ignored)}: ignored, as every trial runs prunetaylor prune")
        if sweep.base.is_set("gate") or any(one.key.startswith("gate.") for one in sweep.parameters):
            table.note("gate: trials are ranked, not judged; `prunetaylor prune` judges the best configuration")
        try:
            yield table
        except (KeyboardInterrupt, Terminated):
            table.note(f"stopped; {command_to_continue(folder, storage, sweep)} continues it")
            raise
