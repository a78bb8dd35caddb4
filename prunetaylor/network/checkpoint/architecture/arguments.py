"""The arguments that a file gives to its network's factory: plain values that name nothing to fetch or open."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunetaylor.core.config.code import Trust, is_code
from prunetaylor.core.config.values import dump_value
from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.network.checkpoint.read import Checkpoint

FETCHING = frozenset(
    {
        *("cache_dir", "checkpoint_path", "pretrained", "pretrained_backbone", "pretrained_cfg"),
        *("pretrained_cfg_overlay", "weights", "weights_backbone"),
    }
)
"""Arguments by which the known networks fetch or open weights of their own."""

# Names by which any factory may ask for a file, an address or other weights, whatever the value.
_LOADING = re.compile(r"pretrain|download|checkpoint|ckpt", re.IGNORECASE)
# The same for values that are text or true; a number under such a name is a size, a scale or a seed.
_OPENING = re.compile(
    rf"{_LOADING.pattern}|weight|path|url|uri|"
    r"(?:^|_)(?:file|filename|dir|directory|folder|root|repo|repository|hub|cache|config|cfg|load|resume|cmd|command)s?"
    r"(?:_|$)",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[A-Za-z0-9_+ -]{0,64}")  # "relu", "batch_norm": no path, address, expression or file's name
_DEEPEST = 4
_MOST = 1000
"""Values of one argument."""


def own_arguments(checkpoint: Checkpoint, given: Mapping[str, Any], trust: Trust) -> dict[str, Any]:
    """Return the file's arguments that are not in ``given``, each a plain value.

    If the user trusts the code that a file names, its arguments are trusted too. Raises CheckpointRefused for an
    argument that could make a user's factory fetch or open something.
    """
    metadata = checkpoint.metadata
    if metadata is None or metadata.arch is None:
        return {}
    own = {key: value for key, value in metadata.args.items() if key not in given}
    known = not is_code(metadata.arch)
    if trust.everything and not known:
        return own
    for key, value in own.items():
        if known and key in FETCHING:
            continue  # refused for everybody when the network is built
        if _opens(key, value):
            raise _refused(checkpoint, key, value, "an argument of this name could fetch or open something")
        if not _is_plain(value, 0):
            raise _refused(checkpoint, key, value, "only numbers and plain words are accepted from a file")
    return own


def _opens(key: str, value: Any) -> bool:
    """Return whether a factory could use the argument to fetch or open something."""
    if value is None or value is False:
        return False
    number = isinstance(value, int | float) and value is not True
    return (_LOADING if number else _OPENING).search(key) is not None


def _is_plain(value: Any, depth: int) -> bool:
    if value is None or isinstance(value, bool | int | float):
        return True
    if isinstance(value, str):
        return _PLAIN.fullmatch(value) is not None and not (value.strip() and Path(value).exists())
    if depth >= _DEEPEST or not isinstance(value, list | dict) or len(value) > _MOST:
        return False
    if isinstance(value, dict):
        return all(
            _is_plain(key, 0) and not _opens(key, one) and _is_plain(one, depth + 1) for key, one in value.items()
        )
    return all(_is_plain(one, depth + 1) for one in value)


def _refused(checkpoint: Checkpoint, key: str, value: Any, why: str) -> CheckpointRefused:
    name = f"model.args.{key}"
    shown = dump_value(value)
    words = shlex.quote(f"{name}={shown}") if len(shown) <= 200 else f"{name}=VALUE"
    return CheckpointRefused(
        f"{checkpoint.path} gives its network {key}={shown[:60]}: {why}", f"if you want that, give it yourself: {words}"
    )
