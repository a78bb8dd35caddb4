"""How far each stage goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, log

RAISES = 4
"""Powers of ten that the damping may be above the one asked for."""
STEP = 0.7
"""Share of the weights that a stage keeps, by default: the local model is re-fitted before it is asked for more."""


def usual_stages(target: float) -> int:
    """Stages that each keep at least the share ``STEP`` of the weights, at most, and reach ``target`` together."""
    return max(1, ceil(log(1 - target) / log(STEP)))


def sparsities(target: float, stages: int | Sequence[float]) -> list[float]:
    """The sparsity after each stage, up to ``target``.

    A list is taken as it is, up to the target, which ends it; otherwise each stage keeps the same share of what the one
    before left.
    """
    if target == 0:
        return []
    if not isinstance(stages, int):
        return [*(level for level in stages if level < target), target]
    density = 1 - target
    return [*(1 - density ** (k / stages) for k in range(1, stages)), target]


def gradual(target: float, shape: str, steps: int) -> list[float]:
    """The sparsity after each step of a gradual schedule, the last of them ``target``.

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
    """After how many training steps each stage comes: evenly over the first ``steps`` of them, the first before any."""
    return [int(k * steps / stages) for k in range(stages)]


@dataclass
class Fixed:
    """Stages that were settled beforehand: how they turn out changes nothing.

    But for one that explodes: it is tried again with more damping, where that changes it, and up to ``RAISES`` times.
    """

    levels: Sequence[float]
    asked_damping: float
    _done: int = 0

    def __post_init__(self) -> None:
        self.damping = self.asked_damping

    def propose(self, now: float, change: Callable[[float], float]) -> float:
        """The next of the levels."""
        self._done += 1
        return self.levels[self._done - 1]

    def judge(
        self,
        now: float,
        then: float,
        predicted: float,
        measured: float,
        noise: float,
        guess: str = "",
        *,
        damped: bool = True,
        least: bool = False,
    ) -> bool:
        """Whether the stage stands; an infinite ``measured`` is an explosion."""
        if not isfinite(measured) and damped and self.damping < self.asked_damping * 10**RAISES:
            self.damping *= 10
            self._done -= 1
            return False
        self.damping = self.asked_damping
        return True

    def state_dict(self) -> dict[str, float]:
        return {"done": self._done, "damping": self.damping}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._done, self.damping = int(state["done"]), state["damping"]
