"""The command ``prunetaylor inspect``: it shows the content of a checkpoint, without running any of its code."""

from __future__ import annotations

from pathlib import Path

import click

from .support.options import examples, json_option, verbosity_options
from .terminal.console import say_json


@click.command(
    short_help="Show the content of a checkpoint, without running its code.",
    epilog=examples(
        "prunetaylor inspect model.pt",
        "prunetaylor inspect runs/model-1 --json",
    ),
)
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@json_option
@verbosity_options
def inspect(model: Path, as_json: bool) -> None:
    """Show the content of a checkpoint: its form, layers, shapes, sparsity and hash.

    MODEL is a file (.pt, .pth, .safetensors...) or the folder of a run. None of its code is run; a pickled module is
    refused (exit code 5).
    """
    from prunetaylor.network.checkpoint.paths import find_checkpoint

    find_checkpoint(model)  # a wrong path is reported before torch is imported
    from prunetaylor.network.checkpoint.inspect import inspect_file

    inspection = inspect_file(model)
    if as_json:
        from prunetaylor.report.json_report import inspection_to_json

        say_json(inspection_to_json(inspection))
        return
    from prunetaylor.report.terminal.inspection import print_inspection

    from .terminal.console import console

    print_inspection(console(), inspection)
