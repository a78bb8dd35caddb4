"""The dotted keys of the configuration, read from its schema."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from prunetaylor.core.config.fields import OneOf
from prunetaylor.core.config.schema import Config, Section
from prunetaylor.core.errors import closest

PREFIX = "PRUNETAYLOR_"


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested settings, in their order; an empty mapping is a value."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def leaves(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key with its field, in the order of the schema, without the sections themselves."""
    for name, info in section.model_fields.items():
        if is_section(info.annotation):
            yield from leaves(info.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", info


def env_name(key: str) -> str:
    """Return the key's environment variable: ``data.batch_size`` is PRUNETAYLOR_DATA_BATCH_SIZE."""
    return PREFIX + key.upper().replace(".", "_")


def suggestion(key: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the key that shares the last part (``sparsity=0.8``) or is closest."""
    names = [name for name in known if name != key]
    last = {k.rpartition(".")[2].casefold(): k for k in reversed(names)}
    tail = key.rpartition(".")[2].casefold()
    near = last.get(tail) or closest(key, names) or last.get(closest(tail, last) or "")
    return "" if near is None else f"; did you mean {near!r}?"


def is_section(annotation: Any) -> bool:
    """Return whether a type is a mapping with fixed keys."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def members(info: FieldInfo) -> tuple[Any, ...]:
    """Return the types that a key's value may have."""
    union = get_origin(info.annotation) in (Union, types.UnionType)
    return get_args(info.annotation) if union else (info.annotation,)


def is_open(info: FieldInfo) -> bool:
    """Return whether keys may stand beneath this one: a free mapping, or one that may be a mapping."""
    return any(get_origin(m) is dict or is_section(m) for m in members(info))


def takes_text(info: FieldInfo) -> bool:
    """Return whether a key accepts text."""
    return str in members(info)


def registered(info: FieldInfo) -> OneOf | None:
    """Return the registry's names for a key's value, or for the items of its list; None if it names no method."""
    metadata = [*info.metadata]
    for item in get_args(info.annotation) if get_origin(info.annotation) is list else ():
        metadata += get_args(item)[1:] if get_origin(item) is Annotated else ()
    return next((one for one in metadata if isinstance(one, OneOf)), None)


def choices(info: FieldInfo) -> dict[str, str]:
    """Return the words that a key accepts, with their meaning if known; empty for numbers, paths and free text."""
    names = registered(info)
    if names is not None:
        return names.known
    words: dict[str, str] = {}
    for member in members(info):
        if get_origin(member) is Literal:
            words |= dict.fromkeys(map(str, get_args(member)), "")
        elif member is bool:
            words |= {"true": "", "false": ""}
    return words
