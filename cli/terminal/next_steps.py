"""Next steps after a run: commands that work as they are printed, made of the words that the user gave."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..support.options import is_pair

if TYPE_CHECKING:
    from prunetaylor.core.config.schema import Config
    from prunetaylor.core.results.outcome import PruneResult

_LEAST_DENSITY = 0.02
"""No sparser network is suggested."""
_EPOCHS = 3
_OWN = {"output", "force", "resume", "dry_run", "as_json", "verbose", "quiet"}
"""Options that are of one run alone."""


def steps(ctx: click.Context, config: Config, outcome: PruneResult, folder: str) -> list[tuple[str, str]]:
    """Return pairs of purpose and command (or line of Python), in the order in which one would try them."""
    level = outcome.verdict.level if outcome.verdict is not None else "caution"
    measured = bool(outcome.dense.metrics)
    found = []
    if measured and not outcome.epochs and outcome.sparsity.removed and outcome.unfinished is None:
        found.append(("fine-tune", again(ctx, {"epochs": str(_EPOCHS)}, ("finetune.epochs",))))
    if not any(value is not None for key, value in config.gate if key.startswith(("max_", "min_"))):
        found.append(("check", _check(ctx, config, outcome, folder, measured)))
    density = (1 - config.prune.sparsity) / 2
    if level == "ok" and density >= _LEAST_DENSITY and not isinstance(config.prune.stages, list):
        found.append(("smaller", again(ctx, {"sparsity": f"{100 * (1 - density):.4g}%"}, ("prune.sparsity",))))
    arch = _code(config.model.arch)
    named = f", arch={arch!r}" if arch else ", trust_code=True" if ctx.params.get("trust_code") else ""
    return [*found, ("in Python", f"import prunetaylor; network = prunetaylor.load({folder!r}{named})")]


def again(ctx: click.Context, changed: dict[str, str], keys: tuple[str, ...]) -> str:
    """The command line of ``ctx`` with some options changed; ``keys`` are the settings that these stand for.

    Settings of the environment stand before it: they may have been of that one command.
    """
    given: list[str] = [
        word for word in ctx.params["words"] if not (is_pair(word) and word.partition("=")[0].strip() in keys)
    ]
    for param in ctx.command.params:
        name = param.name or ""
        value = changed.get(name, ctx.params.get(name))
        if isinstance(param, click.Option) and name not in _OWN and value not in (None, False, ()):
            given += [_flag(param)] if param.is_flag else [_flag(param), str(value)]
    from prunetaylor.core.config.keys import PREFIX, env_name

    replaced = {env_name(key) for key in keys}
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIX) and v and k not in replaced}
    return " ".join(
        [
            *(f"{name}={shlex.quote(value)}" for name, value in settings.items()),
            shlex.join([*ctx.command_path.split(), *given]),
        ]
    )


def _check(ctx: click.Context, config: Config, outcome: PruneResult, folder: str, measured: bool) -> str:
    given = ["prunetaylor", "check", folder, "--min-sparsity", _percent_below(outcome.sparsity.obtained)]
    if measured:
        given += ["--max-drop", "1pp" if outcome.metric == "top1" else "0.05"]
    for flag, value in (("--arch", _code(config.model.arch)), ("--data", _code(config.data.source))):
        given += [flag, value] if value else []
    return shlex.join([*given, *(["--trust-code"] if ctx.params.get("trust_code") else [])])


def _percent_below(share: float) -> str:
    """A percentage that is no more than ``share``, of one digit after the point at most."""
    return f"{int(share * 1000 + 1e-6) / 10:g}%"


def _code(spec: str | None) -> str | None:
    """A spec that names code of the user's, which a file alone is not trusted with."""
    own = spec is not None and spec.partition(":")[0] not in ("builtin", "torchvision", "timm", "folder", "arrays")
    return spec if own and spec is not None and ":" in spec else None


def _flag(param: click.Option) -> str:
    return max(param.opts, key=len)


def relative(folder: str) -> str:
    """A path beneath the working directory as one would type it."""
    path, here = Path(folder), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else folder


def lines(found: list[tuple[str, Any]]) -> list[str]:
    """A line for each step, its command in one piece."""
    return ["next steps", *(f"  {what + ':':<11}{command}" for what, command in found)]
