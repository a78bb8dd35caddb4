"""Settings that contradict each other within one configuration; the errors say where each of them was set."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

from prunetaylor.core.config.fields import fraction
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import UsageError


def with_final_sparsity(config: Config, origins: Mapping[str, str], default: str) -> Config:
    """Return the configuration with the last of a list of stages as its sparsity, if no sparsity was given.

    Raises UsageError if one was given and the list ends elsewhere.
    """
    stages = config.prune.stages
    if not isinstance(stages, list):
        return config
    if origins["prune.sparsity"] == default:
        return config.model_copy(update={"prune": config.prune.model_copy(update={"sparsity": stages[-1]})})
    if not isclose(stages[-1], config.prune.sparsity, rel_tol=1e-9, abs_tol=1e-12):
        raise UsageError(
            f"prune.stages ends at {stages[-1]:.2%} ({origins['prune.stages']}), but prune.sparsity is "
            f"{config.prune.sparsity:.2%} ({origins['prune.sparsity']})",
            "give only one of them; the last stage is the final sparsity",
        )
    return config


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a setting mean the same, as 80% and 0.8 do."""
    value, another = fraction(one), fraction(other)
    return type(value) is type(another) and (bool(value == another) or (value != value and another != another))


def nested_clash(settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return two keys, one beneath the other, whose values differ, or None.

    So do ``model.args={depth: 3}`` and ``model.args.depth=4``.
    """
    for key, value in settings.items():
        for outer in (other for other in settings if key.startswith(f"{other}.")):
            inner = settings[outer]
            for part in key[len(outer) + 1 :].split("."):
                inner = inner.get(part, value) if isinstance(inner, dict) else value
            if not same(inner, value):
                return outer, key
    return None
