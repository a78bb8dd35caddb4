"""Options that several commands share, and the configuration that they give."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prunetaylor.core.errors import UsageError

from .completion import complete_setting, complete_words

if TYPE_CHECKING:
    from prunetaylor.core.config.resolve import Resolved

F = TypeVar("F", bound=Callable[..., Any])
_SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


@dataclass
class State:
    """Facts about a command line that all commands and the error handler need."""

    verbosity: int = 0  # 0 is normal, -1 quiet, 2 shows tracebacks
    remedy: str = ""  # shown with whatever error ends the command
    arguments: tuple[str, ...] = ()  # all words of the command line
    last: bool = False  # the process ends with the command
    main: bool = True  # this process prints and writes, of several that share the work


class Setting(click.Option):
    """An option that stands for a setting of the configuration, ``key``."""

    def __init__(self, names: Sequence[str], *, key: str, **attributes: Any) -> None:
        super().__init__(names, shell_complete=complete_setting(key), **attributes)
        self.key = key


def setting_option(*names: str, key: str, metavar: str, help: str) -> Callable[[F], F]:
    """Return a decorator that adds an option for the setting ``key``."""
    return click.option(*names, cls=Setting, key=key, metavar=metavar, help=help)


def words(metavar: str) -> Callable[[F], F]:
    """Return a decorator that adds the arguments: MODEL and KEY=VALUE, in any order."""
    return click.argument("words", cls=_Words, nargs=-1, metavar=metavar, shell_complete=complete_words)


config_option = click.option(
    "-c", "--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="YAML file of settings."
)
arch_option = setting_option(
    "--arch",
    key="model.arch",
    metavar="SPEC",
    help="The network: torchvision:NAME, timm:NAME, hf:DIR, FILE.py:FACTORY or package.module:FACTORY.  "
    "[default: what the checkpoint names, else matched by its tensors]",
)
data_option = setting_option(
    "--data",
    key="data.source",
    metavar="SPEC",
    help="The samples: digits, torchvision:NAME, folder:DIR, arrays:FILE.npz, FILE.py:FUNCTION or none.  "
    "[default: what the checkpoint names]",
)
method_option = setting_option(
    "--method",
    key="prune.method",
    metavar="NAME",
    help="How weights are scored: exact_obs, obs, magnitude...; `prunetaylor config prune.method` lists all.  "
    "[default: auto]",
)
device_option = setting_option(
    "--device",
    key="device",
    metavar="NAME",
    help="cpu, cuda, cuda:1, mps.  [default: auto, the first available of cuda, mps, cpu]",
)
seed_option = setting_option("--seed", key="seed", metavar="N", help="Random seed.  [default: 0]")
memory_option = setting_option(
    "--memory", key="memory", metavar="SIZE", help="Maximum memory: 3GiB, 500MB.  [default: the free memory]"
)
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
    """Add -q and -v, which set ``State.verbosity``."""
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
    """Raise UsageError where an option for one value is given two different ones."""
    once = [p for p in command.params if isinstance(p, click.Option) and not (p.multiple or p.is_flag or p.count)]
    for option in once:
        option.multiple = True  # so that this parser collects all values
    try:
        parser = command.make_parser(click.Context(command, parent=ctx, **command.context_settings))
    finally:
        for option in once:
            option.multiple = False
    try:
        given, _, _ = parser.parse_args(args=list(arguments))
    except click.UsageError:  # the command's own parser will raise it
        return
    for option in once:
        values = list(dict.fromkeys(given.get(str(option.name)) or ()))
        if len(values) > 1:
            name = max(option.opts, key=len)
            raise UsageError(f"{name} is given twice, as {values[0]} and as {values[1]}", "keep one of the two")


class _Model(str):
    """A word after ``--``, which is MODEL even if it looks like KEY=VALUE."""


class _Words(click.Argument):
    """The arguments of a command line; those after ``--`` become ``_Model``."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        words: tuple[str, ...] = super().process_value(ctx, value) or ()
        state = ctx.find_object(State)
        given = () if state is None else state.arguments
        after = len(given) - given.index("--") - 1 if "--" in given else 0
        after = min(after, len(words))
        return (*words[: len(words) - after], *map(_Model, words[len(words) - after :]))


def examples(*lines: str, before: str = "") -> str:
    """Return the examples at the end of a command's help, whose lines click does not rewrap."""
    shown = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
    return f"\b\n{before}\n\n{shown}" if before else shown


def is_pair(word: str) -> bool:
    """Return whether a word is KEY=VALUE, and neither an existing file nor a word after ``--``."""
    return _SETTING.match(word) is not None and not isinstance(word, _Model) and not _exists(word)


def _exists(word: str) -> bool:
    try:
        return os.path.lexists(word)
    except ValueError:  # a null character
        return False


def split_words(given: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return MODEL (None where there is none) and the KEY=VALUE words. ``./a=b.pt`` and existing paths are files."""
    pairs = [word for word in given if is_pair(word)]
    others = [word for word in given if not is_pair(word)]
    if len(others) > 1:
        raise UsageError(
            f"unexpected argument {others[1]!r}: MODEL is already {others[0]!r}",
            "give one MODEL, then settings as KEY=VALUE, such as prune.sparsity=0.8",
        )
    return (others[0] if others else None), pairs


def read_configuration(
    given: Sequence[str], file: Path | None, flags: dict[str, str | None], *, model_needed: bool = True
) -> Resolved:
    """Return the resolved configuration of a command line. UsageError where MODEL is missing, or is no file."""
    from prunetaylor.core.config.resolve import resolve
    from prunetaylor.network.checkpoint.paths import find_checkpoint

    model, pairs = split_words(given)
    resolved = resolve(file, os.environ, pairs, {"model.checkpoint": model, **flags})
    named = resolved.config.model.checkpoint
    if named:
        find_checkpoint(named)  # a wrong path is reported before torch is imported
    elif model_needed:
        command = click.get_current_context().command_path
        raise UsageError("no MODEL given", f"name the checkpoint: {command} model.pt (`prunetaylor demo` makes one)")
    return resolved
