"""Next steps after a run: commands that work as they are printed, with the options that the user gave."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunetaylor.core.config.code import SCHEMES

from ..support.options import Setting, is_pair

if TYPE_CHECKING:
    from prunetaylor.core.config.schema import Config
    from prunetaylor.core.results.outcome import PruneResult

_MIN_DENSITY = 0.02
"""The steps suggest no sparser network than this."""
_EPOCHS = 3
_RUN_OPTIONS = {"output", "force", "resume", "dry_run", "as_json", "verbose", "quiet"}
"""Options of one run, which another run does not repeat."""


def steps(ctx: click.Context, config: Config, result: PruneResult, folder: str) -> list[tuple[str, str]]:
    """Return pairs of purpose and command (or line of Python), in the order in which one would try them."""
    level = result.verdict.level if result.verdict is not None else "caution"
    measured = bool(result.dense.metrics)
    rows = []
    if measured and not result.epochs and result.sparsity.removed and result.unfinished is None:
        rows.append(("fine-tune", repeat(ctx, "finetune.epochs", str(_EPOCHS))))
    if not any(value is not None for key, value in config.gate if key.startswith(("max_", "min_"))):
        rows.append(("check", _check(ctx, config, result, folder, measured)))
    density = (1 - config.prune.sparsity) / 2
    if level == "ok" and density >= _MIN_DENSITY and not isinstance(config.prune.stages, list):
        rows.append(("smaller", repeat(ctx, "prune.sparsity", f"{100 * (1 - density):.4g}%")))
    arch = _code(config.model.arch)
    named = f", arch={arch!r}" if arch else ", trust_code=True" if ctx.params.get("trust_code") else ""
    return [*rows, ("in Python", f"import prunetaylor; network = prunetaylor.load({folder!r}{named})")]


def repeat(ctx: click.Context, key: str, value: str) -> str:
    """Return the command line of ``ctx`` with another value of the setting ``key``.

    Settings of the environment stand before it, as they may have been set for that one command.
    """
    words: list[str] = [
        word for word in ctx.params["words"] if not (is_pair(word) and word.partition("=")[0].strip() == key)
    ]
    for param in ctx.command.params:
        if not isinstance(param, click.Option) or param.name in _RUN_OPTIONS:
            continue
        given = value if isinstance(param, Setting) and param.key == key else ctx.params.get(str(param.name))
        if given not in (None, False, ()):
            words += [_flag(param)] if param.is_flag else [_flag(param), str(given)]
    from prunetaylor.core.config.keys import PREFIX, env_name

    environment = {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIX) and v and k != env_name(key)}
    settings = (f"{name}={shlex.quote(text)}" for name, text in environment.items())
    return " ".join([*settings, shlex.join([*ctx.command_path.split(), *words])])


def _check(ctx: click.Context, config: Config, result: PruneResult, folder: str, measured: bool) -> str:
    words = ["prunetaylor", "check", folder, "--min-sparsity", _percent_below(result.sparsity.obtained)]
    if measured:
        words += ["--max-drop", "1pp" if result.unit == "%" else "0.05"]
    for flag, value in (("--arch", _code(config.model.arch)), ("--data", _code(config.data.source))):
        words += [flag, value] if value else []
    data = {"data.collate": config.data.collate, "data.target": config.data.target}
    words += [f"{key}={value}" for key, value in data.items() if value]
    return shlex.join([*words, *(["--trust-code"] if ctx.params.get("trust_code") else [])])


def _percent_below(share: float) -> str:
    """Return the largest percentage with one decimal that does not exceed ``share``."""
    return f"{int(share * 1000 + 1e-6) / 10:g}%"


def _code(spec: str | None) -> str | None:
    """Return a spec that names code of the user's, which no command imports because a file names it; else None."""
    own = spec is not None and spec.partition(":")[0] not in SCHEMES
    return spec if own and spec is not None and ":" in spec else None


def _flag(param: click.Option) -> str:
    return max(param.opts, key=len)


def relative(path: str) -> str:
    """Return a path beneath the working directory as one would type it, and any other as it is."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def lines(rows: list[tuple[str, str]]) -> list[str]:
    """Return a line for each step, its command in one piece."""
    return ["next steps", *(f"  {purpose + ':':<11}{command}" for purpose, command in rows)]
