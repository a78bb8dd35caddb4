"""A settled setting with its reason, as a plan lists it and a report prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Choice(Generic[T_co]):
    """``key`` is the configuration's, where it has one; ``reason`` says in plain English why it has this ``value``.

    ``line`` is what the log and the report say of it; a choice without one is listed in the plan alone.
    """

    key: str
    value: T_co  # as JSON can hold it
    reason: str
    line: str = ""
