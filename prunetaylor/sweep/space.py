"""What a sweep varies: parameters by their configuration keys, each with the values that it may take.

The form is that of W&B sweeps: ``value``, ``values``, ``min`` and ``max`` with a ``distribution``; ``parameters`` for
a section. Every value is checked against the configuration before anything runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from prunetaylor.core.config.paths import rooted
from prunetaylor.core.config.resolve import Resolved, override
from prunetaylor.core.config.values import dump_value
from prunetaylor.core.errors import UsageError, close_match

DISTRIBUTIONS = ("constant", "categorical", "int_uniform", "uniform", "q_uniform", "log_uniform_values")
FORMS = ("value", "values", "min", "max", "distribution", "q", "parameters")
MOST = 10_000
"""Values that a grid tries of one parameter, and trials of a sweep, at most: more is a slip."""
_RESERVED = {"output": "the sweep gives each trial its folder"}


@dataclass(frozen=True)
class Choices:
    """One of some values, in the order in which they were written; a constant is the only one."""

    values: tuple[Any, ...]

    @property
    def count(self) -> int | None:
        return len(self.values)

    def grid(self) -> tuple[Any, ...]:
        return self.values

    def plain(self) -> dict[str, Any]:
        return {"values": list(self.values)}


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included; ``step`` is the distance of two neighbours, None: any."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def count(self) -> int | None:
        """The number of values, where there is an end of them."""
        if self.step is None:
            return None
        return int((_exact(self.high) - _exact(self.low)) // _exact(self.step)) + 1

    def grid(self) -> tuple[Any, ...]:
        """All values of a range that has an end of them."""
        assert self.step is not None
        assert self.count is not None
        return tuple(map(self.at, range(self.count)))

    def at(self, i: int) -> float:
        """The value after so many steps from ``low``."""
        assert self.step is not None
        value = _exact(self.low) + i * _exact(self.step)
        return int(value) if self.whole else float(value)

    def plain(self) -> dict[str, Any]:
        ends = {"min": self.low, "max": self.high}
        if self.step is not None and not (self.whole and self.step == 1):
            return {**ends, "distribution": "q_uniform", "q": self.step}
        form = "log_uniform_values" if self.log else "int_uniform" if self.whole else "uniform"
        return {**ends, "distribution": form}


@dataclass(frozen=True)
class Parameter:
    """A key of the configuration and what it may be; ``origin`` says where that stands."""

    key: str
    domain: Choices | Range
    origin: str


def _exact(number: float) -> Decimal:
    """By the decimals that were written, as Optuna counts steps: in binary (0.9 - 0.5) / 0.1 is a bit less than 4."""
    return Decimal(str(number))


def label(value: Any) -> bool | int | float | str | None:
    """A value as a study keeps it: what is no scalar as the text that it would be written as."""
    return value if value is None or isinstance(value, bool | int | float | str) else dump_value(value)


def parameters(written: Mapping[str, Any], where: Callable[[Sequence[str]], str], base: Resolved) -> list[Parameter]:
    """All parameters of a file's section. ``where`` says of a path beneath it where it stands. UsageError with that."""
    found: dict[str, Parameter] = {}
    for key, form, path in _flattened(written, (), where):
        origin = where(path)
        if key in found:
            raise UsageError(f"{key} stands at {found[key].origin} and at {origin}", "keep one of the two")
        found[key] = Parameter(key, _domain(key, form, origin, base), origin)
    if not found:
        raise UsageError(
            "a sweep varies nothing: it has no parameters", "name them: prune.sparsity: {values: [0.5, 0.9]}"
        )
    return list(found.values())


def choices(key: str, values: Sequence[Any], origin: str, base: Resolved) -> Parameter:
    """A parameter that is one of ``values``, each checked."""
    return Parameter(key, _choices(key, values, origin, base), origin)


def grid(space: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    """Every combination, the last parameter varying fastest; UsageError where a parameter cannot be counted."""
    for one in space:
        if one.domain.count is None or one.domain.count > MOST:
            raise UsageError(
                f"{one.key} ({one.origin}) has too many values for method grid, which tries them all",
                "give values, or distribution q_uniform with q, or take method random or bayes",
            )
    rows = itertools.product(*(one.domain.grid() for one in space))
    return (dict(zip([one.key for one in space], row, strict=True)) for row in rows)


def _flattened(
    written: Any, path: tuple[str, ...], where: Callable[[Sequence[str]], str]
) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, ...]]]:
    """(dotted key, what is said of it, path in the file) of every parameter."""
    if not isinstance(written, Mapping):
        raise UsageError(
            f"parameters ({where(path)}) should be a mapping of keys", "such as prune.sparsity: {values: [0.5]}"
        )
    for name, form in written.items():
        inner = (*path, name)
        if not isinstance(form, Mapping):
            raise UsageError(f"{name} ({where(inner)}) is {form!r}", f"write {name}: {{value: {dump_value(form)}}}")
        for key in form:
            if key not in FORMS:
                hint = close_match(key, FORMS)
                raise UsageError(
                    f"unknown key {key!r} ({where((*inner, key))}) of the parameter {name}{hint}",
                    f"a parameter has {', '.join(FORMS[:-1])}, or parameters for the keys beneath it",
                )
        if "parameters" in form:
            if len(form) > 1:
                raise UsageError(f"{name} ({where(inner)}) has parameters and values", "keep one of the two")
            beneath = _flattened(form["parameters"], (*inner, "parameters"), where)
            yield from ((f"{name}.{key}", deep, at) for key, deep, at in beneath)
        else:
            yield name, form, inner


