"""Schedules: the sparsity after each stage, fixed before the first of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, log

RAISES = 4
"""The most powers of ten by which the damping may exceed the one asked for."""
STEP = 0.7
"""Share of the weights that a stage keeps by default: the local model is fitted anew before it predicts further."""


def usual_stages(target: float) -> int:
    """Return the number of stages that each keep the share ``STEP`` of the weights, or more, and reach ``target``."""
    return max(1, ceil(log(1 - target) / log(STEP)))


def sparsities(target: float, stages: int | Sequence[float]) -> list[float]:
    """Return the sparsity after each stage, the last of them ``target``.

    A list is used as it is, up to the target; otherwise each stage keeps the same share of the remaining weights.
    """
    if target == 0:
        return []
    if not isinstance(stages, int):
        return [*(level for level in stages if level < target), target]
    density = 1 - target
    return [*(1 - density ** (k / stages) for k in range(1, stages)), target]


def gradual(target: float, shape: str, steps: int) -> list[float]:
    """Return the sparsity after each step of a gradual schedule, the last of them ``target``.

    cubic       s_k = s (1 - (1 - k/n)^3)      (Zhu & Gupta 2017, equation 1)
    linear      s_k = s k/n
    constant    s_k = 1 - (1 - s)^(k/n): each step removes the same share of what is left
    """
    shares = [k / steps for k in range(1, steps)]
    if target == 0:
        return []
    if shape == "cubic":
        return [*(target * (1 - (1 - t) ** 3) for t in shares), target]
    if shape == "linear":
        return [*(target * t for t in shares), target]
    return [*(1 - (1 - target) ** t for t in shares), target]


def pruning_steps(stages: int, steps: float) -> list[int]:
    """Return the number of training steps before each stage: evenly over the first ``steps``, 0 for the first stage."""
    return [int(k * steps / stages) for k in range(stages)]


@dataclass(frozen=True)
class StageChange:
    """The outcome of a stage that is about to be accepted or taken back.

    Attributes:
        start: the sparsity before the stage.
        end: the sparsity after it.
        predicted: the change of the error that the Taylor model predicts for all that has moved.
        measured: the change on held-out samples; infinite if the network is ruined.
        noise: the standard error of the measured change.
        predictable: the change was predicted when the stage was proposed; False if repair or a solver moves weights.
        damped: something in the stage depends on the damping.
        smallest: the stage removed a single group, so that none is smaller.
    """

    start: float
    end: float
    predicted: float
    measured: float
    noise: float
    predictable: bool = True
    damped: bool = True
    smallest: bool = False


@dataclass
class Fixed:
    """Stages whose sparsities are fixed beforehand; their outcome changes nothing.

    Only a stage that ruins the network is tried again, with more damping if anything depends on it, at most ``RAISES``
    times.
    """

    levels: Sequence[float]
    asked_damping: float
    _index: int = 0

    def __post_init__(self) -> None:
        self.damping = self.asked_damping

    def propose(self, now: float, change: Callable[[float], float]) -> float:
        """Return the next of the levels."""
        self._index += 1
        return self.levels[self._index - 1]

    def update(self, change: StageChange) -> bool:
        """Return whether the stage stands; one with an infinite measured change is tried again with more damping."""
        if not isfinite(change.measured) and change.damped and self.damping < self.asked_damping * 10**RAISES:
            self.damping *= 10
            self._index -= 1
            return False
        self.damping = self.asked_damping
        return True

    def state_dict(self) -> dict[str, float]:
        return {"done": self._index, "damping": self.damping}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._index, self.damping = int(state["done"]), state["damping"]
