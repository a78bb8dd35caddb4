"""Stdout and stderr as the commands use them: colours on a terminal only, none with NO_COLOR; lines and errors."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from prunetaylor.text import neutral, neutral_lines

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST = 2000
"""Characters of a line: what comes from a file may be of any length."""


def console(**options: Any) -> Console:
    """The console on stdout, or on stderr with ``stderr=True``: nothing in a text is taken for markup or obeyed."""
    from prunetaylor.report.console import PlainConsole

    return PlainConsole(**options)


def one_line(text: str) -> str:
    """The text as one line of a bounded length that is safe to show."""
    return neutral(text, _LONGEST)


def say(text: str, *, err: bool = False, head: str = "") -> None:
    """Print one line; ``head`` may be styled, and stands before it."""
    colour = False if os.environ.get("NO_COLOR") else None
    click.echo(head + one_line(text), err=err, color=colour)


def say_lines(text: str) -> None:
    """Print text of our own form (YAML, CSV) on stdout, as it is but for what a terminal would obey."""
    click.echo(neutral_lines(text), nl=False)


def say_path(path: str) -> None:
    """Print a path: byte for byte for programs, safe to show on a terminal."""
    if sys.stdout.isatty():
        say(path)
    else:
        click.echo(os.fsencode(path))
