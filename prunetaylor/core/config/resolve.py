"""Defaults, a file, the environment and the command line give one checked configuration.

Later sources win, key by key: defaults < file < ``PRUNETAYLOR_*`` environment < command line. An unknown key or a value
of the wrong type raises a UsageError that says where it was set and suggests the likely key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from prunetaylor.core.config.contradictions import nested_clash, same, with_final_sparsity
from prunetaylor.core.config.keys import PREFIX, env_name, is_open, leaves, suggestion, takes_text
from prunetaylor.core.config.schema import Config
from prunetaylor.core.config.values import parse_value, read_document, read_file
from prunetaylor.core.errors import UsageError, closest

DEFAULT = "default"
COMMAND_LINE = "command line"
ARGUMENT = "argument"
_SPARSITY = "sparsity is the fraction removed, in [0, 1): 0.8 or 80%"
_PLAINER = {  # pydantic's words
    "Input should be ": "",
    "Value error, ": "",
    "a valid dictionary or instance of Normalization": "a mapping with mean and std",
    "a valid dictionary": "a mapping",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid boolean": "true or false",
}
_ALL_KEYS = "`prunetaylor config` prints every key with its meaning"


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, and the ``origins`` of its values by dotted key.

    An origin is ``"default"``, ``"FILE:line"``, ``"environment PRUNETAYLOR_X"`` or ``"command line"``.
    """

    config: Config
    origins: dict[str, str]

    def is_set(self, key: str) -> bool:
        """Return whether the user set ``key``, or a key beneath it, in any way."""
        return any(o != DEFAULT for k, o in self.origins.items() if k == key or k.startswith(f"{key}."))


@dataclass(frozen=True)
class _Setting:
    """One key set in one place. ``text`` is the value as typed, if it was typed as text."""

    key: str
    value: Any
    origin: str
    text: str | None = None


@dataclass(frozen=True)
class Written:
    """A configuration inside another file, ``name``; ``lines`` has the line of each key by its path."""

    values: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int]
    name: str


def resolve(
    file: Path | Written | None, environ: Mapping[str, str], pairs: Sequence[str], flags: Mapping[str, str | None]
) -> Resolved:
    """Return the configuration from all four sources.

    ``pairs`` are the command line's ``KEY=VALUE``; ``flags`` maps dotted keys to the text of their options, None for an
    option that was not given. Raises UsageError for anything that is unknown, invalid or contradictory.
    """
    known = dict(leaves())
    settings: list[_Setting] = []
    if file is not None:
        settings += _from_written(file if isinstance(file, Written) else _read(file), known)
    settings += _from_environment(environ, known)
    settings += _from_command_line(pairs, flags, known)
    return _resolved(settings, known)


def from_values(values: Mapping[str, Any]) -> Resolved:
    """Return the configuration of a call from Python: ``values`` by dotted key over the defaults.

    Raises UsageError as ``resolve`` does.
    """
    known = dict(leaves())
    settings = [_Setting(key, value, ARGUMENT) for key, value in values.items()]
    for setting in settings:
        _require_known(setting, known)
    return _resolved(settings, known)


def override(resolved: Resolved, values: Mapping[str, tuple[Any, str]]) -> Resolved:
    """Return the configuration with other values, each given with its origin, by dotted key.

    Raises UsageError as ``resolve`` does.
    """
    known = dict(leaves())
    before = flat(resolved)
    settings = [_Setting(key, value, resolved.origins.get(key, DEFAULT)) for key, value in before.items()]
    others = [_Setting(key, value, origin) for key, (value, origin) in values.items()]
    for setting in others:
        _require_known(setting, known)
    return _resolved([*settings, *others], known)


def flat(resolved: Resolved) -> dict[str, Any]:
    """Return the values that were set, by dotted key, without those at their default."""
    values: dict[str, Any] = {}
    for key, _ in leaves():
        if resolved.is_set(key):
            value: Any = resolved.config.model_dump()
            for part in key.split("."):
                value = value[part]
            values[key] = value
    return values


def _resolved(settings: Sequence[_Setting], known: Mapping[str, FieldInfo]) -> Resolved:
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, DEFAULT)
    for setting in settings:
        _assign(setting, values, origins, known)
    return Resolved(with_final_sparsity(_validate(values, origins, known), origins, DEFAULT), origins)


