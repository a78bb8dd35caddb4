"""Commands that several processes can share: who joins whom, and who starts the others."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import click

from prunetaylor.core.errors import PeerError, PruneTaylorError, UsageError
from prunetaylor.runtime.parent_process import end_with_parent
from prunetaylor.runtime.processes.place import ALIVE, Place, find

from .options import State, read_configuration

F = TypeVar("F", bound=Callable[..., Any])

_GRACE = 30.0
"""Seconds to end in once the parent is gone."""

nproc_option = click.option(
    "--nproc",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes on this machine that share the work, one per GPU; 1: this process alone.  "
    "[default: those that torchrun or srun has started, else 1]",
)


def together(command: F) -> F:
    """A command that several processes can share; it takes ``nproc`` from its command line.

    In each of them the command runs as it would alone, with its share of the samples; ``State.main`` says who prints.
    """

    @functools.wraps(command)
    def run(state: State, *args: Any, nproc: int | None, **options: Any) -> Any:
        place = None if nproc == 1 else find(os.environ)
        state.main = place is None or place.rank == 0
        if place is None:
            count = nproc or 1
            if count == 1:
                return command(state, *args, **options)
            read_configuration(options["words"], options["file"], {})  # what is wrong with it is said at once
            from .launch import launch

            return launch(state.arguments, count)
        if nproc is not None and place.by != "--nproc":
            raise _said_once(
                state,
                f"--nproc {nproc} inside of a process that {place.by} has started as one of {place.world}",
                "omit --nproc to join them, or use --nproc 1 to run this process alone",
            )
        if ALIVE in os.environ:
            end_with_parent(int(os.environ[ALIVE]), exit_code=143, grace=_GRACE)
        with _joined(place):
            return command(state, *args, **options)

    return cast(F, run)


def _said_once(state: State, cause: str, remedy: str) -> PruneTaylorError:
    """What is wrong with the command line of all processes alike, from the one that speaks for them."""
    if state.main:
        return UsageError(cause, remedy)
    return PeerError(cause, remedy, exit_code=UsageError.exit_code, silent=True)


@contextmanager
def _joined(place: Place) -> Iterator[None]:
    from prunetaylor.runtime.processes.group import joined  # torch

    with joined(place):
        yield
