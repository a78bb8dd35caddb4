"""Types of settings: shares, sizes, percentage points and names of methods, in the forms that users may write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from prunetaylor.core import registry
from prunetaylor.core.config.sizes import parse_size


def fraction(value: Any) -> Any:
    """Return ``"80%"`` as 0.8, and anything else unchanged for the type check."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


def _size(value: Any) -> Any:
    """Return ``"3GiB"`` as 3 x 2^30, and anything but text unchanged for the type check."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return parse_size(value) if isinstance(value, str) else value


_Bytes = Annotated[int, Field(gt=0)]
Size = Annotated[_Bytes, BeforeValidator(_size, json_schema_input_type=_Bytes | str)]
Fraction = Annotated[float, BeforeValidator(fraction, json_schema_input_type=float | str)]


def _points(value: Any) -> Any:
    """Return ``"0.5pp"`` as 0.5; a percent sign is refused, since a drop is not a share of anything."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower().removesuffix("pp").strip()
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not math.isfinite(points):  # a limit that nothing exceeds judges nothing
        raise ValueError(f"{value!r} is not a number of percentage points, such as 0.5 or 0.5pp")
    return points


_Points = Annotated[float, Field(ge=0)]
Points = Annotated[_Points, BeforeValidator(_points, json_schema_input_type=_Points | str)]
_Share = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[_Share, BeforeValidator(fraction, json_schema_input_type=_Share | str)]


class OneOf:
    """Marks text that must be the name of a method in a registry, or one of some further words.

    ``also`` maps the further words to their meaning. ``specs`` are forms of text with a colon that are taken too.
    """

    def __init__(
        self, methods: registry.Registry, also: dict[str, str] | None = None, specs: tuple[str, ...] = ()
    ) -> None:
        self.methods, self.also, self.specs = methods, also or {}, specs

    @property
    def known(self) -> dict[str, str]:
        """Return every word with its meaning, the further words first."""
        return self.also | {
            name: registry.describe_method(self.methods, name).summary for name in registry.names(self.methods)
        }

    def check(self, value: str) -> str:
        """Return the text; ValueError if it is none of these."""
        if self.specs and ":" in value:
            return value
        return one_of(value, [*self.also, *registry.names(self.methods), *self.specs])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        words = {"enum": list(self.known), "enumDescriptions": list(self.known.values())}
        if not self.specs:
            return {**handler(core), **words}
        return {"anyOf": [words, {**handler(core), "pattern": ":"}]}


def one_of(value: str, known: Sequence[str]) -> str:
    """Return ``value``; ValueError, with the closest one, if it is none of the known words."""
    if value not in known:
        from prunetaylor.core.errors import close_match

        raise ValueError(f"{value!r} is not known{close_match(value, known)} (one of {', '.join(known)})")
    return value
