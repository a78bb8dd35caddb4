"""YAML by the core rules of version 1.2, on PyYAML's safe loader.

Plain PyYAML follows version 1.1: it reads ``2:4`` as 124, ``1e-4`` as a string, ``010`` as 8 and ``no`` as false, which
nobody who writes a configuration means.
"""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass
from typing import Any

import yaml

from prunetaylor.core.errors import UsageError

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
# in the order in which they are tried: every int is a float as well
_CORE = {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}
# text that needs no quotes wherever it stands
_BARE = re.compile(r"[\w./][\w./%+-]*(?::[\w./%+-]+)*", re.ASCII)
_DEEPEST = 32
_MOST = 100_000
_MOST_BYTES = 1 << 20
_ONE_VALUE = "the value"
_MERGE = "<<"


Path = tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A mapping read from YAML, and the line (from 1) of every key by its path from the top."""

    values: dict[str, Any]
    lines: dict[Path, int]


class CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {  # noqa: RUF012 PyYAML's own form
        None: [(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{rule.pattern})\\Z")) for kind, rule in _CORE.items()]
    }


def scalar(text: str) -> Any:
    """Return the value of a plain scalar: null, a bool, an int, a float, or else the text itself."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _integer(text: str) -> int:
    prefix = {"0o": 8, "0x": 16}.get(text[:2])
    if len(text) > 400:
        raise UsageError(f"a number of {len(text)} digits is too long for a setting")
    return int(text[2:], prefix) if prefix else int(text, 10)


def parse_value(text: str) -> Any:
    """Return the value in ``KEY=VALUE``: lists, mappings and quoted strings are YAML, all else is one plain scalar.

    So ``*conv1``, ``a: b`` and ``x # y`` are plain strings. Raises UsageError if brackets or quotes are not closed.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return scalar(text)
    node = _compose(text, _ONE_VALUE)
    return None if node is None else _value(node, (), {}, _ONE_VALUE)


def read_file(file: pathlib.Path) -> str:
    """Return the text of a YAML file.

    Raises OSError and UnicodeDecodeError as ``open`` does, and UsageError if the file is far too long.
    """
    with file.open("rb") as stream:  # a pipe, such as the shell's <(...), is read as well
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{file} is longer than {_MOST_BYTES:,} bytes", "name a YAML file of settings")
    return content.decode("utf-8")


def read_document(text: str, name: str) -> Document:
    """Return the mapping in a YAML file, or raise UsageError with the line; errors call the file ``name``."""
    node = _compose(text, name)
    lines: dict[Path, int] = {}
    values = {} if node is None else _value(node, (), lines, name)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(
            f"{name} contains no settings", "write one KEY: VALUE a line; `prunetaylor config` prints them all"
        )
    return Document(values, lines)


def dump_value(value: Any) -> str:
    """Return one line of YAML that ``parse_value`` and ``read_document`` read back as the same value.

    The value may consist of None, bool, int, float, str, and lists and string-keyed dicts of them.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return str(value).replace("inf", ".inf").replace("nan", ".nan")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dump_value(str(key))}: {dump_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dump_value, value)) + "]"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """Return the text as it is if YAML reads it as just that, and else between double quotes."""
    if _BARE.fullmatch(text) and scalar(text) == text:
        return text
    escaped = (c if c.isprintable() else f"\\U{ord(c):08X}" for c in text.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{"".join(escaped)}"'


def _at(name: str, mark: yaml.Mark | None) -> str:
    """Return ``FILE:LINE``; a value of the command line has no line number."""
    return f"{name}:{mark.line + 1}" if mark and name != _ONE_VALUE else name


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        loader = CoreLoader(text)
    except yaml.YAMLError as err:
        raise UsageError(f"{name} is not text: {err}") from err
    try:
        _refuse_aliases(text, name, undefined_only=name != _ONE_VALUE)
        node = loader.get_single_node()
        if node is not None:
            _require_bounded(node, name)
        return node
    except yaml.MarkedYAMLError as err:
        raise UsageError(
            f"{_at(name, err.problem_mark)} is not YAML: {err.problem or err.context}",
            "quote text that contains any of : # [ ] { } *",
        ) from err
    except yaml.YAMLError as err:
        raise UsageError(f"{name} is not YAML: {err}") from err
    except RecursionError as err:
        raise UsageError(f"{name} is nested too deeply") from err
    finally:
        loader.dispose()


def _refuse_aliases(text: str, name: str, *, undefined_only: bool) -> None:
    """Refuse ``*conv1`` without quotes, which is an alias to YAML and a pattern to the user.

    In a file an alias may stand for what its anchor has named; a value of a command line has neither. Brackets that are
    nested without end are refused in passing, as YAML takes minutes for them.
    """
    anchors: set[str] = set()
    depth = 0
    for token in yaml.scan(text, Loader=CoreLoader):
        depth += isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken)
        depth -= isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken)
        if depth > _DEEPEST:
            raise UsageError(f"{name} is nested too deeply")
        if not isinstance(token, yaml.AliasToken | yaml.AnchorToken):
            continue
        alias = isinstance(token, yaml.AliasToken)
        if undefined_only and (not alias or token.value in anchors):
            anchors.add(token.value)
            continue
        sign = "*" if alias else "&"
        raise UsageError(
            f"{_at(name, token.start_mark)} has {sign}{token.value} without quotes, which YAML reads as an "
            + ("alias, and no anchor has that name" if undefined_only else "alias" if alias else "anchor"),
            f'quote it: "{sign}{token.value}"',
        )


