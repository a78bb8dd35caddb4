"""Settings that cannot both be meant, seen from the configuration alone: errors that say where each of them stands."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

from prunetaylor.core.config.schema import Config, fraction
from prunetaylor.core.errors import UsageError


def settle_sparsity(config: Config, origins: Mapping[str, str], default: str) -> Config:
    """The configuration with the end of a list of stages for its sparsity, where no sparsity was given.

    UsageError where one was given, and the list ends elsewhere.
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
            "give one of them: the end of the list is the sparsity",
        )
    return config


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a setting mean the same: 80% is 0.8."""
    first, second = fraction(one), fraction(other)
    return type(first) is type(second) and (bool(first == second) or (first != first and second != second))


def nested_clash(settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """Two keys, one beneath the other, whose values differ: ``model.args={depth: 3}`` and ``model.args.depth=4``."""
    for key, value in settings.items():
        for outer in (other for other in settings if key.startswith(f"{other}.")):
            inner = settings[outer]
            for part in key[len(outer) + 1 :].split("."):
                inner = inner.get(part, value) if isinstance(inner, dict) else value
            if not same(inner, value):
                return outer, key
    return None
