"""A finished run in words: how much was removed, how the metric changed, whether that is noise, and what to try next.

The verdict is on the run's own metric. A change is within noise if its paired 95 % interval contains zero. A change
beyond noise is judged by its size: an accuracy by percentage points and by its share of the dense network's margin over
the best constant answer, a loss by that share alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunetaylor.core.config.asked import asked
from prunetaylor.core.config.schema import Config
from prunetaylor.core.results.metric import MetricDescription
from prunetaylor.core.results.outcome import BROKEN, PRUNED_AT_CHANCE, Drop, Judgement, PruneResult, Stage

SMALL, LARGE = 1.0, 5.0
"""Percentage points of accuracy: a drop that is certain is worth a look beyond the first, and bad beyond the second."""
SOME, MUCH = 0.05, 0.25
"""The same as shares of what the dense network is better by than a constant answer."""
_UNFITTED = ("random", "magnitude", "lamp")
"""Methods that look at no samples; neither does their default repair."""
_WEAK = ("random", "magnitude", "lamp", "taylor1", "obd")
"""Methods that a stronger one may replace."""


@dataclass(frozen=True)
class _MetricChange:
    """A change of the metric: a positive ``drop`` is worse; ``share`` is relative to the dense network's margin."""

    text: str
    drop: Drop
    share: Drop
    points: bool  # whether ``drop`` is in percentage points


def assess(outcome: PruneResult, config: Config, training: int) -> Judgement:
    """Return the verdict on a run, for its first line, its report's title and programs.

    ``training`` is the number of training samples.
    """
    removed = _removed(outcome)
    keys = {alert.key for alert in outcome.warnings}
    change = _change(outcome)
    if change is None:
        measured = "accuracy not measured: name samples with --data" if not training else "too few samples to compare"
        return Judgement("caution", f"{removed}; {measured}.")
    text = f"{removed}; {change.text}."
    if keys & set(BROKEN):
        return Judgement("bad", f"{text} The dense network is no better than guessing here, so this means nothing.")
    level = "bad" if PRUNED_AT_CHANCE in keys else _level(change)
    if PRUNED_AT_CHANCE in keys:
        text += " The pruned network is no better than guessing."
    elif level == "caution" and change.drop.low <= 0:
        text += f" So few samples cannot exclude a drop of {_amount(change.drop.high, change.points)}: measure on more."
        return Judgement(_worst_if_unfinished(outcome, level), text)
    if outcome.unfinished is not None:
        return Judgement(_worst_if_unfinished(outcome, level), f"{text} {_sentence(outcome.unfinished.remedy)}")
    if level != "ok" and outcome.sparsity.removed:
        text += f" Try {_alternatives(remedies(outcome, config, training))}."
    return Judgement(level, text)


def remedies(outcome: PruneResult, config: Config, training: int) -> list[str]:
    """Return at most three settings that may improve the network, as command-line words, the cheapest first."""
    words = []
    if config.prune.method in _WEAK:
        words.append("prune.method=auto (a stronger criterion)")
    if config.prune.refine == "none":
        words.append("prune.refine=auto (refinement of the kept weights)")
    drawn, fits = config.calibration.samples, asked(config.prune.repair) not in (None, "none")
    if drawn < training and (fits or outcome.method not in _UNFITTED):
        words.append(f"calibration.samples={min(4 * drawn, training)}")
    epochs = len(outcome.epochs)
    words.append(f"--epochs {2 * epochs if epochs else 3} ({'longer ' if epochs else ''}fine-tuning)")
    target, lower = outcome.sparsity.asked, _lower(outcome.sparsity.asked)
    return [*words[:2], *([f"--sparsity {lower}%"] if lower < 100 * target else [])]


def _lower(sparsity: float) -> int:
    """Return a lower sparsity in whole percent that keeps twice the weights, or else removes half as many."""
    return max(1, math.floor(100 * max(1 - 2 * (1 - sparsity), sparsity / 2) + 1e-9))


def _removed(outcome: PruneResult) -> str:
    cut = outcome.sparsity
    if outcome.unfinished is not None:
        return f"stopped early ({outcome.unfinished.cause}): {_percent(cut.obtained)} of the weights removed"
    return f"{_percent(cut.obtained)} of the weights removed"


def _percent(fraction: float) -> str:
    """Return a percentage with at most two decimals, and 100 only if everything was removed."""
    shown = min(100 * fraction, 99.99) if fraction < 1 else 100.0
    return f"{shown:.2f}".rstrip("0").rstrip(".") + " %"


