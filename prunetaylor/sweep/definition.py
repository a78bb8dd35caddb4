"""A sweep: its parameters, method and objectives, and the configuration that its trials start from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prunetaylor.core import registry
from prunetaylor.core.config.code import code_in, settings_of
from prunetaylor.core.config.resolve import Resolved, flat, override
from prunetaylor.core.config.values import dump_value
from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.sweep import field_sign
from prunetaylor.pipeline.files.run_folder import MODEL_FILE
from prunetaylor.sweep.space import Choices, Parameter

Goal = Literal["maximize", "minimize"]
OBJECTIVES = (*registry.names(registry.METRICS), "sparsity", "nonzero", "flops_nonzero", "bytes", "seconds")
"""The fields of a trial's result that may be objectives."""


def default_goal(name: str) -> Goal:
    """Return the goal of an objective that states none. UsageError where it names code that cannot be loaded."""
    if ":" in name:
        from prunetaylor.measure.metrics import load_metric  # imports torch, which no other sweep needs to be read

        return "maximize" if load_metric(name).sign == 1 else "minimize"
    return "maximize" if field_sign(name) == 1 else "minimize"


@dataclass(frozen=True)
class SweepObjective:
    """A field of a trial's result that the sweep maximizes or minimizes."""

    name: str
    goal: Goal

    @property
    def sign(self) -> int:
        """1 where a larger value is better, else -1."""
        return 1 if self.goal == "maximize" else -1


@dataclass(frozen=True)
class EarlyStop:
    """Hyperband (Li et al. 2018): each rung, the first at ``min_iter``, continues one trial in ``eta``.

    An iteration is an epoch of fine-tuning, or a stage where the trials have no epochs.
    """

    min_iter: int = 1
    max_iter: int | None = None
    eta: int = 3


@dataclass(frozen=True)
class Sweep:
    """A checked sweep. ``base`` is the configuration that every trial starts from."""

    name: str
    method: str
    objectives: tuple[SweepObjective, ...]
    parameters: tuple[Parameter, ...]
    run_cap: int | None
    early: EarlyStop | None
    base: Resolved
    engine: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})
    ignored: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of trials."""
        if self.method != "grid":
            assert self.run_cap is not None
            return self.run_cap
        whole = math.prod(one.domain.count or 0 for one in self.parameters)
        return min(whole, self.run_cap or whole)

    def trial(self, number: int, values: Mapping[str, Any]) -> Resolved:
        """Return the configuration of one trial, with the origin of each value."""
        return override(self.base, {key: (value, f"trial {number}") for key, value in values.items()})

    def code(self) -> set[tuple[str, str]]:
        """Return the code that trials would import, (key, spec): what the base and the parameters name."""
        varied = [(p.key, value) for p in self.parameters if isinstance(p.domain, Choices) for value in p.domain.values]
        return code_in([*settings_of(self.base.config.model_dump()), *varied])

    def plain(self) -> dict[str, Any]:
        """Return everything that a trial's result depends on, as plain values; the engine is no part of it."""
        values: dict[str, Any] = {"name": self.name, "method": self.method}
        values["metrics"] = [{"name": one.name, "goal": one.goal} for one in self.objectives]
        values["parameters"] = {one.key: one.domain.plain() for one in self.parameters}
        if self.run_cap is not None:
            values["run_cap"] = self.run_cap
        if self.early is not None:
            early = {key: value for key, value in vars(self.early).items() if value is not None}
            values["early_terminate"] = {"type": "hyperband", **early}
        values["base"] = flat(self.base)
        return values

    def dump(self) -> str:
        """Return the sweep as a YAML file that ``read`` reads back; it includes the base."""
        lines = ["# This sweep as it was started, with its base. Continue it: prunetaylor sweep FOLDER"]
        for key, value in {**self.plain(), "engine": dict(self.engine)}.items():
            if isinstance(value, dict) and key not in ("early_terminate", "engine"):
                lines += [f"{key}:", *(f"  {dump_value(name)}: {dump_value(inner)}" for name, inner in value.items())]
            else:
                lines.append(f"{key}: {dump_value(value)}")
        return "\n".join(lines) + "\n"

    def digest(self) -> str:
        """Return the sha256, hexadecimal, of ``plain`` without the name, and of the checkpoint's content."""
        values = {key: value for key, value in self.plain().items() if key != "name"}
        if self.base.config.model.checkpoint is None:  # it is one of the parameters
            return _sha256(values)
        path = Path(self.base.config.model.checkpoint)
        path = path / MODEL_FILE if path.is_dir() else path
        try:
            with path.open("rb") as file:
                values["base"] = {**values["base"], "model.checkpoint": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as err:
            raise UsageError(f"cannot read the checkpoint {path}: {err.strerror}", "name another MODEL") from err
        return _sha256(values)


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
