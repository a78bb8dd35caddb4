"""The command ``prunetaylor demo``: it trains a checkpoint to try the other commands on."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .support.options import State, examples, json_option, seed_option, verbosity_options
from .terminal.console import say, say_json


@click.command(
    short_help="Train a small network on the digits and write model.pt.",
    epilog=examples(
        "prunetaylor demo",
        "prunetaylor demo -o digits.pt --seed 1",
    ),
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path("model.pt"),
    help="Output file.  [default: model.pt]",
)
@click.option("--force", is_flag=True, help="Replace a file that `prunetaylor demo` did not write.")
@seed_option
@json_option
@verbosity_options
@click.pass_obj
def demo(state: State, output: Path, force: bool, seed: str | None, as_json: bool) -> None:
    """Train a small convolutional network on scikit-learn's 1,797 digits, in seconds on a CPU.

    The file names its network and data, so that `prunetaylor prune model.pt` needs no other argument.
    """
    from prunetaylor.core.config.resolve import resolve
    from prunetaylor.core.progress import Logged

    from .terminal.progress import reporter

    number = resolve(None, {}, [], {"seed": seed}).config.seed
    from prunetaylor.pipeline.demo import make

    with reporter(state) as shown:
        made = make(output, seed=number, force=force, progress=Logged(shown, None))
    if as_json:
        say_json({"file": str(output.resolve()), "top1": made.top1, "parameters": made.parameters})
        return
    say(f"{output}: {made.parameters:,} parameters, top-1 {made.top1:.2f} % on {made.tested:,} test digits")
    say(f"next: prunetaylor prune {shlex.quote(str(output))}")
