"""The metadata that prunetaylor writes into a checkpoint: network, data and masks. It is plain JSON, never code."""

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
    """Return the metadata as JSON values; UsageError if ``args``, ``data`` or ``extra`` are not JSON."""
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "arch": arch,
        "args": dict(args),
        "data": dict(data),
        "masks": {k: {"size": m.numel(), "kept": int(m.count_nonzero())} for k, m in (masks or {}).items()},
        "tied": dict(tied),
        "extra": dict(extra or {}),
    }
    classes = description["extra"].get("classes", description["data"].get("classes"))
    if isinstance(classes, int) and not isinstance(classes, bool):
        description["classes"] = classes
    try:
        plain: dict[str, Any] = json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"a network's description must be JSON: {error}", "use numbers, strings, lists and dicts as arguments"
        ) from error
    return plain


def decode(description: Any) -> CheckpointMetadata:
    """Return the metadata that ``encode`` made; CheckpointRefused if it is malformed or of a newer version."""
    if not isinstance(description, dict):
        raise CheckpointRefused("the file's metadata is not a mapping", _REMEDY)
    _require_plain(description)
    version = description.get("version")
    if type(version) is not int:
        raise CheckpointRefused("the file's metadata has no version", _REMEDY)
    if version > VERSION:
        raise CheckpointRefused(
            f"the file was written by a newer prunetaylor (its format is {version}, this one reads {VERSION})",
            "read it with the version of prunetaylor that wrote it, or a newer one",
        )
    arch, classes = description.get("arch"), description.get("classes")
    if not (arch is None or isinstance(arch, str)) or not (classes is None or type(classes) is int):
        raise CheckpointRefused("the file's metadata is malformed: arch or classes", _REMEDY)
    parts = {name: _mapping(description, name) for name in ("args", "data", "masks", "tied", "extra")}
    if not all(isinstance(v, str) for v in parts["tied"].values()):
        raise CheckpointRefused("the file's metadata is malformed: tied", _REMEDY)
    if not all(_is_count(v) for v in parts["masks"].values()):
        raise CheckpointRefused("the file's metadata is malformed: masks", _REMEDY)
    return CheckpointMetadata(arch=arch, classes=classes, **parts)


def _mapping(description: dict[str, Any], name: str) -> dict[str, Any]:
    section = description.get(name, {})
    if not isinstance(section, dict) or not all(isinstance(k, str) for k in section):
        raise CheckpointRefused(f"the file's metadata is malformed: {name}", _REMEDY)
    return section


def _is_count(mask: Any) -> bool:
    """Return whether ``mask`` is {"size": n, "kept": m} with m of n."""
    if not isinstance(mask, dict):
        return False
    size, kept = mask.get("size"), mask.get("kept")
    return type(size) is int and type(kept) is int and 0 <= kept <= size


def _require_plain(description: Any) -> None:
    """Raise CheckpointRefused for values that are not JSON, and for nesting so deep that it could not be written."""
    pending = [(description, 0)]
    count = 0
    while pending:
        value, depth = pending.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_VALUES:
            raise CheckpointRefused("the file's metadata is nested too deeply, or refers to itself", _REMEDY)
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise CheckpointRefused("the file's metadata has a key that is not text", _REMEDY)
            pending += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list | tuple):
            pending += [(one, depth + 1) for one in value]
        elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not isfinite(value)):
            raise CheckpointRefused("the file's metadata contains values that are not JSON", _REMEDY)
