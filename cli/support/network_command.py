"""The commands that work on a network: ``prune``, ``score``, ``eval`` and ``check`` share options and their start.

A command gets the process's ``State`` and a ``Request`` with the resolved configuration. Options that stand for
settings (``Setting``) go into the configuration; all others are arguments of the command.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .multiprocess import nproc_option, run_in_processes
from .options import (
    Setting,
    State,
    arch_option,
    config_option,
    data_option,
    device_option,
    examples,
    json_option,
    read_configuration,
    seed_option,
    trust_option,
    verbosity_options,
    words,
)

if TYPE_CHECKING:
    from prunetaylor.core.config.code import Trust
    from prunetaylor.core.config.resolve import Resolved

Option = Callable[[Any], Any]
"""A decorator that adds an option, as ``click.option`` returns it."""


@dataclass(frozen=True)
class Request:
    """The configuration of a command line, the code that its user trusts, and whether it asks for JSON."""

    resolved: Resolved
    trust: Trust
    as_json: bool


def network_command(
    name: str,
    *,
    summary: str,
    example: Sequence[str],
    model: str = "MODEL",
    before_examples: str = "",
    options: Sequence[Option] = (),
    processes: bool = True,
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Return a decorator that makes a function the command ``name``.

    Args:
        summary: one line for the list of commands.
        example: command lines for the end of the help.
        model: the name of the checkpoint's argument.
        options: the command's own options, in the order of the help.
        processes: the command has --nproc; several processes then share its work.
    """
    first = (words(f"{model} [KEY=VALUE]..."), config_option, arch_option, data_option)
    last = (device_option, seed_option, json_option, trust_option, verbosity_options)
    decorators = (*first, *options, *last, *((nproc_option,) if processes else ()))

    def decorate(command: Callable[..., int | None]) -> click.Command:
        @click.pass_context
        @functools.wraps(command)
        def run(context: click.Context, /, *, nproc: int | None = None, **values: Any) -> int | None:
            state = context.ensure_object(State)

            def request() -> Request:
                return _read_request(context, values)

            def call() -> int | None:
                settings = {param.name for param in context.command.params if isinstance(param, Setting)}
                own = {key: value for key, value in values.items() if key not in _SHARED | settings}
                return command(state, request(), **own)

            return run_in_processes(state, nproc, call, check=request) if processes else call()

        decorated: Callable[..., Any] = run
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        epilog = examples(*example, before=before_examples)
        return click.command(name, short_help=summary, epilog=epilog)(decorated)

    return decorate


_SHARED = {"words", "file", "as_json", "trust_code"}


def _read_request(context: click.Context, values: dict[str, Any]) -> Request:
    from prunetaylor.core.config.code import Trust

    settings = {p.key: values[str(p.name)] for p in context.command.params if isinstance(p, Setting)}
    resolved = read_configuration(values["words"], values["file"], settings)
    trust = Trust.of(resolved.config.model_dump(), everything=values["trust_code"])
    return Request(resolved, trust, values["as_json"])
