"""A finished run in one or two sentences: how much was removed, what it cost, and whether that is within noise."""

from __future__ import annotations

import math

from prunetaylor.outcome import Drop, Judgement, Outcome

SMALL, LARGE = 1.0, 5.0
"""Percentage points of accuracy: a drop that is certain is worth a look beyond the first, and bad beyond the second."""


def judge(outcome: Outcome) -> Judgement:
    """The verdict on a run, for its first line, its report's title and programs."""
    removed = f"{100 * outcome.sparsity.obtained:.1f} % of the weights removed"
    if outcome.drop is None:
        return Judgement("caution", f"{removed}; the accuracy was not measured")
    before, after = (side.metrics["top1"] for side in (outcome.dense, outcome.pruned))
    change = f"top-1 {before:.2f} to {after:.2f} %, {_certainty(outcome.drop)}"
    return Judgement(_level(outcome.drop), f"{removed}; {change}")


def _level(drop: Drop) -> str:
    if not math.isfinite(drop.value) or (drop.low > 0 and drop.value > LARGE):
        return "bad"
    return "caution" if drop.high > LARGE or (drop.low > 0 and drop.value > SMALL) else "ok"


def _certainty(drop: Drop) -> str:
    if drop.low <= 0 <= drop.high:
        return "within noise"
    return f"{'down' if drop.value > 0 else 'up'} {abs(drop.value):.2f} pp"
