"""How far the next stage goes: as far as the model is believed (Conn, Gould & Toint 2000, chapter 6).

The radius is a predicted change of the error. A stage takes the largest sparsity whose predicted change lies within it,
and no more than its reach, a share of the weights left. The gain ratio, measured / predicted change, then says whether
the model earned more:

    within [1/2, 2]     radius and reach double, the damping returns towards the one asked for
    better than that    nothing changes: the model promised too little, which harms nobody
    worse than that     the radius is half of what was just predicted, the damping rises tenfold
    far worse           the same; and if it cost more than the radius, the stage is taken back, and half of it is tried,
                        a smallest one anew while the damping can still rise

Where a repair follows, what it leaves of the change is guessed beforehand by what it left of the last stage's. Of the
first there is no guess, nor of what a solver will find: these go as far as their reach. Whatever the guess was, a stage
is taken back too where far more than the radius is predicted for it once all is moved, unless it cost less than that.
What came as predicted has shown how far the model goes: the radius is twice that, if that is more, and eight times what
it was at most.

A predicted gain that comes is a ratio like any other; whatever is better than predicted counts as better, and no two
changes are told apart that noise might have made different.

The unit is the error that a constant answer would make, so that the first radius means the same for every network, loss
and number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite, log
from typing import Literal

from prunetaylor.pruning.selection.schedule import RAISES

LOW, HIGH = 0.5, 2.0
"""Gain ratios between which the model is believed."""
REJECT = 4.0
"""A stage whose change is so many times the predicted one is taken back; so is one of so many radii."""
NOISE = 2.0
"""Measured and predicted changes that differ by fewer standard errors are not told apart."""
NEGLIGIBLE = 1e-5
"""Nor are those that differ by less than this share of the error of a constant answer: at first they are rounding, and
then still nothing that anybody could see."""
START = 0.01
"""The first radius, as a share of the error of a constant answer."""
SMALLEST = 0.02
"""One stage removes at least this share of the weights left, and at most the criterion's ``MAX_STAGE_FRACTION``."""
FRESH_STAGE_FRACTION = 0.06
"""The most where every stage learns from fresh samples: the more stages, the more of them are seen."""
STAGES = 40
"""Stages that a run takes, at most, those taken back included; twice as many as its largest would need, if that is
more. When three quarters are used, each that follows removes its share of what is left to remove, and stands."""
_PROBES = 5


def fresh_stages(sparsity: float) -> int:
    """How many stages of ``FRESH_STAGE_FRACTION`` it takes from a dense network to ``sparsity``, at least one."""
    return max(1, ceil(log(1 - sparsity) / log(1 - FRESH_STAGE_FRACTION)))


RefinementNeed = Literal["none needed", "needed"]
"""Of what a proposed stage will change: where repair follows, or a solver moves the weights, nobody knows it yet."""


def agrees(predicted: float, measured: float, noise: float, scale: float) -> bool:
    """Whether the model was right: within a factor of two, or as far as anybody can tell.

    ``noise`` is the standard error of the measured change, ``scale`` the error of a constant answer.
    """
    return _within(predicted, measured) or abs(measured - predicted) <= max(NOISE * noise, NEGLIGIBLE * scale)


def _within(predicted: float, measured: float) -> bool:
    """The gain ratio lies in [LOW, HIGH], whatever the changes' sign."""
    ends = LOW * predicted, HIGH * predicted
    return min(ends) <= measured <= max(ends)


@dataclass
class TrustRegion:
    """``target``: the sparsity asked for; ``scale``: the error of a constant answer; ``damping``: the one asked for.

    ``largest``: the share of the weights left that one stage removes, at most.
    """

    target: float
    scale: float
    asked_damping: float
    largest: float

    def __post_init__(self) -> None:
        self.radius = START * self.scale
        self.reach = self.largest
        self.damping = self.asked_damping
        self.done = 0
        needed = ceil(log(1 - self.target) / log(1 - self.largest)) if self.target else 1
        self.budget = max(STAGES, 2 * needed)

    @property
    def hurried(self) -> bool:
        """Whether the budget of stages is nearly used up."""
        return self.done >= self.budget * 3 // 4

    def smallest(self, now: float) -> float:
        """The share of the weights left that the next stage removes, at least."""
        if not self.hurried:
            return SMALLEST
        stays: float = ((1 - self.target) / (1 - now)) ** (1 / max(1, self.budget - self.done))
        return max(SMALLEST, 1 - stays)

    def propose(self, now: float, change: Callable[[float], float]) -> float:
        """The sparsity after the next stage; ``change(sparsity)`` is what the model predicts for it.

        Found by bisection over the share of the weights that stays.
        """
        density, smallest = 1 - now, self.smallest(now)
        far = max(1 - self.target, density * (1 - max(self.reach, smallest)))
        if change(1 - far) <= self.radius:
            return self._snap(1 - far)
        near = max(far, density * (1 - smallest))
        for _ in range(_PROBES):
            middle = (near * far) ** 0.5
            if change(1 - middle) <= self.radius:
                near = middle
            else:
                far = middle
        return self._snap(1 - near)

    def judge(
        self,
        now: float,
        then: float,
        predicted: float,
        measured: float,
        noise: float,
        guess: RefinementNeed = "none needed",
        *,
        damped: bool = True,
        least: bool = False,
    ) -> bool:
        """Whether the stage from sparsity ``now`` to ``then`` stands; the radius and the damping follow its ratio.

        A stage that can be neither smaller nor more damped stands: the next would be the same once more.

        Args:
            measured: the error's change; infinite where the network is ruined.
            noise: the standard error of the measured change.
            guess: how the change was known when it was proposed.
            damped: whether anything in the stage depends on the damping.
            least: the stage removed a single group, so that none is smaller.
        """
        taken, negligible = 1 - (1 - then) / (1 - now), NEGLIGIBLE * self.scale
        can_shrink = not least and taken >= 2 * self.smallest(now)
        self.done += 1
        right = isfinite(measured) and _within(predicted, measured)
        worse = not right and measured - predicted > max(NOISE * noise, negligible)
        # What came far better than predicted is as far as it cost.
        change = predicted if right else min(predicted, measured)
        far = change > max(REJECT * self.radius, negligible) and can_shrink
        if far and not worse:  # the model was right: it is no reason to trust it less
            self.reach = taken / 2
            return False
        if right:
            shown = self.radius if guess == "none needed" else min(predicted, REJECT * self.radius)
            self.radius = 2 * max(self.radius, shown)
            self.reach = min(self.largest, 2 * self.reach)
            self.damping = max(self.asked_damping, self.damping / 10)
            return True
        if not worse:
            return True
        most = self.asked_damping * 10**RAISES
        small = not can_shrink and (self.damping >= most or not damped or self.hurried)
        stands = not far and (measured <= max(REJECT * predicted, self.radius) or small)
        self.radius = 0.5 * (min(self.radius, predicted) if predicted > 0 else self.radius)
        self.damping = min(self.damping * 10, most)
        if not stands:
            # A change that is predicted to cost nothing lies within any radius.
            self.reach = max(SMALLEST, taken / 2)
        return stands

    def state_dict(self) -> dict[str, float]:
        return {"radius": self.radius, "reach": self.reach, "damping": self.damping, "done": self.done}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.radius, self.reach, self.damping = state["radius"], state["reach"], state["damping"]
        self.done = int(state["done"])

    def _snap(self, sparsity: float) -> float:
        """The target itself where less than a smallest step would be left."""
        return self.target if (1 - self.target) / (1 - sparsity) > 1 - SMALLEST else sparsity
