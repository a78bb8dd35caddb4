"""Each limit of a gate held against what was measured.

What is estimated from samples passes where its upper one-sided 95 % limit is within the maximum, fails where its lower
one is beyond, and is inconclusive between: then neither answer is safe. So a network that is worse than the maximum
passes with a probability of 5 % at most, and one that is better fails with 5 % at most. What is counted has no middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from prunetaylor.core.results.outcome import ClassDrop, Drop, Flips, Latency, removed_at
from prunetaylor.core.results.verdict import Check, Status, Unit
from prunetaylor.gate.sample_size import pairs_to_settle, values_to_settle
from prunetaylor.measure.paired import tango

CORRECTION = 0.5
"""Of Tango's interval, in pairs: with it neither error exceeds 5 % (benchmarks/README.md)."""
_ALPHA = 0.05


def drop_limits(lost: int, won: int, samples: int, alpha: float = _ALPHA) -> tuple[float, float]:
    """The drop's two one-sided limits at 1 - ``alpha``, in pp: Tango's score interval, corrected for continuity."""
    low, high = tango(lost, won, samples, 1 - 2 * alpha, CORRECTION)
    return 100 * low, 100 * high


def accuracy_drop(found: Flips, limit: float) -> Check:
    """The drop of top-1, in pp."""
    low, high = drop_limits(found.lost, found.won, found.samples)
    check = _estimated("max_drop", "drop", limit, "pp", 100 * (found.lost - found.won) / found.samples, low, high)
    if check.status != "inconclusive":
        return check
    needed = pairs_to_settle(found.lost, found.won, found.samples, limit, drop_limits)
    return _with_samples(check, needed, "samples")


def metric_drop(name: str, drop: Drop, samples: int, limit: float, reach: float | None = None) -> Check:
    """The drop of any other metric, in its own unit. ``drop`` has one-sided limits at 95 %, infinite where unknown.

    ``reach``: how much a sample may add to the drop, where the limits allow for what these samples do not show.
    """
    check = _estimated("max_drop", f"drop of {name}", limit, "metric", drop.value, drop.low, drop.high)
    if check.status != "inconclusive":
        return check
    if math.isinf(drop.high):
        why = "the drop is the same on every resample, so these samples give no bound; more samples may"
        return replace(check, why=why)
    check = _with_samples(check, values_to_settle(drop, samples, limit, reach or 0.0), "samples")
    unseen = -math.log(_ALPHA) / samples  # the rule of three
    if reach is not None and drop.value <= limit < drop.value + reach * unseen:
        rare = f"{samples:,} samples cannot exclude that {100 * unseen:.2g} % of all lose up to {reach:.3g} each"
        return replace(check, why=f"{check.why}; {rare}")
    return check


def class_drop(classes: Sequence[ClassDrop], limit: float) -> Check:
    """The largest drop of a class, in pp.

    It passes where the upper limit of every class is within the maximum: as all must, no correction is due (an
    intersection-union test, Berger 1982). It fails where the lower limit of one class is beyond the maximum, at
    1 - 0.05 / classes: with many classes one of them is beyond it by chance (Bonferroni).
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
    needed = pairs_to_settle(worst.lost, worst.won, worst.samples, limit, drop_limits)
    return _with_samples(check, needed, f"samples of class {worst.label}")


def sparsity(removed: int, prunable: int, limit: float) -> Check:
    """The fraction removed. It is compared as a count: 80 % of 89,633 weights are 71,706, though no fraction is 0.8."""
    wanted = removed_at(limit, prunable)
    status: Status = "pass" if removed >= wanted else "fail"
    why = f"{removed:,} of {prunable:,} prunable weights are zero or removed; {wanted:,} are required"
    return Check("min_sparsity", "sparsity", limit, "fraction", removed / prunable, None, None, status, why)


def file_size(size: int, limit: int) -> Check:
    """Bytes of the file that was given."""
    return _counted("max_size", "size", limit, "bytes", size, f"the file has {size:,} bytes, {limit:,} are allowed")


def flops(dense: tuple[int, int], pruned: tuple[int, int], limit: float) -> Check:
    """What remains of the FLOPs; both networks' are (zeros counted as work, without the products by zeros)."""
    shrank = pruned[0] < dense[0]
    before, after = (dense[0], pruned[0]) if shrank else (dense[1], pruned[1])
    value = after / before if before else 1.0
    what = "layers shrank: zeros that are left count as work" if shrank else "products by zeros not counted"
    return _counted("max_flops", "FLOPs", limit, "fraction", value, f"{after:,} of {before:,} remain ({what})")


def latency(found: Latency, limit: float) -> Check:
    """The ratio of the networks' times; nothing is judged by a clock that cannot be believed."""
    check = _estimated("max_latency_ratio", "latency ratio", limit, "ratio", found.ratio, found.low, found.high)
    if not found.steady:
        why = f"the machine is too uneven to tell: the same network's time varies by {found.noise:.0%}"
        return replace(check, status="inconclusive", why=why)
    if check.status == "inconclusive":
        return replace(check, why=f"{check.why}; a quieter machine or a larger gate.latency_batch would settle it")
    return check


def baseless(check: Check) -> Check:
    """The same limit where the dense network is at chance: nothing can be judged against it."""
    why = f"the dense network cannot be a baseline, see the warning (otherwise: {check.status}, {check.why})"
    return replace(check, status="inconclusive", why=why, samples_needed=None)


def _estimated(name: str, label: str, limit: float, unit: Unit, value: float, low: float, high: float) -> Check:
    status: Status = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    why = {
        "pass": "even the upper 95 % limit is within the maximum",
        "fail": "even the lower 95 % limit is beyond the maximum",
        "inconclusive": "the maximum lies between the 95 % limits",
    }
    return Check(name, label, limit, unit, value, low, high, status, why[status])


def _counted(name: str, label: str, limit: float, unit: Unit, value: float, why: str) -> Check:
    assert math.isfinite(value)
    return Check(name, label, limit, unit, value, None, None, "pass" if value <= limit else "fail", why)


def _with_samples(check: Check, needed: int | None, what: str) -> Check:
    more = "no number of samples would settle it" if needed is None else f"{needed:,} {what} would settle it"
    return replace(check, why=f"{check.why}; at the rates seen {more}", samples_needed=needed)
