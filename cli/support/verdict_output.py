"""The files of a verdict: JUnit XML, Markdown, and those of GitHub's runners."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prunetaylor.core.errors import OutputError
    from prunetaylor.core.results.verdict import Verdict


def write_for_github(verdict: Verdict) -> list[OutputError]:
    """Write the files that GitHub's environment names, and annotations to stderr, which its runner reads too.

    Returns:
        The errors of files that could not be written, to be raised after the verdict is shown.
    """
    from prunetaylor.core.errors import OutputError
    from prunetaylor.report.ci.github import annotate, write_outputs, write_summary

    errors = []
    for write in (write_summary, write_outputs):
        try:
            write(verdict, os.environ)
        except OutputError as err:
            errors.append(err)
    for line in annotate(verdict, os.environ):
        click.echo(line, err=True)
    return errors


def write_reports(verdict: Verdict, *, junit: Path | None, markdown: Path | None) -> list[OutputError]:
    """Write the verdict's files, and return the errors of those that could not be written."""
    from prunetaylor.core.errors import OutputError
    from prunetaylor.core.files import write_text
    from prunetaylor.report.ci.junit import to_junit
    from prunetaylor.report.ci.markdown import to_markdown

    errors = []
    for file, render in ((junit, to_junit), (markdown, to_markdown)):
        if file is None:
            continue
        try:
            write_text(file, render(verdict), named=True)
        except OutputError as err:
            errors.append(err)
    return errors
