"""A sweep: what is varied, from where, by which method, and what is sought."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prunetaylor.core.config.code import code_in, settings_of
from prunetaylor.core.config.resolve import Resolved, flat, override
from prunetaylor.core.config.values import dump_value
from prunetaylor.core.errors import UsageError
from prunetaylor.pipeline.files.run_folder import MODEL_FILE
from prunetaylor.sweep.space import Choices, Parameter

Goal = Literal["maximize", "minimize"]
METRICS: dict[str, Goal] = {
    "top1": "maximize",
    "loss": "minimize",
    "sparsity": "maximize",
    "nonzero": "minimize",
    "flops_nonzero": "minimize",
    "bytes": "minimize",
    "seconds": "minimize",
}
"""Fields of a trial's result that a sweep may ask for, with the goal that each has unless another is said."""


@dataclass(frozen=True)
class Objective:
    """A field of a trial's result, and which way it is better: "maximize" or "minimize"."""

    name: str
    goal: Goal

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.goal == "maximize" else -1


@dataclass(frozen=True)
class EarlyStop:
    """Hyperband (Li et al. 2018): ``eta`` times fewer trials go on at each rung, the first at ``min_iter``.

    An iteration is an epoch of fine-tuning, or a stage where there are none.
    """

    min_iter: int = 1
    max_iter: int | None = None
    eta: int = 3


@dataclass(frozen=True)
class Sweep:
    """A checked sweep. ``base`` is the configuration that every trial starts from."""

    name: str
    method: str
    objectives: tuple[Objective, ...]
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
        """The configuration of one trial, each of its values with its origin."""
        return override(self.base, {key: (value, f"trial {number}") for key, value in values.items()})

    def code(self) -> set[tuple[str, str]]:
        """Return the code that trials would import, (key, spec): what the base and the parameters name."""
        varied = [(p.key, value) for p in self.parameters if isinstance(p.domain, Choices) for value in p.domain.values]
        return code_in([*settings_of(self.base.config.model_dump()), *varied])

    def plain(self) -> dict[str, Any]:
        """All that makes a trial what it is; where trials run is no part of it."""
        found: dict[str, Any] = {"name": self.name, "method": self.method}
        found["metrics"] = [{"name": one.name, "goal": one.goal} for one in self.objectives]
        found["parameters"] = {one.key: one.domain.plain() for one in self.parameters}
        if self.run_cap is not None:
            found["run_cap"] = self.run_cap
        if self.early is not None:
            early = {key: value for key, value in vars(self.early).items() if value is not None}
            found["early_terminate"] = {"type": "hyperband", **early}
        found["base"] = flat(self.base)
        return found

    def dump(self) -> str:
        """The sweep as a file that ``read`` reads back, complete in itself."""
        lines = ["# This sweep as it was started, its base included; `prunetaylor sweep` takes the file or its folder."]
        for key, value in {**self.plain(), "engine": dict(self.engine)}.items():
            if isinstance(value, dict) and key not in ("early_terminate", "engine"):
                lines += [f"{key}:", *(f"  {dump_value(name)}: {dump_value(inner)}" for name, inner in value.items())]
            else:
                lines.append(f"{key}: {dump_value(value)}")
        return "\n".join(lines) + "\n"

    def digest(self) -> str:
        """sha256, hexadecimal, of ``plain`` but for the name, and of the checkpoint's content."""
        said = {key: value for key, value in self.plain().items() if key != "name"}
        if self.base.config.model.checkpoint is None:  # it is one of the parameters
            return _sha256(said)
        path = Path(self.base.config.model.checkpoint)
        path = path / MODEL_FILE if path.is_dir() else path
        try:
            with path.open("rb") as file:
                said["base"] = {**said["base"], "model.checkpoint": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as err:
            raise UsageError(f"cannot read the checkpoint {path}: {err.strerror}", "name another MODEL") from err
        return _sha256(said)


def _sha256(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