def _domain(key: str, form: Mapping[str, Any], origin: str, base: Resolved) -> Choices | Range:
    said = form.get("distribution")
    if said is not None and said not in DISTRIBUTIONS:
        hint = "; log_uniform takes exponents, log_uniform_values the values" if said == "log_uniform" else ""
        hint = hint or (close_match(said, DISTRIBUTIONS) if isinstance(said, str) else "")
        raise UsageError(f"{key} ({origin}): no distribution {said!r}{hint}", f"known: {', '.join(DISTRIBUTIONS)}")
    has = {name for name in ("value", "values", "min", "max", "q") if name in form}
    wanted = {"constant": {"value"}, "categorical": {"values"}, "q_uniform": {"min", "max"}}
    if has == {"value"} and said in (None, "constant"):
        return _choices(key, [form["value"]], origin, base)
    if has == {"values"} and said in (None, "categorical"):
        if not isinstance(form["values"], list) or not form["values"]:
            raise UsageError(f"{key} ({origin}): values should be a list", "such as values: [0.5, 0.7, 0.9]")
        return _choices(key, form["values"], origin, base)
    if has - {"q"} == {"min", "max"} and said not in ("constant", "categorical"):
        if "q" in has and said not in (None, "q_uniform"):
            raise UsageError(f"{key} ({origin}): q needs distribution q_uniform, not {said}", "leave one of them out")
        return _range(key, form, origin, base)
    asked = " and ".join(sorted(wanted.get(str(said), {"min", "max"}))) if said else "value, values, or min and max"
    raise UsageError(
        f"{key} ({origin}) has {' and '.join(sorted(has)) or 'no values'}, but should have {asked}",
        "write value: X, values: [X, Y], or min: X and max: Y",
    )


def _choices(key: str, values: Sequence[Any], origin: str, base: Resolved) -> Choices:
    checked = [_checked(key, value, origin, base) for value in values]
    for i, value in enumerate(checked):
        if any(label(value) == label(other) for other in checked[:i]):  # 1, 1.0 and true are one to a study
            raise UsageError(f"{key} ({origin}) has the value {dump_value(values[i])} twice", "keep one of the two")
    return Choices(tuple(checked))


def _range(key: str, form: Mapping[str, Any], origin: str, base: Resolved) -> Range:
    said = form.get("distribution")
    low, high = (_checked(key, form[end], origin, base) for end in ("min", "max"))
    for end, value in (("min", low), ("max", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{key} ({origin}): {end} is {form[end]!r}, which is no number", "list its values instead")
    if low >= high:
        raise UsageError(f"{key} ({origin}): min {low} is not below max {high}", "for one value write value: X")
    whole = isinstance(low, int) and isinstance(high, int)
    if said == "int_uniform" and not whole:
        raise UsageError(f"{key} ({origin}): int_uniform needs whole numbers, not {low} and {high}", "take uniform")
    if said == "log_uniform_values":
        if low <= 0:
            raise UsageError(
                f"{key} ({origin}): a logarithm needs min above 0, not {low}", "raise min, or take uniform"
            )
        return Range(low, high, log=True) if whole else Range(float(low), float(high), log=True)
    if said == "q_uniform" or "q" in form:
        step = form.get("q", 1)
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= high - low:
            raise UsageError(f"{key} ({origin}): q is {step!r}, but should lie in (0, max - min]", "q is the step")
        whole = whole and isinstance(step, int)
        _checked(key, low + step, origin, base)
        return Range(low, high, step=step) if whole else Range(float(low), float(high), step=float(step))
    if whole and said != "uniform":
        return Range(low, high, step=1)
    _checked(key, (low + high) / 2, origin, base)  # a key that takes whole numbers only refuses it
    return Range(float(low), float(high))


def _checked(key: str, value: Any, origin: str, base: Resolved) -> Any:
    """The value as the configuration takes it (80% is 0.8). UsageError where it is no key, or not of its type."""
    if key in _RESERVED:
        raise UsageError(
            f"{key} ({origin}) cannot be varied: {_RESERVED[key]}", "name the sweep's folder with -o/--output"
        )
    taken: Any = override(base, {key: (value, origin)}).config.model_dump()
    for part in key.split("."):
        taken = taken[part]
    return rooted(key, taken)
