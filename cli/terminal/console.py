"""Stdout and stderr of the commands: results, lines and errors, with colours on a terminal unless NO_COLOR is set.

Stdout is only for a command's result. Text that user code prints, by ``print``, in a thread, at exit or in a program
that it starts, goes to stderr: while a command runs, descriptor 1 is stderr, and the result goes to a duplicate of
stdout.
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
"""Maximum characters of a line: text from a file may have any length."""


_result: TextIO | None = None


def result() -> TextIO | None:
    """Return the stream of the command's result: the process's stdout, even where ``sys.stdout`` was replaced."""
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
    """Reserve stdout for this module, inside the block or, with ``to_the_end``, until the process ends."""
    global _result
    before = sys.stdout, _result
    if before[0] is None or before[1] is not None:  # there is no stdout, or it is reserved already
        yield
        return
    own = _duplicate(before[0])
    _result, sys.stdout = own or before[0], sys.stderr
    try:
        yield
        _result.flush()
    except BaseException:
        with contextlib.suppress(OSError):  # the error that ended the command matters more
            _result.flush()
        raise
    finally:
        if not to_the_end:
            sys.stdout, _result = before
            if own is not None:
                os.dup2(own.fileno(), 1)
                own.close()


def with_own_stdout(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with stdout reserved for its result."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        state = click.get_current_context().find_object(State)
        with stdout_for_results(to_the_end=state is not None and state.last):
            return command(*args, **options)

    return run


def forget_stdout() -> None:
    """Discard the rest of stdout, whose reader is gone; else Python's flush at exit would complain."""
    stream = result()
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _duplicate(stdout: TextIO) -> TextIO | None:
    """Duplicate stdout and point descriptor 1 at stderr; return None where stdout is not the process's own."""
    try:
        if stdout.fileno() != 1:
            return None
        stdout.flush()
        duplicate = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):
        return None
    return io.TextIOWrapper(
        os.fdopen(duplicate, "wb"), encoding=stdout.encoding, errors=stdout.errors, line_buffering=os.isatty(duplicate)
    )


def console(**options: Any) -> Console:
    """Return a console on stdout, or on stderr with ``stderr=True``; it ignores markup and control codes."""
    from prunetaylor.report.terminal.console import PlainConsole

    return PlainConsole(**options) if options.get("stderr") else PlainConsole(file=result(), **options)


def one_line(text: str) -> str:
    """Return the text as one line of bounded length, without control codes."""
    return neutral(text, _LONGEST)


def say(text: str, *, err: bool = False, head: str = "") -> None:
    """Print one line, after ``head``, which may be styled."""
    colour = False if os.environ.get("NO_COLOR") else None
    click.echo(head + one_line(text), file=None if err else result(), err=err, color=colour)


def say_lines(text: str) -> None:
    """Print YAML or CSV on stdout, without control codes."""
    click.echo(neutral_lines(text), file=result(), nl=False)


def say_json(document: Any, **options: Any) -> None:
    """Print the one object of ``--json``; ``options`` are those of ``json.dumps``."""
    click.echo(json.dumps(document, **{"allow_nan": False, **options}), file=result())


def say_path(path: str) -> None:
    """Print a path: byte for byte for programs, without control codes on a terminal."""
    stream = result()
    if stream is not None and stream.isatty():
        say(path)
    else:
        click.echo(os.fsencode(path), file=stream)
