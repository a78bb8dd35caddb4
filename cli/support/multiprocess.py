"""Commands whose work several processes share: each process joins the others, or starts them for --nproc."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from prunetaylor.core.errors import PeerError, PruneTaylorError, UsageError
from prunetaylor.runtime.parent_process import end_with_parent
from prunetaylor.runtime.processes.place import PARENT_PIPE, Place, find

from .options import State

_GRACE = 30.0
"""Seconds that a process has to end in when its parent is gone."""

nproc_option = click.option(
    "--nproc",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes on this machine that share the work, one per GPU; 1: this process alone.  "
    "[default: those that torchrun or srun has started, else 1]",
)


def run_in_processes(
    state: State, nproc: int | None, command: Callable[[], int | None], *, check: Callable[[], object]
) -> int | None:
    """Run ``command`` in this process or, as --nproc asks, in several, each with its share of the samples.

    ``State.main`` becomes True in the one process that prints and writes. ``check`` raises the errors of the command
    line before other processes are started.
    """
    place = None if nproc == 1 else find(os.environ)
    state.main = place is None or place.rank == 0
    if place is None:
        if nproc is None or nproc == 1:
            return command()
        check()
        from .launch import launch

        return launch(state.arguments, nproc)
    if nproc is not None and place.by != "--nproc":
        raise _shared_error(
            state,
            f"--nproc {nproc} inside a process that {place.by} has started as one of {place.world}",
            "omit --nproc to join them, or use --nproc 1 to run this process alone",
        )
    if PARENT_PIPE in os.environ:
        end_with_parent(int(os.environ[PARENT_PIPE]), exit_code=143, grace=_GRACE)
    with _joined(place):
        return command()


def _shared_error(state: State, cause: str, remedy: str) -> PruneTaylorError:
    """Return an error that all processes have alike, of which only the main process prints the message."""
    if state.main:
        return UsageError(cause, remedy)
    return PeerError(cause, remedy, exit_code=UsageError.exit_code, silent=True)


@contextmanager
def _joined(place: Place) -> Iterator[None]:
    from prunetaylor.runtime.processes.group import joined  # this imports torch

    with joined(place):
        yield
