"""A trust region sizes the next stage by how well the Taylor model has predicted (Conn, Gould & Toint 2000, chapter 6).

The radius is a predicted change of the error. A stage takes the largest sparsity whose predicted change lies within it,
and no more than its reach, a share of the remaining weights. The gain ratio, measured / predicted change, adapts it:

    within [1/2, 2]     radius and reach double, the damping returns towards the one asked for
    better than that    nothing changes: the prediction was too high, which does no harm
    worse than that     the radius is half of the predicted change, the damping rises tenfold
    far worse           the same; and if the change exceeds the radius, the stage is taken back, and one half as large
                        is tried; a smallest stage is tried again while the damping can still rise

If a repair follows, the share of the change that it leaves is estimated from the last stage. Before the first stage,
and for a solver, no estimate is possible: such a stage goes as far as its reach. Whatever was estimated, a stage is
also taken back if the change predicted after everything has moved is far above the radius, unless the measured one is
not. A change that came as predicted shows how far the model holds: the radius becomes twice that if that is more, and
at most eight times what it was.

A predicted gain that comes is a ratio like any other; whatever is better than predicted counts as better, and changes
whose difference may be noise are not told apart.

The unit is the error of a constant answer, so that the first radius means the same for every network, loss and number
of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite, log

from prunetaylor.pruning.selection.schedule import RAISES, StageChange

LOW, HIGH = 0.5, 2.0
"""Gain ratios between which a prediction is right."""
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
"""One stage removes at least this share of the weights left, and at most the criterion's ``max_stage_fraction``."""
FRESH_STAGE_FRACTION = 0.06
"""The most where every stage learns from fresh samples: the more stages, the more of them are seen."""
STAGES = 40
"""Stages that a run takes, at most, those taken back included; twice as many as its largest would need, if that is
more. When three quarters are used, each that follows removes its share of what is left to remove, and stands."""
_PROBES = 5


def fresh_stages(sparsity: float) -> int:
    """Return how many stages of ``FRESH_STAGE_FRACTION`` lead from a dense network to ``sparsity``, at least one."""
    return max(1, ceil(log(1 - sparsity) / log(1 - FRESH_STAGE_FRACTION)))


def agrees(predicted: float, measured: float, noise: float, scale: float) -> bool:
    """Return whether the prediction was right: within a factor of two, or within what the samples can tell.

    ``noise`` is the standard error of the measured change, ``scale`` the error of a constant answer.
    """
    return _within_factor_two(predicted, measured) or abs(measured - predicted) <= max(
        NOISE * noise, NEGLIGIBLE * scale
    )


def _within_factor_two(predicted: float, measured: float) -> bool:
    """Return whether the gain ratio lies in [LOW, HIGH], whatever the sign of the changes."""
    ends = LOW * predicted, HIGH * predicted
    return min(ends) <= measured <= max(ends)


@dataclass
class TrustRegion:
    """Stages that are as large as the Taylor model has proved right.

    Attributes:
        target: the sparsity asked for.
        scale: the error of a constant answer.
        asked_damping: the damping asked for.
        largest: the largest share of the remaining weights that one stage removes.
    """

    target: float
    scale: float
    asked_damping: float
    largest: float

    def __post_init__(self) -> None:
        self.radius = START * self.scale
        self.reach = self.largest
        self.damping = self.asked_damping
        self.stages_tried = 0
        needed = ceil(log(1 - self.target) / log(1 - self.largest)) if self.target else 1
        self.budget = max(STAGES, 2 * needed)

    @property
    def hurried(self) -> bool:
        """Return whether the budget of stages is nearly used up."""
        return self.stages_tried >= self.budget * 3 // 4

    def smallest(self, now: float) -> float:
        """Return the smallest share of the remaining weights that the next stage removes."""
        if not self.hurried:
            return SMALLEST
        stays: float = ((1 - self.target) / (1 - now)) ** (1 / max(1, self.budget - self.stages_tried))
        return max(SMALLEST, 1 - stays)

    def propose(self, now: float, change: Callable[[float], float]) -> float:
        """Return the sparsity after the next stage, found by bisection over the share of the weights that stays.

        ``change(sparsity)`` is the predicted change of the error.
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

    def update(self, change: StageChange) -> bool:
        """Return whether the stage stands, and adapt the radius and the damping to its gain ratio.

        A stage that can be neither smaller nor more damped stands, as the next one would be the same.
        """
        fraction = 1 - (1 - change.end) / (1 - change.start)
        predicted, measured, negligible = change.predicted, change.measured, NEGLIGIBLE * self.scale
        can_shrink = not change.smallest and fraction >= 2 * self.smallest(change.start)
        self.stages_tried += 1
        right = isfinite(measured) and _within_factor_two(predicted, measured)
        worse = not right and measured - predicted > max(NOISE * change.noise, negligible)
        # What came far better than predicted is as far as it cost.
        size = predicted if right else min(predicted, measured)
        far = size > max(REJECT * self.radius, negligible) and can_shrink
        if far and not worse:  # the model was right: it is no reason to trust it less
            self.reach = fraction / 2
            return False
        if right:
            shown = self.radius if change.predictable else min(predicted, REJECT * self.radius)
            self.radius = 2 * max(self.radius, shown)
            self.reach = min(self.largest, 2 * self.reach)
            self.damping = max(self.asked_damping, self.damping / 10)
            return True
        if not worse:
            return True
        most = self.asked_damping * 10**RAISES
        small = not can_shrink and (self.damping >= most or not change.damped or self.hurried)
        stands = not far and (measured <= max(REJECT * predicted, self.radius) or small)
        self.radius = 0.5 * (min(self.radius, predicted) if predicted > 0 else self.radius)
        self.damping = min(self.damping * 10, most)
        if not stands:
            # A change that is predicted to cost nothing lies within any radius.
            self.reach = max(SMALLEST, fraction / 2)
        return stands

    def state_dict(self) -> dict[str, float]:
        return {"radius": self.radius, "reach": self.reach, "damping": self.damping, "done": self.stages_tried}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.radius, self.reach, self.damping = state["radius"], state["reach"], state["damping"]
        self.stages_tried = int(state["done"])

    def _snap(self, sparsity: float) -> float:
        """Return the target if less than a smallest step would be left, else ``sparsity``."""
        return self.target if (1 - self.target) / (1 - sparsity) > 1 - SMALLEST else sparsity
