"""Whether the user asked for a value: the one place that knows how a configuration says "auto"."""

from __future__ import annotations

from typing import Literal, TypeVar

T = TypeVar("T")
AS_ASKED = "as asked"


def asked(value: T | Literal["auto"]) -> T | None:
    """The value that the user gave; None where the configuration says "auto"."""
    return None if value == "auto" else value


def asked_stages(stages: Literal["auto"] | int | list[float]) -> int | list[float] | None:
    """The stages that the user gave, their number or the sparsity after each; None where nobody said."""
    return None if stages == "auto" else stages