def _require_bounded(node: yaml.Node, name: str) -> None:
    """Raise UsageError if aliases make a short text very long, or refer to themselves."""
    sizes: dict[int, int] = {}

    def size(one: yaml.Node) -> int:
        if id(one) in sizes:
            if not sizes[id(one)]:
                raise UsageError(f"{_at(name, one.start_mark)} refers to itself", "write out what the alias stands for")
            return sizes[id(one)]
        sizes[id(one)] = 0  # begun
        inner: list[yaml.Node] = []
        if isinstance(one, yaml.MappingNode):
            inner = [part for pair in one.value for part in pair]
        elif isinstance(one, yaml.SequenceNode):
            inner = one.value
        sizes[id(one)] = 1 + sum(map(size, inner))
        return sizes[id(one)]

    if size(node) > _MOST:
        raise UsageError(f"{name} has more than {_MOST:,} values when its aliases are written out", "use fewer of them")


def _value(node: yaml.Node, path: Path, lines: dict[Path, int], name: str) -> Any:
    if len(path) > _DEEPEST:
        raise UsageError(f"{_at(name, node.start_mark)} is nested too deeply")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, name)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, str(i)), {}, name) for i, item in enumerate(node.value)]
    text: str = node.value
    if node.tag == "tag:yaml.org,2002:str":
        return text
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _CORE:
        raise UsageError(f"{_at(name, node.start_mark)} has the tag {node.tag}", "settings need no tags")
    return scalar(text)


def _mapping(node: yaml.MappingNode, path: Path, lines: dict[Path, int], name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{_at(name, key_node.start_mark)} has a key that is not text")
        if key in values:
            raise UsageError(f"{_at(name, key_node.start_mark)} sets {key!r} twice", "keep one of the two")
        if key == _MERGE and key_node.style is None:
            continue
        lines[(*path, key)] = key_node.start_mark.line + 1
        values[key] = _value(value_node, (*path, key), lines, name)
    return _merged(node, path, lines, name, values)


def _merged(
    node: yaml.MappingNode, path: Path, lines: dict[Path, int], name: str, own: dict[str, Any]
) -> dict[str, Any]:
    """Return a mapping merged with those that ``<<`` names: its own keys win, then the first mapping's, and so on."""
    merged = dict(own)
    for key_node, value_node in node.value:
        if key_node.value != _MERGE or key_node.style is not None:
            continue
        for part in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
            if not isinstance(part, yaml.MappingNode):
                raise UsageError(f"{_at(name, key_node.start_mark)}: << takes a mapping, or a list of them")
            theirs: dict[Path, int] = {}
            for key, value in _value(part, path, theirs, name).items():
                if key not in merged:
                    merged[key] = value
                    at = (*path, key)
                    lines |= {one: line for one, line in theirs.items() if one[: len(at)] == at}
    return merged
