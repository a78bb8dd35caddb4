"""What a checkpoint of ours says of itself: which network, which data, what was removed. Plain JSON, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

from torch import Tensor

from prunetaylor.core.errors import CheckpointRefused, UsageError
from prunetaylor.core.results.inspection import CheckpointMetadata

FORMAT = "prunetaylor"
VERSION = 1
_DEEPEST = 20
_MOST_VALUES = 100_000

_REMEDY = "name the network and the data yourself (--arch, --data) with a plain state_dict of the same weights"


def encode(
    *,
    arch: str | None,
    args: Mapping[str, Any],
    data: Mapping[str, Any],
    masks: Mapping[str, Tensor] | None,
    tied: Mapping[str, str],
    extra: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The JSON form of a description; UsageError where ``args``, ``data`` or ``extra`` hold what JSON cannot say."""
    words: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "arch": arch,
        "args": dict(args),
        "data": dict(data),
        "masks": {k: {"size": m.numel(), "kept": int(m.count_nonzero())} for k, m in (masks or {}).items()},
        "tied": dict(tied),
        "extra": dict(extra or {}),
    }
    classes = words["extra"].get("classes", words["data"].get("classes"))
    if isinstance(classes, int) and not isinstance(classes, bool):
        words["classes"] = classes
    try:
        plain: dict[str, Any] = json.loads(json.dumps(words, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"a network's description must be JSON: {error}", "use numbers, strings, lists and dicts as arguments"
        ) from error
    return plain


def decode(words: Any) -> CheckpointMetadata:
    """The description that ``encode`` made; CheckpointRefused where it is malformed or of a newer version."""
    if not isinstance(words, dict):
        raise CheckpointRefused("the file's description of itself is not a mapping", _REMEDY)
    _require_plain(words)
    version = words.get("version")
    if type(version) is not int:
        raise CheckpointRefused("the file's description of itself has no version", _REMEDY)
    if version > VERSION:
        raise CheckpointRefused(
            f"the file was written by a newer prunetaylor (its format is {version}, this one reads {VERSION})",
            "read it with the version of prunetaylor that wrote it, or a newer one",
        )
    arch, classes = words.get("arch"), words.get("classes")
    if not (arch is None or isinstance(arch, str)) or not (classes is None or type(classes) is int):
        raise CheckpointRefused("the file's description of itself is malformed: arch or classes", _REMEDY)
    parts = {name: _mapping(words, name) for name in ("args", "data", "masks", "tied", "extra")}
    if not all(isinstance(v, str) for v in parts["tied"].values()):
        raise CheckpointRefused("the file's description of itself is malformed: tied", _REMEDY)
    if not all(_is_count(v) for v in parts["masks"].values()):
        raise CheckpointRefused("the file's description of itself is malformed: masks", _REMEDY)
    return CheckpointMetadata(arch=arch, classes=classes, **parts)


def _mapping(words: dict[str, Any], name: str) -> dict[str, Any]:
    part = words.get(name, {})
    if not isinstance(part, dict) or not all(isinstance(k, str) for k in part):
        raise CheckpointRefused(f"the file's description of itself is malformed: {name}", _REMEDY)
    return part


def _is_count(mask: Any) -> bool:
    """Whether it is {"size": n, "kept": m}, m of n."""
    if not isinstance(mask, dict):
        return False
    size, kept = mask.get("size"), mask.get("kept")
    return type(size) is int and type(kept) is int and 0 <= kept <= size


def _require_plain(words: Any) -> None:
    """CheckpointRefused for what JSON cannot say, and for what is so deep that it could not be written again."""
    left = [(words, 0)]
    seen = 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_VALUES:
            raise CheckpointRefused("the file's description of itself is nested too deeply, or holds itself", _REMEDY)
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise CheckpointRefused("the file's description of itself has a key that is no text", _REMEDY)
            left += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list | tuple):
            left += [(one, depth + 1) for one in value]
        elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not isfinite(value)):
            raise CheckpointRefused("the file's description of itself holds what is no JSON", _REMEDY)