def _change(outcome: PruneResult) -> _MetricChange | None:
    """Return the change of the run's metric, or None if the networks were not both measured."""
    dense, pruned = outcome.dense.metrics, outcome.pruned.metrics
    metric, drop = outcome.metric_description, outcome.drop
    if drop is None:
        return None
    before, after = dense[metric.name], pruned[metric.name]
    baseline = outcome.constant.get(metric.name)
    margin = abs(before) if baseline is None else metric.sign * (before - baseline)
    values = f"{before:.2f} to {after:.2f} %" if metric.is_share else f"{before:.4g} to {after:.4g}"
    text = f"{metric.title} {values} ({_drop_text(drop, metric)})"
    return _MetricChange(text, drop, _as_share(drop, margin), points=metric.is_share)


def _drop_text(drop: Drop, metric: MetricDescription) -> str:
    """Return the change with its sign as people write it: worse accuracy is negative, worse loss positive."""
    sign, points = -metric.sign, metric.is_share
    value, *ends = (sign * x for x in (drop.value, drop.low, drop.high))
    low, high = (f"{x + 0.0:+.2f}" if points else f"{x + 0.0:+.3g}" for x in sorted(ends))
    change = f"{round(value, 2) + 0.0:+.2f} pp" if points else f"{value + 0.0:+.3g}"
    verdict = "within noise, " if drop.low <= 0 <= drop.high else ""
    return f"{change}, {verdict}95 % interval {low} to {high}"


def _as_share(drop: Drop, margin: float) -> Drop:
    """Return the drop as a share of the dense network's margin; all of it if there is no margin."""
    if margin <= 0:
        return Drop(*(math.copysign(math.inf, x) if x else 0.0 for x in (drop.value, drop.low, drop.high)))
    return Drop(drop.value / margin, drop.low / margin, drop.high / margin)


def _level(change: _MetricChange) -> str:
    drop, share = change.drop, change.share
    if not math.isfinite(drop.value):
        return "bad"
    if drop.low > 0:
        if share.value > MUCH or (change.points and drop.value > LARGE):
            return "bad"
        return "caution" if share.value > SOME or (change.points and drop.value > SMALL) else "ok"
    return "caution" if share.high > MUCH or (change.points and drop.high > LARGE) else "ok"


def _worst_if_unfinished(outcome: PruneResult, level: str) -> str:
    return "bad" if outcome.unfinished is not None else level


def _amount(value: float, points: bool) -> str:
    return f"{value:.2f} pp" if points else f"{value:.3g}"


def _sentence(text: str) -> str:
    text = text.rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _alternatives(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


# The Taylor model's predictions, held against what was measured.


def prediction_status(stage: Stage) -> str:
    """Return "ok", "noise", "off" or "" for a stage's predicted change since the dense network ("": none to check).

    "noise" means that prediction and measurement differ by more than a factor of two, but by no more than noise or a
    negligible amount.
    """
    if not stage.accepted or stage.believed is None:
        return ""
    if not stage.believed:
        return "off"
    ratio = stage.cumulative_ratio
    return "noise" if ratio is not None and not 0.5 <= ratio <= 2 else "ok"


def prediction_check(stages: Sequence[Stage]) -> Judgement:
    """Return whether the predictions agreed with the measurements, and if not, from which stage on."""
    checked = [(i, stage, prediction_status(stage)) for i, stage in enumerate(stages, 1) if prediction_status(stage)]
    if not checked:
        return Judgement("ok", "prediction check: nothing was predicted")
    wrong = [(i, stage) for i, stage, how in checked if how == "off"]
    if not wrong:
        noisy = [f"{i}" for i, _, how in checked if how == "noise"]
        more = f" (stage {', '.join(noisy)}: too small a change or too few samples to tell)" if noisy else ""
        return Judgement("ok", f"prediction check: OK at every stage{more}")
    first = wrong[0][0]
    where = "at every stage"
    if any(how != "off" for _, _, how in checked):
        rest = {i for i, _, _ in checked if i >= first}
        where = f"from stage {first}, {_percent(wrong[0][1].sparsity)} sparsity, on"
        if rest != {i for i, _ in wrong}:
            where = f"at stage {', '.join(str(i) for i, _ in wrong)}"
    return Judgement(
        "caution", f"warning: {_disagreement([stage for _, stage in wrong])} {where}; trust the measured accuracy only"
    )


def _disagreement(stages: Sequence[Stage]) -> str:
    """Return by how much measured and predicted change differ at most, in words."""
    ratios = [stage.cumulative_ratio for stage in stages]
    over = [ratio for ratio in ratios if ratio is not None and ratio > 2]
    if any(stage.cumulative_measured is None for stage in stages):
        return "the measured loss is not finite"
    if over:
        return f"measured loss exceeds the prediction {max(over):.3g}x"
    under = [ratio for ratio in ratios if ratio is not None and 0 < ratio < 0.5]
    if under:
        return f"measured loss falls short of the prediction {1 / min(under):.3g}x"
    if any(ratio is not None and ratio < 0 for ratio in ratios):
        return "measured and predicted loss move in opposite directions"
    return "measured and predicted loss disagree"
