"""The sweep that a command line names: a file, a folder, or a checkpoint with -m; and what its user trusts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunetaylor.core.config.asked import asked
from prunetaylor.core.errors import CheckpointRefused, UsageError

from .options import split_words

if TYPE_CHECKING:
    from prunetaylor.core.config.code import Trust
    from prunetaylor.sweep.definition import Sweep


@dataclass(frozen=True)
class SweepTarget:
    """A sweep with the folder that was named for it, if any.

    ``trust`` and ``cache_dir`` come from the command line, the environment and files that the user named. A sweep's
    folder decides neither, as it may come from somebody else.
    """

    sweep: Sweep
    folder: Path | None
    trust: Trust
    cache_dir: str | None


def find_sweep(
    words: Sequence[str],
    *,
    config: Path | None,
    vary: Sequence[str],
    output: str | None,
    address: str | None,
    trust_code: bool,
) -> SweepTarget:
    """Return the sweep that SWEEP.yaml, MODEL with -m, or a sweep's folder names.

    Raises:
        UsageError: there is none, or the words contradict each other.
        CheckpointRefused: the sweep's folder names code or a cluster that the user has not named.
    """
    from prunetaylor.sweep.file import read
    from prunetaylor.sweep.folder import home_of, is_sweep

    first, pairs = split_words(words)
    folder = Path(output) if output else None
    if first is None and folder is not None and is_sweep(folder):
        first = str(folder)
    if first is None:
        raise UsageError("no sweep given", "name SWEEP.yaml, or MODEL with -m prune.sparsity=0.5,0.7,0.9")
    if vary:
        return _from_options(first, pairs, config, vary, folder, trust_code)
    if config is not None:
        raise UsageError("-c can be used only with MODEL and -m", "a sweep's file names its configuration: base: FILE")
    if is_sweep(home := home_of(Path(first))):
        return _from_folder(home, pairs, folder, address, trust_code)
    if Path(first).suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"{first} is not a sweep, and no setting is varied", "give values to try: -m prune.sparsity=0.5,0.7,0.9"
        )
    return _own(read(Path(first), os.environ, pairs), folder, trust_code)


def _from_options(
    model: str,
    pairs: Sequence[str],
    config: Path | None,
    vary: Sequence[str],
    folder: Path | None,
    trust_code: bool,
) -> SweepTarget:
    from prunetaylor.core.config.resolve import resolve
    from prunetaylor.sweep.file import from_options

    base = resolve(config, os.environ, pairs, {"model.checkpoint": model})
    return _own(from_options(model, vary, base), folder, trust_code)


def _own(sweep: Sweep, folder: Path | None, trust_code: bool) -> SweepTarget:
    """Return a sweep of the user's own, whose file or command line counts as the user's word."""
    from prunetaylor.core.config.code import Trust

    return SweepTarget(sweep, folder, Trust(frozenset(sweep.code()), trust_code), sweep.base.config.cache.dir)


def _from_folder(
    home: Path, pairs: Sequence[str], folder: Path | None, address: str | None, trust_code: bool
) -> SweepTarget:
    """Return the sweep in the folder ``home``; ``pairs`` may repeat its code, and set cache.dir."""
    from prunetaylor.core.config.code import Trust, code_in
    from prunetaylor.core.config.paths import rooted
    from prunetaylor.core.config.resolve import flat, resolve
    from prunetaylor.sweep.folder import read_stored

    sweep = read_stored(home)
    named = [code_in(flat(resolve(None, {}, [pair], {})).items()) for pair in pairs if not _sets_cache(pair)]
    elsewhere = folder is not None and folder.resolve() != home.resolve()
    if elsewhere or not all(code and code <= sweep.code() for code in named):
        raise UsageError(f"the sweep in {home} cannot be changed", "start another sweep from a file with your changes")
    user = resolve(None, os.environ, pairs, {})
    trust = Trust(frozenset(code_in(flat(user).items())), trust_code)
    trust.require(sweep.code(), f"the sweep in {home}")
    if not trust_code and (cluster := asked(sweep.engine.get("address"))) not in (None, address):
        raise CheckpointRefused(
            f"the sweep in {home} runs on the cluster at {cluster!r}, which could run any code here",
            f"if you trust it, pass --trust-code, or name it: --address {shlex.quote(str(cluster))}",
        )
    return SweepTarget(sweep, home, trust, rooted("cache.dir", user.config.cache.dir))


def _sets_cache(pair: str) -> bool:
    return pair.partition("=")[0].strip() == "cache.dir"


def command_to_continue(folder: Path, storage: str | None, sweep: Sweep) -> str:
    """Return the command that continues a sweep. It omits the database's address, which may hold a password."""
    from prunetaylor.core.config.code import again

    words = f"{shlex.quote(str(folder))}{again(sweep.code())}"
    if cluster := sweep.engine.get("address"):
        words += f" --address {shlex.quote(str(cluster))}"
    if cache := sweep.base.config.cache.dir:
        words += f" {shlex.quote(f'cache.dir={cache}')}"
    return f"`prunetaylor sweep {words}{' --storage URL' if storage else ''}`"
