"""The command ``prunetaylor report``: it writes the HTML page of a run or a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from prunetaylor.core.errors import PruneTaylorError, RunRefused, UsageError
from prunetaylor.core.files import write_text
from prunetaylor.core.json_file import read_json
from prunetaylor.core.text import first_line
from prunetaylor.pipeline.files.run_folder import HTML_FILE

from .support.options import examples, json_option, verbosity_options
from .terminal.console import say_json, say_path


@click.command(
    short_help="Write a run's or a sweep's report as one HTML file.",
    epilog=examples(
        "prunetaylor report runs/model-1",
        "prunetaylor report sweeps/digits-1 -o digits.html",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Output file.  [default: DIR/report.html]"
)
@json_option
@verbosity_options
def report(folder: Path, output: Path | None, as_json: bool) -> None:
    """Write the report of a run or a sweep as one self-contained HTML file.

    Runs and sweeps write their own report; this command writes it again from the files in DIR. The page works offline,
    in light and dark mode.
    """
    target = output or folder / HTML_FILE
    text = page(folder, target.parent)
    write_page(target, text, named=output is not None)
    if as_json:
        say_json({"file": str(target.resolve()), "bytes": len(text.encode())})
    else:
        say_path(str(target))


def page(folder: Path, home: Path) -> str:
    """Return the page of the run or sweep in ``folder``, to be written into the folder ``home``."""
    from prunetaylor.report.html.run_page import run_page
    from prunetaylor.sweep.folder import is_sweep

    if is_sweep(folder):
        from .support.sweep_output import page as sweep_page

        return sweep_page(folder, home)
    document = read_report(folder)
    with report_errors(folder):
        return run_page(document, folder.resolve().name)


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report.json of a run; UsageError where it is missing, RunRefused where no run wrote it."""
    from prunetaylor.pipeline.files.run_folder import REPORT

    file = folder / REPORT
    try:
        document = read_json(file)
    except OSError as err:
        raise UsageError(f"{folder} holds no finished run: {file}: {err.strerror}", "name the folder of a run") from err
    except ValueError as err:
        raise refuse_report(folder, str(err)) from err
    if not isinstance(document, dict) or document.get("schema_version") != 1:
        raise refuse_report(folder, "it has another schema_version")
    return document


@contextmanager
def report_errors(folder: Path) -> Iterator[None]:
    """Raise RunRefused for any error in this block, which shows the report of ``folder``: its content is invalid."""
    try:
        yield
    except PruneTaylorError:
        raise
    except Exception as err:
        raise refuse_report(folder, f"{type(err).__name__}: {first_line(err)}") from err


def refuse_report(folder: Path, why: str) -> RunRefused:
    """Return the error of a report.json that no run wrote, or another version."""
    return RunRefused(f"{folder}/report.json cannot be read by this version: {why}", "name the folder of a run")


def write_page(path: Path, text: str, *, named: bool) -> None:
    """Write a page; OutputError where that fails. ``named``: the user chose the path, which may then be a link."""
    write_text(path, text, named=named, remedy="name another file with -o/--output")
