"""The parameters of a sweep: configuration keys, each with the values that it may take.

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
MAX_TRIALS = 10_000
"""The most trials of a sweep, and the most values of one parameter in a grid: more is a slip."""
_RESERVED = {"output": "the sweep gives each trial its folder"}


@dataclass(frozen=True)
class Choices:
    """A list of values, in the order in which they were written; a constant is a list of one."""

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
    """A number from ``low`` to ``high``, both included, in steps of ``step``; None stands for any number between."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """True for a range of whole numbers."""
        return isinstance(self.low, int)

    @property
    def count(self) -> int | None:
        """The number of values; None where there is no end of them."""
        if self.step is None:
            return None
        return int((_exact(self.high) - _exact(self.low)) // _exact(self.step)) + 1

    def grid(self) -> tuple[Any, ...]:
        """Return all values of a range with steps."""
        assert self.step is not None
        assert self.count is not None
        return tuple(map(self.at, range(self.count)))

    def at(self, i: int) -> float:
        """Return the value ``i`` steps above ``low``."""
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
    """A key of the configuration and its possible values; ``origin`` names the line that gives them."""

    key: str
    domain: Choices | Range
    origin: str


def _exact(number: float) -> Decimal:
    """Return the decimals that were written, as Optuna counts steps: in binary (0.9 - 0.5) / 0.1 is less than 4."""
    return Decimal(str(number))


def label(value: Any) -> bool | int | float | str | None:
    """Return a value as the study stores it: a scalar as it is, anything else as its YAML text."""
    return value if value is None or isinstance(value, bool | int | float | str) else dump_value(value)


def parameters(written: Mapping[str, Any], where: Callable[[Sequence[str]], str], base: Resolved) -> list[Parameter]:
    """Read the parameters of a file's section; ``where`` gives the line of a path beneath it, for every UsageError."""
    by_key: dict[str, Parameter] = {}
    for key, form, path in _flattened(written, (), where):
        origin = where(path)
        if key in by_key:
            raise UsageError(f"{key} is given twice: {by_key[key].origin} and {origin}", "keep one of the two")
        by_key[key] = Parameter(key, _domain(key, form, origin, base), origin)
    if not by_key:
        raise UsageError(
            "a sweep varies nothing: it has no parameters", "name them: prune.sparsity: {values: [0.5, 0.9]}"
        )
    return list(by_key.values())


def choices(key: str, values: Sequence[Any], origin: str, base: Resolved) -> Parameter:
    """Return a parameter with these values, each checked."""
    return Parameter(key, _choices(key, values, origin, base), origin)


def grid(space: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    """Yield every combination, the last parameter varying fastest; UsageError where one has too many values."""
    for one in space:
        if one.domain.count is None or one.domain.count > MAX_TRIALS:
            raise UsageError(
                f"{one.key} ({one.origin}) has too many values for method grid, which tries them all",
                "give values, or distribution q_uniform with q; or use method random or bayes",
            )
    rows = itertools.product(*(one.domain.grid() for one in space))
    return (dict(zip([one.key for one in space], row, strict=True)) for row in rows)


def _flattened(
    written: Any, path: tuple[str, ...], where: Callable[[Sequence[str]], str]
) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, ...]]]:
    """Yield the dotted key, the entries and the path in the file of every parameter."""
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
    distribution = form.get("distribution")
    if distribution is not None and distribution not in DISTRIBUTIONS:
        hint = "; log_uniform takes exponents, log_uniform_values the values" if distribution == "log_uniform" else ""
        hint = hint or (close_match(distribution, DISTRIBUTIONS) if isinstance(distribution, str) else "")
        raise UsageError(
            f"{key} ({origin}): unknown distribution {distribution!r}{hint}", f"known: {', '.join(DISTRIBUTIONS)}"
        )
    has = {name for name in ("value", "values", "min", "max", "q") if name in form}
    required = {"constant": {"value"}, "categorical": {"values"}, "q_uniform": {"min", "max"}}
    if has == {"value"} and distribution in (None, "constant"):
        return _choices(key, [form["value"]], origin, base)
    if has == {"values"} and distribution in (None, "categorical"):
        if not isinstance(form["values"], list) or not form["values"]:
            raise UsageError(f"{key} ({origin}): values should be a list", "such as values: [0.5, 0.7, 0.9]")
        return _choices(key, form["values"], origin, base)
    if has - {"q"} == {"min", "max"} and distribution not in ("constant", "categorical"):
        if "q" in has and distribution not in (None, "q_uniform"):
            raise UsageError(
                f"{key} ({origin}): q needs distribution q_uniform, not {distribution}", "omit one of them"
            )
        return _range(key, form, origin, base)
    asked = (
        " and ".join(sorted(required.get(str(distribution), {"min", "max"})))
        if distribution
        else "value, values, or min and max"
    )
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
    distribution = form.get("distribution")
    low, high = (_checked(key, form[end], origin, base) for end in ("min", "max"))
    for end, value in (("min", low), ("max", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{key} ({origin}): {end} is {form[end]!r}, not a number", "list its values instead")
    if low >= high:
        raise UsageError(f"{key} ({origin}): min {low} is not below max {high}", "for one value write value: X")
    whole = isinstance(low, int) and isinstance(high, int)
    if distribution == "int_uniform" and not whole:
        raise UsageError(f"{key} ({origin}): int_uniform needs whole numbers, not {low} and {high}", "use uniform")
    if distribution == "log_uniform_values":
        if low <= 0:
            raise UsageError(f"{key} ({origin}): a logarithm needs min above 0, not {low}", "raise min, or use uniform")
        return Range(low, high, log=True) if whole else Range(float(low), float(high), log=True)
    if distribution == "q_uniform" or "q" in form:
        step = form.get("q", 1)
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= high - low:
            raise UsageError(f"{key} ({origin}): q is {step!r}, but should lie in (0, max - min]", "q is the step")
        whole = whole and isinstance(step, int)
        _checked(key, low + step, origin, base)
        return Range(low, high, step=step) if whole else Range(float(low), float(high), step=float(step))
    if whole and distribution != "uniform":
        return Range(low, high, step=1)
    _checked(key, (low + high) / 2, origin, base)  # a key that takes whole numbers only refuses it
    return Range(float(low), float(high))


def _checked(key: str, value: Any, origin: str, base: Resolved) -> Any:
    """Return the value as the configuration reads it (80% is 0.8). UsageError for an unknown key or a wrong type."""
    if key in _RESERVED:
        raise UsageError(
            f"{key} ({origin}) cannot be varied: {_RESERVED[key]}", "name the sweep's folder with -o/--output"
        )
    resolved: Any = override(base, {key: (value, origin)}).config.model_dump()
    for part in key.split("."):
        resolved = resolved[part]
    return rooted(key, resolved)
