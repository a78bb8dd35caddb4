"""A gate's verdict in words: the conclusion, the measurements and the limits, as every format shows them."""

from __future__ import annotations

import math

from prunetaylor.core.results.verdict import Check, Verdict
from prunetaylor.report.formats import drop_amount, metric, number, percent, size

WORST = 3
"""The number of classes that are listed."""

LOUD = 0.005
"""Classes whose drop is at most this many points are not listed."""


def conclusion(verdict: Verdict) -> str:
    """Return the verdict and the exit code in one line."""
    told = {0: "passes", 3: "fails", 4: "is undecided"}[verdict.exit_code]
    if verdict.baseless:
        return (
            f"{verdict.status}: the dense network cannot be a baseline (see the warning), exit code {verdict.exit_code}"
        )
    overridden = verdict.status == "inconclusive" and verdict.on_inconclusive is not None
    because = f" (gate.on_inconclusive is {verdict.on_inconclusive})" if overridden else ""
    return f"{verdict.status}: the gate {told}{because}, exit code {verdict.exit_code}"


def verdict_facts(verdict: Verdict) -> list[tuple[str, str]]:
    """Return label and text of the facts beside the limits."""
    facts = [("pruned", verdict.files["pruned"]), ("baseline", verdict.files["dense"])]
    if verdict.data is not None:
        facts.append(("samples", f"{verdict.samples:,} test samples of {verdict.data} (not used for pruning)"))
    before, after = (side.metrics.get(verdict.metric) for side in (verdict.dense, verdict.pruned))
    if before is not None and after is not None:
        values = metric(verdict.metric, before), metric(verdict.metric, after)
        facts.append((verdict.metric, f"{values[0]} dense, {values[1]} pruned"))
    if verdict.drop is not None:
        drop = verdict.drop
        value, low, high = (drop_amount(x, verdict.unit) for x in (drop.value, drop.low, drop.high))
        name = "drop" if verdict.goal == "max" else f"rise of {verdict.metric}"
        interval_text = f"two-sided 95 % interval {low.removesuffix(' pp')} to {high.removesuffix(' pp')}"
        facts.append((name, f"{value}, {'no interval' if math.isinf(drop.high) else interval_text}"))
    if verdict.flips is not None:
        flips = verdict.flips
        facts.append(
            ("flips", f"{flips.lost:,} lost, {flips.won:,} won; McNemar's exact p {number(flips.mcnemar_p, 3)}")
        )
    worst = worst_classes(verdict)
    if worst:
        facts.append(("worst classes", worst))
    if verdict.latency is not None:
        timed = verdict.latency
        times = f"{number(timed.dense_ms, 3)} ms dense, {number(timed.pruned_ms, 3)} ms pruned"
        how = f"on {timed.device}, batch {timed.batch}, {timed.rounds} rounds in turns, noise {timed.noise:.1%}"
        facts.append(("latency", f"{times} {how}"))
    facts.append(("time", f"{verdict.seconds:.1f} s on {verdict.device}, seed {verdict.seed}"))
    return facts


def worst_classes(verdict: Verdict) -> str:
    """Return the classes that lost most in one line; empty if none lost."""
    lost = [one for one in verdict.classes if one.drop.value > LOUD][:WORST]
    return ", ".join(f"{one.label}: {one.drop.value:.1f} pp of {one.samples:,}" for one in lost)


def shown(value: float, check: Check) -> str:
    """Return a value in the unit of its limit."""
    if check.unit == "pp":
        return f"{value:.2f} pp"
    if check.unit == "fraction":
        return percent(value)
    if check.unit == "bytes":
        return size(int(value))
    return number(value, 3)


def interval(check: Check) -> str:
    """Return the one-sided limits of a check as text; a dash if there are none."""
    if check.low is None or check.high is None or math.isinf(check.high):
        return "-"
    low, high = (shown(value, check).removesuffix(" pp") for value in (check.low, check.high))
    return f"{low} to {high}"


def allowed(check: Check) -> str:
    """Return a limit as the user gave it, such as ``<= 0.5 pp``, not rounded to the measurement."""
    sign = ">=" if check.bound == "min" else "<="
    if check.unit == "fraction":
        return f"{sign} {100 * check.limit:g} %"
    if check.unit == "bytes":
        return f"{sign} {size(int(check.limit))}"
    return f"{sign} {check.limit:g}{' pp' if check.unit == 'pp' else ''}"