def _read(file: Path) -> Written:
    try:
        text = read_file(file)
    except UnicodeDecodeError as err:
        raise UsageError(
            f"{file} is not a text file", "-c takes a YAML file; MODEL is given without an option"
        ) from err
    except OSError as err:
        raise UsageError(f"cannot read the configuration {file}: {err.strerror}", "check -c/--config") from err
    document = read_document(text, str(file))
    return Written(document.values, document.lines, str(file))


def _from_written(written: Written, known: Mapping[str, FieldInfo]) -> list[_Setting]:
    settings: dict[str, _Setting] = {}
    for key, value, at in _flatten(written.values, "", (), known):
        setting = _Setting(key, value, f"{written.name}:{written.lines[at]}")
        if key in settings:
            raise UsageError(f"{key} is set at {settings[key].origin} and at {setting.origin}", "keep one of the two")
        _require_known(setting, known)
        settings[key] = setting
    return list(settings.values())


def _flatten(
    values: Mapping[str, Any], prefix: str, at: tuple[str, ...], known: Mapping[str, FieldInfo]
) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Yield (dotted key, value, path in the document) of every leaf; an empty section sets nothing."""
    for name, value in values.items():
        key, path = f"{prefix}{name}", (*at, name)
        if any(k.startswith(f"{key}.") for k in known) and (value is None or isinstance(value, dict)):
            yield from _flatten(value or {}, f"{key}.", path, known)
        else:
            yield key, value, path


def _from_environment(environ: Mapping[str, str], known: Mapping[str, FieldInfo]) -> list[_Setting]:
    by_name = {env_name(key): key for key in known}
    settings: dict[str, _Setting] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or not text:
            continue
        name = variable.replace("__", "_")
        key = by_name.get(name)
        if key is None:
            # a key beneath a free mapping: PRUNETAYLOR_MODEL_ARGS_DEPTH is model.args.depth
            outer = next((n for n, k in by_name.items() if is_open(known[k]) and name.startswith(f"{n}_")), None)
            if outer is None:
                close = closest(name, by_name)
                hint = f"; did you mean {close}?" if close else ""
                raise UsageError(f"{variable} in the environment is not a setting{hint}", _ALL_KEYS)
            key = f"{by_name[outer]}.{name[len(outer) + 1 :].lower()}"
        _add(settings, _Setting(key, _parse(text, variable), f"environment {variable}", text))
    return list(settings.values())


def _from_command_line(
    pairs: Sequence[str], flags: Mapping[str, str | None], known: Mapping[str, FieldInfo]
) -> list[_Setting]:
    settings: dict[str, _Setting] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"{pair!r} is not KEY=VALUE", "settings look like prune.sparsity=0.8")
        value = _parse(text, key)
        flat: dict[str, tuple[Any, str | None]] = {key: (value, text)}
        if isinstance(value, dict):
            flat = {k: (v, None) for k, v, _ in _flatten({key: value}, "", (), known)}
        for name, (inner, typed) in flat.items():
            setting = _Setting(name, inner, COMMAND_LINE, typed)
            _require_known(setting, known)
            _add(settings, setting)
    for key, given in flags.items():
        if given is None:
            continue
        option = _option(key, given, takes_text(known[key]))
        _add(settings, _Setting(key, option, COMMAND_LINE, given))
    if clash := nested_clash({key: one.value for key, one in settings.items()}):
        raise UsageError(f"{clash[0]} and {clash[1]} contradict each other on the command line", "keep one of the two")
    return list(settings.values())


def _add(settings: dict[str, _Setting], setting: _Setting) -> None:
    """Add a setting; raise UsageError if the same kind of source gives the key another value."""
    other = settings.get(setting.key)
    if other is not None and setting.text != other.text and not same(setting.value, other.value):
        values = " and to ".join(one.text or _shown(one.value) for one in (other, setting))
        place = f"on the {COMMAND_LINE}" if setting.origin == other.origin else f"in {other.origin}, {setting.origin}"
        raise UsageError(f"{setting.key} is set twice {place}, to {values}", "keep one of the two")
    settings[setting.key] = setting


def _option(key: str, text: str, is_text: bool) -> Any:
    """Return the value of an option: the text as typed if the key takes text, so that ``[best].pt`` is a file."""
    if not text.strip():
        raise UsageError(f"{key} is set to nothing on the command line", _ALL_KEYS)
    return text if is_text else _parse(text, key)


def _parse(text: str, where: str) -> Any:
    try:
        return parse_value(text)
    except UsageError as err:
        raise UsageError(f"{where}: {err.cause}", err.remedy) from err


def _require_known(setting: _Setting, known: Mapping[str, FieldInfo]) -> None:
    key = setting.key
    if key in known or any(is_open(info) and key.startswith(f"{name}.") for name, info in known.items()):
        return
    inner = [k for k in known if k.startswith(f"{key}.")]
    if inner:
        raise UsageError(f"{key} ({setting.origin}) is a section, not a setting", f"set {inner[0]} and the like")
    raise UsageError(f"unknown key {key!r} ({setting.origin}){suggestion(key, known)}", _ALL_KEYS)


def _assign(setting: _Setting, values: dict[str, Any], origins: dict[str, str], known: Mapping[str, FieldInfo]) -> None:
    key, value = setting.key, setting.value
    outer = next((k for k in known if key.startswith(f"{k}.")), None)
    if outer is not None:
        before = values.get(outer)
        values[outer] = _with(before if isinstance(before, dict) else {}, key[len(outer) + 1 :].split("."), value)
        if origins[outer] == DEFAULT:
            origins[outer] = setting.origin
    else:
        for beneath in [k for k in origins if k.startswith(f"{key}.")]:
            del origins[beneath]
        values[key] = _fitted(setting, known[key])
    origins[key] = setting.origin


def _with(mapping: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of ``mapping`` with ``value`` at ``path``."""
    head, *rest = path
    inner = mapping.get(head)
    return {**mapping, head: _with(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def _fitted(setting: _Setting, info: FieldInfo) -> Any:
    """Return text as typed if the key takes text (``output=2024``), and a single pattern as a list of one."""
    value = setting.value
    if takes_text(info) and setting.text is not None and isinstance(value, bool | int | float):
        return setting.text
    if get_origin(info.annotation) is list and isinstance(value, str):
        return [value]
    return value


def _validate(values: Mapping[str, Any], origins: Mapping[str, str], known: Mapping[str, FieldInfo]) -> Config:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        nested = _with(nested, key.split("."), value)
        if not key.startswith("model.args") and _not_finite(value):
            raise UsageError(f"{key} is {value} ({origins[key]}), which is not a number", _expected(key))
    try:
        return Config.model_validate(nested)
    except ValidationError as err:
        raise _type_error(err, values, origins, known) from err


def _type_error(
    err: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str], known: Mapping[str, FieldInfo]
) -> UsageError:
    """Return the error of the first invalid key, with everything that its value could have been."""
    expected: dict[str, list[str]] = {}
    for one in err.errors(include_url=False, include_context=False):
        path = ".".join(str(part) for part in one["loc"])
        key = next((k for k in known if path == k or path.startswith(f"{k}.")), path)
        text = one["msg"]
        for before, after in _PLAINER.items():
            text = text.replace(before, after)
        if isinstance(values.get(key), dict) and one["type"] in ("missing", "extra_forbidden"):
            text = f"a mapping {'with' if one['type'] == 'missing' else 'without'} {one['loc'][-1]}"
        if text not in expected.setdefault(key, []):
            expected[key].append(text)
    key, texts = next(iter(expected.items()))
    given, origin = values.get(key), origins.get(key, DEFAULT)
    if err.errors()[0]["type"] == "value_error":  # a validator of ours, which names the value itself
        return UsageError(f"{key}: {texts[0]} ({origin})", _expected(key, given))
    return UsageError(f"{key} is {_shown(given)} ({origin}), but should be {' or '.join(texts)}", _expected(key, given))


def _expected(key: str, given: Any = None) -> str:
    if key != "prune.sparsity":
        return _ALL_KEYS
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if number and 1 < given < 2:  # 1.5 is no likely percentage
        return "give a fraction below 1, such as 0.5, or a percentage, such as 50%"
    return f"{_SPARSITY}; did you mean {given:g}%?" if number and 2 <= given < 100 else _SPARSITY


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _not_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_not_finite, value.values()))
    if isinstance(value, list):
        return any(map(_not_finite, value))
    return isinstance(value, float) and not math.isfinite(value)
