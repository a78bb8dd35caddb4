"""The command ``prunetaylor compare``: it shows several runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from prunetaylor.core.errors import UsageError

from .report import read_report, report_errors, write_page
from .support.options import examples, json_option, verbosity_options
from .terminal.console import say_json


@click.command(
    short_help="Show several runs side by side.",
    epilog=examples(
        "prunetaylor compare runs/model-1 runs/model-2",
        "prunetaylor compare runs/* --html runs.html",
    ),
)
@click.argument("folders", metavar="A B [C]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Also write an HTML file.")
@json_option
@verbosity_options
def compare(folders: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Show runs side by side: what each removed and lost, and the settings in which they differ.

    A, B and so on are the folders of finished runs. A note is printed where they pruned different networks or were
    measured on different samples.
    """
    if len(folders) < 2:
        raise UsageError("nothing to compare: name two runs or more", "prunetaylor compare runs/a-1 runs/a-2")
    documents = [read_report(folder) for folder in folders]
    from prunetaylor.report.comparison import compare as side_by_side
    from prunetaylor.report.html.comparison_page import compare_page
    from prunetaylor.report.terminal.comparison import print_comparison

    from .terminal.console import console

    names = _names(folders)
    for folder, name, document in zip(folders, names, documents, strict=True):
        with report_errors(folder):  # one by one, so that an error names the run
            side_by_side([name], [document])
            compare_page([name], [document])
    comparison = side_by_side(names, documents)
    if html is not None:
        write_page(html, compare_page(names, documents), named=True)
    if as_json:
        say_json(comparison)
    else:
        print_comparison(console(), comparison)


def _names(folders: tuple[Path, ...]) -> list[str]:
    """Return the names of the folders, or their paths where names are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
