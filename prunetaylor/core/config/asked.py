"""The values that the user asked for. Only this room knows how a configuration leaves a value to prunetaylor."""

from __future__ import annotations

from typing import Literal, TypeVar

T = TypeVar("T")
AS_ASKED = "as asked"


def asked(value: T | Literal["auto"]) -> T | None:
    """Return the value that the user gave, or None if the configuration says "auto"."""
    return None if value == "auto" else value


def asked_stages(stages: Literal["auto"] | int | list[float]) -> int | list[float] | None:
    """Return the stages that the user gave, their number or the sparsity after each, or None."""
    return None if stages == "auto" else stages
