"""Stdout and stderr as the commands use them: colours on a terminal only, none with NO_COLOR; lines and errors.

Stdout is for a command's result alone. What user code prints, by ``print``, in a thread, at exit or in a program that
it starts, goes to stderr: while a command runs, descriptor 1 is stderr, and the result goes to a duplicate of stdout.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

import click

from prunetaylor.core.text import neutral, neutral_lines

from ..support.options import State

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST = 2000
"""Characters of a line: what comes from a file may be of any length."""


_result: TextIO | None = None


def result() -> TextIO | None:
    """Return the stream of the command's result: the process's stdout, whatever ``sys.stdout`` is by now."""
    return _result or sys.stdout


def result_descriptor() -> int | None:
    """Return the descriptor of ``result``, for a process that prints the result in place of this one."""
    stream = result()
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def stdout_for_results(*, to_the_end: bool) -> Iterator[None]:
    """Keep stdout for what this module prints. ``to_the_end``: until the process ends, not just this block."""
    global _result
    before = sys.stdout, _result
    if before[0] is None or before[1] is not None:  # there is no stdout, or it is kept already
        yield
        return
    own = _duplicate(before[0])
    _result, sys.stdout = own or before[0], sys.stderr
    try:
        yield
        _result.flush()
    except BaseException:
        with contextlib.suppress(OSError):  # what ended the command matters more
            _result.flush()
        raise
    finally:
        if not to_the_end:
            sys.stdout, _result = before
            if own is not None:
                os.dup2(own.fileno(), 1)
                own.close()


def with_own_stdout(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with stdout for its result alone."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        state = click.get_current_context().find_object(State)
        with stdout_for_results(to_the_end=state is not None and state.last):
            return command(*args, **options)

    return run


def forget_stdout() -> None:
    """Whoever read stdout is gone; Python's own flush at exit must not complain about it."""
    stream = result()
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _duplicate(stdout: TextIO) -> TextIO | None:
    """Return a stream on what descriptor 1 was, and point that at stderr; None where stdout is not the process's."""
    try:
        if stdout.fileno() != 1:
            return None
        stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):
        return None
    return io.TextIOWrapper(
        os.fdopen(kept, "wb"), encoding=stdout.encoding, errors=stdout.errors, line_buffering=os.isatty(kept)
    )


def console(**options: Any) -> Console:
    """The console on stdout, or on stderr with ``stderr=True``: nothing in a text is taken for markup or obeyed."""
    from prunetaylor.report.terminal.console import PlainConsole

    return PlainConsole(**options) if options.get("stderr") else PlainConsole(file=result(), **options)


def one_line(text: str) -> str:
    """The text as one line of a bounded length that is safe to show."""
    return neutral(text, _LONGEST)


def say(text: str, *, err: bool = False, head: str = "") -> None:
    """Print one line; ``head`` may be styled, and stands before it."""
    colour = False if os.environ.get("NO_COLOR") else None
    click.echo(head + one_line(text), file=None if err else result(), err=err, color=colour)


def say_lines(text: str) -> None:
    """Print text of our own form (YAML, CSV) on stdout, as it is but for what a terminal would obey."""
    click.echo(neutral_lines(text), file=result(), nl=False)


def say_json(document: Any, **layout: Any) -> None:
    """Print the one object of ``--json``."""
    click.echo(json.dumps(document, **{"allow_nan": False, **layout}), file=result())


def say_path(path: str) -> None:
    """Print a path: byte for byte for programs, safe to show on a terminal."""
    stream = result()
    if stream is not None and stream.isatty():
        say(path)
    else:
        click.echo(os.fsencode(path), file=stream)
