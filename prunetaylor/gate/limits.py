"""Each limit of a gate is compared with its measurement.

A quantity that is estimated from samples passes where its upper one-sided 95 % limit is within the maximum, fails where
its lower one exceeds it, and is inconclusive in between. So a network that is worse than the maximum passes with a
probability of at most 5 %, and one that is better fails with at most 5 %. A quantity that is counted is never
inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from prunetaylor.core.results.outcome import ClassDrop, Drop, Flips, Latency, removed_at
from prunetaylor.core.results.verdict import Check, Status, Unit
from prunetaylor.gate.sample_size import pairs_needed, values_needed
from prunetaylor.measure.paired import tango

CORRECTION = 0.5
"""The continuity correction of Tango's interval, in pairs: with it neither error exceeds 5 % (benchmarks/README.md)."""
_ALPHA = 0.05


def drop_limits(lost: int, won: int, samples: int, alpha: float = _ALPHA) -> tuple[float, float]:
    """Return the drop's one-sided limits at 1 - ``alpha``, in pp: Tango's score interval, corrected for continuity."""
    low, high = tango(lost, won, samples, 1 - 2 * alpha, CORRECTION)
    return 100 * low, 100 * high


def accuracy_drop(flips: Flips, limit: float) -> Check:
    """Check the drop of top-1, in pp."""
    low, high = drop_limits(flips.lost, flips.won, flips.samples)
    check = _estimated("max_drop", "drop", limit, "pp", 100 * (flips.lost - flips.won) / flips.samples, low, high)
    if check.status != "inconclusive":
        return check
    needed = pairs_needed(flips.lost, flips.won, flips.samples, limit, drop_limits)
    return _with_samples(check, needed, "samples")


def metric_drop(
    name: str, drop: Drop, samples: int, limit: float, largest_change: float | None = None, unit: Unit = "metric"
) -> Check:
    """Check the drop of any other metric, in ``unit``. ``drop`` has one-sided 95 % limits, infinite where unknown.

    ``largest_change`` is the most that one sample may add to the drop, if the limits allow for rare samples.
    """
    check = _estimated("max_drop", f"drop of {name}", limit, unit, drop.value, drop.low, drop.high)
    if check.status != "inconclusive":
        return check
    if math.isinf(drop.high):
        why = "the drop is the same on every resample, so these samples give no bound; more samples may"
        return replace(check, why=why)
    check = _with_samples(check, values_needed(drop, samples, limit, largest_change or 0.0), "samples")
    rare_share = -math.log(_ALPHA) / samples  # the rule of three
    if largest_change is not None and drop.value <= limit < drop.value + largest_change * rare_share:
        share = f"{100 * rare_share:.2g} % of all"
        rare = f"{samples:,} samples cannot exclude that {share} lose up to {largest_change:.3g} each"
        return replace(check, why=f"{check.why}; {rare}")
    return check


def class_drop(classes: Sequence[ClassDrop], limit: float) -> Check:
    """Check the largest drop of a class, in pp.

    It passes where the upper limit of every class is within the maximum; as all must pass, no correction is needed (an
    intersection-union test, Berger 1982). It fails where the lower limit of one class exceeds the maximum at
    1 - 0.05 / classes: of many classes one would exceed it by chance (Bonferroni).
    """
    upper = {one.label: drop_limits(one.lost, one.won, one.samples)[1] for one in classes}
    lower = {one.label: drop_limits(one.lost, one.won, one.samples, _ALPHA / len(classes))[0] for one in classes}
    failed = max(classes, key=lambda one: lower[one.label])
    doubtful = max(classes, key=lambda one: upper[one.label])
    worst = failed if lower[failed.label] > limit else doubtful
    value, low, high = worst.drop.value, lower[worst.label], upper[worst.label]
    check = _estimated("max_class_drop", "class drop", limit, "pp", value, low, high)
    who = f"class {worst.label}, {worst.samples:,} samples"
    if check.status != "inconclusive":
        return replace(check, why=f"{check.why} ({who})")
    needed = pairs_needed(worst.lost, worst.won, worst.samples, limit, drop_limits)
    return _with_samples(check, needed, f"samples of class {worst.label}")


def sparsity(removed: int, prunable: int, limit: float) -> Check:
    """Check the fraction removed, as a count: 80 % of 89,633 weights are 71,706, although no fraction is 0.8."""
    required = removed_at(limit, prunable)
    status: Status = "pass" if removed >= required else "fail"
    why = f"{removed:,} of {prunable:,} prunable weights are zero or removed; {required:,} are required"
    return Check("min_sparsity", "sparsity", limit, "fraction", removed / prunable, None, None, status, why)


def file_size(size: int, limit: int) -> Check:
    """Check the bytes of the pruned file."""
    return _counted("max_size", "size", limit, "bytes", size, f"the file has {size:,} bytes; {limit:,} are allowed")


def flops(dense: tuple[int, int], pruned: tuple[int, int], limit: float) -> Check:
    """Check the remaining share of the FLOPs.

    Each network's FLOPs are two numbers: with products by zero, and without.
    """
    shrank = pruned[0] < dense[0]
    before, after = (dense[0], pruned[0]) if shrank else (dense[1], pruned[1])
    value = after / before if before else 1.0
    rule = "layers shrank; remaining zeros count" if shrank else "without products by zero"
    return _counted("max_flops", "FLOPs", limit, "fraction", value, f"{after:,} of {before:,} remain ({rule})")


def latency(times: Latency, limit: float) -> Check:
    """Check the ratio of the networks' times; it is inconclusive on a machine whose clock is too noisy."""
    check = _estimated("max_latency_ratio", "latency ratio", limit, "ratio", times.ratio, times.low, times.high)
    if not times.steady:
        why = f"this machine is too noisy: the same network's time varies by {times.noise:.0%}"
        return replace(check, status="inconclusive", why=why)
    if check.status == "inconclusive":
        return replace(check, why=f"{check.why}; a quieter machine or a larger gate.latency_batch would decide it")
    return check


def baseless(check: Check) -> Check:
    """Return the check as inconclusive, as the dense network is at chance and cannot be a baseline."""
    why = f"the dense network cannot be a baseline, see the warning (otherwise: {check.status}, {check.why})"
    return replace(check, status="inconclusive", why=why, samples_needed=None)


def _estimated(name: str, label: str, limit: float, unit: Unit, value: float, low: float, high: float) -> Check:
    status: Status = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    why = {
        "pass": "even the upper 95 % limit is within the maximum",
        "fail": "even the lower 95 % limit exceeds the maximum",
        "inconclusive": "the maximum lies between the 95 % limits",
    }
    return Check(name, label, limit, unit, value, low, high, status, why[status])


def _counted(name: str, label: str, limit: float, unit: Unit, value: float, why: str) -> Check:
    assert math.isfinite(value)
    return Check(name, label, limit, unit, value, None, None, "pass" if value <= limit else "fail", why)


def _with_samples(check: Check, needed: int | None, what: str) -> Check:
    more = "no number of samples would decide it" if needed is None else f"{needed:,} {what} would decide it"
    return replace(check, why=f"{check.why}; at these rates {more}", samples_needed=needed)
