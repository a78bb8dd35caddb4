"""The configuration as text: all defaults, one key explained, a resolved one with its origins, the JSON schema,
methods.
"""

from __future__ import annotations

import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from prunetaylor.core import registry
from prunetaylor.core.config.keys import choices, is_section, leaves, registered, suggestion
from prunetaylor.core.config.resolve import Resolved
from prunetaylor.core.config.schema import Config, Section
from prunetaylor.core.config.values import dump_value
from prunetaylor.core.errors import UsageError
from prunetaylor.core.text import neutral

_COLUMN = 44


def defaults() -> str:
    """Return YAML with every key, its default and its meaning in a comment; ``-c`` reads it."""
    head = [
        "# Every setting of prunetaylor with its default. Fractions may be written as 80%.",
        "# Give it back with -c FILE; defaults < file < PRUNETAYLOR_* environment < command line.",
    ]
    return "\n".join([*head, *_default_lines(Config, 0)]) + "\n"


def _default_lines(section: type[Section], depth: int) -> list[str]:
    lines = []
    pad = "  " * depth
    blank = depth == 0
    for name, info in section.model_fields.items():
        annotation: Any = info.annotation
        if is_section(annotation):
            lines += [""] if blank else []
            lines += [f"{pad}# {' '.join((annotation.__doc__ or '').split())}", f"{pad}{name}:"]
            lines += _default_lines(annotation, depth + 1)
            continue
        if depth == 0 and blank:
            lines.append("")
        lines += [f"{pad}# {part}" for part in _meaning(info)]
        lines.append(f"{pad}{name}: {dump_value(info.default)}")
    return lines


def _meaning(info: FieldInfo) -> list[str]:
    """Return the lines of a field's description, then one for each method that it may name."""
    lines = textwrap.wrap(info.description or "", 110)
    names = registered(info)
    for name, meaning in names.known.items() if names is not None else ():
        lines += textwrap.wrap(meaning, 110, initial_indent=f"  {name:<11} ", subsequent_indent=" " * 14)
    return lines


def explain(key: str) -> str:
    """Return a setting in full: meaning, default and possible values; for a section, all its settings.

    Raises UsageError if no key has that name.
    """
    known = dict(leaves())
    inner = [one for one in known if one.startswith(f"{key}.")]
    if key not in known and not inner:
        raise UsageError(f"unknown key {key!r}{suggestion(key, known)}", "`prunetaylor config` prints every key")
    return "\n\n".join(_explained(one, known[one]) for one in inner or [key]) + "\n"


def _explained(key: str, info: FieldInfo) -> str:
    lines = [f"{key} (default: {dump_value(info.default)})"]
    lines += textwrap.wrap(info.description or "", 100, initial_indent="  ", subsequent_indent="  ")
    names = registered(info)
    if names is None:
        words = choices(info)  # one alone is the word for what may be a number, or anything else, too
        return "\n".join([*lines, *([f"  values: {', '.join(words)}"] if len(words) > 1 else [])])
    for name, meaning in names.known.items():
        method = (
            registry.MethodDescription(meaning) if name in names.also else registry.describe_method(names.methods, name)
        )
        parts = [f"cost: {method.cost}", f"use: {method.use}"] if method.cost else []
        lines += ["", f"  {name}"]
        for text in (meaning, *parts):
            lines += textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="      ")
    return "\n".join(lines)


def methods_table() -> str:
    """Return every criterion as a row of Markdown: summary, needs, cost, default repair and use."""
    head = ["method", "what it is", "needs", "cost", "default repair", "when to use it"]
    rows = [head, ["---"] * len(head)]
    for name in registry.names(registry.CRITERIA):
        method = registry.describe_method(registry.CRITERIA, name)
        rows.append([f"`{name}`", method.summary, method.needs, method.cost, method.default_repair, method.use])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def metrics_table() -> str:
    """Return every metric as a row of Markdown: title, summary, unit, direction, and what outputs are compared with."""
    head = ["metric", "title", "what it is", "unit", "better", "compared with"]
    rows = [head, ["---"] * len(head)]
    for name in registry.names(registry.METRICS):
        stated = registry.literals(registry.METRICS, name)
        unit, goal = (
            ("%" if stated.get("unit") else "its own"),
            ("larger" if stated.get("goal") != "min" else "smaller"),
        )
        rows.append([f"`{name}`", stated["title"], stated["summary"], unit, goal, stated.get("needs", "labels")])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def dump(resolved: Resolved) -> str:
    """Return YAML of a resolved configuration, with the origin of each value in a comment; ``-c`` reads it again."""
    head = "# The configuration of this run; comments show where each value came from."
    values = resolved.config.model_dump()
    return "\n".join([head, *_dump_lines(values, "", resolved.origins, 0)]) + "\n"


def _dump_lines(values: dict[str, Any], prefix: str, origins: dict[str, str], depth: int) -> list[str]:
    lines = []
    pad = "  " * depth
    for name, value in values.items():
        key = f"{prefix}{name}"
        beneath = any(k.startswith(f"{key}.") for k in origins)
        if beneath and isinstance(value, dict) and value:
            inner = {f"{key}.{n}": origins.get(key, "default") for n in value} | origins
            lines += [f"{pad}{dump_value(name)}:", *_dump_lines(value, f"{key}.", inner, depth + 1)]
        else:
            text = f"{pad}{dump_value(name)}: {dump_value(value)}"
            lines.append(f"{text:<{_COLUMN}}  # {neutral(origins.get(key, 'default'))}")
    return lines


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of configuration files, for editors."""
    schema = Config.model_json_schema(mode="validation")
    for section in [schema, *schema["$defs"].values()]:
        section["properties"] = {name: _bounded(one) for name, one in section["properties"].items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "prunetaylor configuration",
    }


def _bounded(field: dict[str, Any]) -> dict[str, Any]:
    """Move a fraction's bounds to its number; its text is a percentage.

    Pydantic leaves the bounds beside the choice, also within choices and lists of fractions.
    """
    if "anyOf" in field:
        field = {**field, "anyOf": [_bounded(one) for one in field["anyOf"]]}
    if isinstance(field.get("items"), dict):
        field = {**field, "items": _bounded(field["items"])}
    words = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    bounds = {words[k]: field[k] for k in words if k in field}
    if not bounds:
        return field
    number, text = {"type": "number", **bounds}, {"type": "string", "pattern": r"^\s*[0-9.]+%\s*$"}
    return {**{k: v for k, v in field.items() if k not in words}, "anyOf": [number, text]}
