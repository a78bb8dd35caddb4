"""Options that several commands share, and what they become."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prunetaylor.core.errors import UsageError

from .completion import of_setting, of_words

if TYPE_CHECKING:
    from prunetaylor.core.config.code import Trust
    from prunetaylor.core.config.resolve import Resolved

F = TypeVar("F", bound=Callable[..., Any])
_SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


@dataclass
class State:
    """What all commands and the error handler must know of a command line."""

    verbosity: int = 0  # 0 is normal, -1 quiet, 2 shows tracebacks
    remedy: str = ""  # of whatever ends the command
    arguments: tuple[str, ...] = ()  # all words of it
    last: bool = False  # whether the process ends with the command
    main: bool = True  # whether this is the process that prints and writes, of several


def words(metavar: str) -> Callable[[F], F]:
    """MODEL and KEY=VALUE, in any order."""
    return click.argument("words", cls=_Words, nargs=-1, metavar=metavar, shell_complete=of_words)


config_option = click.option(
    "-c", "--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="YAML file of settings."
)
arch_option = click.option(
    "--arch",
    metavar="SPEC",
    shell_complete=of_setting("model.arch"),
    help="The network: torchvision:NAME, timm:NAME, FILE.py:FACTORY or package.module:FACTORY.  "
    "[default: what the checkpoint names, else matched by its tensors]",
)
data_option = click.option(
    "--data",
    metavar="SPEC",
    shell_complete=of_setting("data.source"),
    help="The samples: digits, torchvision:NAME, folder:DIR, arrays:FILE.npz, FILE.py:FUNCTION or none.  "
    "[default: what the checkpoint names]",
)
method_option = click.option(
    "--method",
    metavar="NAME",
    shell_complete=of_setting("prune.method"),
    help="How weights are scored: exact_obs, obs, magnitude...; `prunetaylor config prune.method` lists all.  "
    "[default: auto]",
)
device_option = click.option(
    "--device",
    metavar="NAME",
    shell_complete=of_setting("device"),
    help="cpu, cuda, cuda:1, mps.  [default: auto, the first available of cuda, mps, cpu]",
)
seed_option = click.option("--seed", metavar="N", help="Random seed.  [default: 0]")
memory_option = click.option("--memory", metavar="SIZE", help="Maximum memory: 3GiB, 500MB.  [default: what is free]")
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print exactly one JSON object on stdout; everything else is printed on stderr.",
)
trust_option = click.option(
    "--trust-code",
    is_flag=True,
    help="Import the Python code that the checkpoint names. Use it only for files that you trust.",
)


def _set_verbosity(ctx: click.Context, param: click.Parameter, value: int) -> int:
    state = ctx.ensure_object(State)
    if value:
        if state.verbosity:
            raise UsageError("-q and -v contradict each other", "keep one of the two")
        state.verbosity = value if param.name == "verbose" else -1
    return value


def verbosity_options(function: F) -> F:
    """-q and -v; what they set is in State."""
    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_verbosity,
        help="Print errors and the result only.",
    )
    verbose = click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_set_verbosity,
        help="Print more detail; -vv adds the traceback of an error.",
    )
    return quiet(verbose(function))


def refuse_repeated(command: click.Command, ctx: click.Context, arguments: Sequence[str]) -> None:
    """UsageError where an option that takes one value is given two different ones."""
    once = [p for p in command.params if isinstance(p, click.Option) and not (p.multiple or p.is_flag or p.count)]
    for option in once:
        option.multiple = True  # for this parser, which then collects all values
    try:
        parser = command.make_parser(click.Context(command, parent=ctx, **command.context_settings))
    finally:
        for option in once:
            option.multiple = False
    try:
        given, _, _ = parser.parse_args(args=list(arguments))
    except click.UsageError:  # the command's own parser says it
        return
    for option in once:
        values = list(dict.fromkeys(given.get(str(option.name)) or ()))
        if len(values) > 1:
            name = max(option.opts, key=len)
            raise UsageError(f"{name} is given twice, as {values[0]} and as {values[1]}", "keep one of the two")


class _Model(str):
    """A word that follows ``--``: it is MODEL, whatever it looks like."""


class _Words(click.Argument):
    """The words of a command line, those after ``--`` marked as what they are."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        found: tuple[str, ...] = super().process_value(ctx, value) or ()
        state = ctx.find_object(State)
        given = () if state is None else state.arguments
        after = len(given) - given.index("--") - 1 if "--" in given else 0
        after = min(after, len(found))
        return (*found[: len(found) - after], *map(_Model, found[len(found) - after :]))


def examples(*lines: str, before: str = "") -> str:
    """The end of a command's help: paragraphs whose lines click leaves as they are."""
    shown = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
    return f"\b\n{before}\n\n{shown}" if before else shown


def is_pair(word: str) -> bool:
    """Return whether a word is KEY=VALUE: no name of a file that exists, and no word after ``--``."""
    return _SETTING.match(word) is not None and not isinstance(word, _Model) and not _exists(word)


def _exists(word: str) -> bool:
    try:
        return os.path.lexists(word)
    except ValueError:  # a null character
        return False


def split_words(given: Sequence[str]) -> tuple[str | None, list[str]]:
    """MODEL (None where there is none) and the KEY=VALUE words. ``./a=b.pt`` and what exists are files."""
    pairs = [word for word in given if is_pair(word)]
    others = [word for word in given if not is_pair(word)]
    if len(others) > 1:
        raise UsageError(
            f"unexpected argument {others[1]!r}: MODEL is {others[0]!r} already",
            "give one MODEL, then settings as KEY=VALUE, such as prune.sparsity=0.8",
        )
    return (others[0] if others else None), pairs


def read_configuration(
    given: Sequence[str], file: Path | None, flags: dict[str, str | None], *, model_needed: bool = True
) -> Resolved:
    """The resolved configuration of a command line. UsageError where MODEL is named nowhere, or is no file."""
    from prunetaylor.core.config.resolve import resolve
    from prunetaylor.network.checkpoint.paths import find_file

    model, pairs = split_words(given)
    resolved = resolve(file, os.environ, pairs, {"model.checkpoint": model, **flags})
    named = resolved.config.model.checkpoint
    if named:
        find_file(named)  # a wrong path is reported before torch is imported
    elif model_needed:
        command = click.get_current_context().command_path
        raise UsageError("no MODEL given", f"name the checkpoint: {command} model.pt (`prunetaylor demo` makes one)")
    return resolved


def trusted(resolved: Resolved, trust_code: bool) -> Trust:
    """Return the code that may be imported: what the user's own configuration names, or all with ``--trust-code``."""
    from prunetaylor.core.config.code import Trust

    return Trust.of(resolved.config.model_dump(), everything=trust_code)
