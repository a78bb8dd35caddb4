"""The verdict on a run: its level, and what stands in it, for every kind of metric."""

from __future__ import annotations

import re

import pytest
from torch import nn

from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.config.schema import Config
from prunetaylor.core.results.judgement import assess, prediction_check, prediction_status, remedies
from prunetaylor.core.results.outcome import (
    DENSE_AT_CHANCE,
    LEVELS,
    PRUNED_AT_CHANCE,
    Alert,
    Drop,
    NetworkStats,
    PruneResult,
    Sparsity,
    Stage,
    Unfinished,
)


def run(**more: object) -> PruneResult:
    """A run on samples, without anything that the verdict does not look at."""
    side = NetworkStats({}, 1000, 1000, None, None, 4000)
    values = {
        "module": nn.Identity(),
        "masks": {},
        "metric": "top1",
        "goal": "max",
        "unit": "%",
        "dense": side,
        "pruned": side,
        "sparsity": Sparsity(0.8, 0.8, 1000, 800, 1.0),
        "drop": None,
        "stages": [],
        "first_order": None,
        "layers": [],
        "skipped": [],
        "epochs": [],
        "choices": [],
        "seconds": {},
        "seed": 0,
        "device": "cpu",
    }
    return PruneResult(**{**values, **more})  # type: ignore[arg-type]


def accuracy(before: float, drop: Drop, chance: float = 10.0, **more: object) -> PruneResult:
    sides = [
        NetworkStats({"top1": x, "loss": 1.0}, 1000, 1000, None, None, 4000) for x in (before, before - drop.value)
    ]
    return run(dense=sides[0], pruned=sides[1], drop=drop, constant={"top1": chance}, **more)


def loss(before: float, rise: Drop, constant: dict[str, float], **more: object) -> PruneResult:
    sides = [NetworkStats({"loss": x}, 1000, 1000, None, None, 4000) for x in (before, before + rise.value)]
    values = {"metric": "loss", "goal": "min", "unit": "", "drop": rise, "loss_rise": rise, "constant": constant}
    return run(**values, dense=sides[0], pruned=sides[1], **more)


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (accuracy(99.4, Drop(0.2, -0.1, 0.5)), "ok"),
        (accuracy(99.4, Drop(-0.5, -0.9, -0.1)), "ok"),  # it is better
        (accuracy(99.4, Drop(0.4, 0.1, 0.7)), "ok"),  # certain and small
        (accuracy(99.4, Drop(2.5, 2.0, 3.0)), "caution"),
        (accuracy(99.4, Drop(2.0, -3.0, 7.0)), "caution"),  # too few samples to exclude a large drop
        (accuracy(99.4, Drop(84.6, 80.0, 88.0)), "bad"),
        (accuracy(12.0, Drop(1.5, 0.5, 2.5)), "bad"),  # most of what it knew
        (accuracy(99.4, Drop(float("nan"), float("nan"), float("nan"))), "bad"),
        (loss(0.2, Drop(0.01, -0.01, 0.03), {"loss": 2.3}), "ok"),
        (loss(0.2, Drop(0.02, 0.01, 0.03), {"loss": 2.3}), "ok"),
        (loss(0.2, Drop(0.2, 0.1, 0.3), {"loss": 2.3}), "caution"),
        (loss(0.2, Drop(1.5, 1.0, 2.0), {"loss": 2.3}), "bad"),
        (loss(0.2, Drop(0.2, 0.1, 0.3), {}), "bad"),  # of a loss of one's own: twice what it was
        (loss(0.2, Drop(0.005, 0.001, 0.009), {}), "ok"),
        (run(), "caution"),  # nothing was measured
    ],
)
def test_levels(outcome: PruneResult, level: str) -> None:
    found = assess(outcome, Config(), 1000)
    assert found.level == level
    assert found.level in LEVELS
    assert found.text.startswith("80 % of the weights removed; ")
    assert ("Try " in found.text) == (
        level in ("caution", "bad") and "So few" not in found.text and bool(outcome.constant or outcome.loss_rise)
    )


def test_what_is_within_noise_is_said() -> None:
    assert "within noise" in assess(accuracy(99.4, Drop(0.2, -0.1, 0.5)), Config(), 9).text
    assert "within noise" not in assess(accuracy(99.4, Drop(0.4, 0.1, 0.7)), Config(), 9).text
    assert "99.40 to 99.20 % (-0.20 pp, within noise, 95 % interval -0.50 to +0.10)" in (
        assess(accuracy(99.4, Drop(0.2, -0.1, 0.5)), Config(), 9).text
    )


def test_a_dense_network_at_chance_leaves_nothing_to_say_of_the_change() -> None:
    found = assess(accuracy(1.0, Drop(-7.0, -9.0, -5.0), warnings=[Alert(DENSE_AT_CHANCE, "")]), Config(), 9)
    assert found.level == "bad"
    assert "no better than guessing" in found.text


def test_a_pruned_network_at_chance_is_bad_however_little_that_is() -> None:
    found = assess(accuracy(13.0, Drop(3.0, 1.0, 5.0), warnings=[Alert(PRUNED_AT_CHANCE, "")]), Config(), 9)
    assert found.level == "bad"
    assert "Try " in found.text


def test_a_run_that_ended_early_is_bad_and_says_what_to_do() -> None:
    short = Unfinished("training diverged", "say finetune.lr=0.01")
    found = assess(accuracy(99.0, Drop(0.1, -0.1, 0.3), unfinished=short), Config(), 9)
    assert found.level in ("bad", "ok")
    assert "training diverged" in found.text
    assert "finetune.lr=0.01" in found.text


def test_nothing_measured_without_samples() -> None:
    assert "--data" in assess(run(), Config(), 0).text


@pytest.mark.parametrize("sparsity", [0.02, 0.3, 0.5, 2 / 3, 0.8, 0.98, 0.999])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prune.method": "magnitude", "prune.refine": "none"},
        {"calibration.samples": "40", "finetune.epochs": "2"},
    ],
)
def test_what_it_advises_is_a_configuration_that_differs(sparsity: float, values: dict[str, str]) -> None:
    def resolved(values: dict[str, str]) -> Config:
        return resolve(None, {}, [f"{key}={value}" for key, value in values.items()], {}).config

    values = {"prune.sparsity": str(sparsity), **values}
    config = resolved(values)
    outcome = accuracy(99.0, Drop(50, 40, 60), sparsity=Sparsity(sparsity, sparsity, 10_000, 500, 1.0))
    for way in remedies(outcome, config, 1000):
        word = way.split(" (")[0]
        key, value = re.fullmatch(r"(?:--)?([\w.]+)[ =](.+)", word).groups()  # type: ignore[union-attr]
        key = {"sparsity": "prune.sparsity", "epochs": "finetune.epochs"}.get(key, key)
        changed = resolved({**values, key: value})
        assert changed != config, way
        if key == "prune.sparsity":
            assert 0 < changed.prune.sparsity < sparsity


def stage(believed: bool | None, ratio: float | None, sparsity: float = 0.5, *, accepted: bool = True) -> Stage:
    measured = None if ratio is None else ratio
    return Stage(
        sparsity, 1.0, measured, ratio, 1.0, accepted, cumulative_predicted=1.0, cumulative_measured=measured,
        cumulative_ratio=ratio, believed=believed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "level", "said"),
    [
        ([stage(True, 1.1), stage(True, 1.9)], "ok", "prediction check: OK at every stage"),
        ([stage(True, 1.1), stage(True, 2.24)], "ok", "stage 2: too small a change or too few samples to tell"),
        ([stage(None, None)], "ok", "nothing was predicted"),
        ([stage(False, 9.0, accepted=False), stage(True, 1.0)], "ok", "OK at every stage"),
        ([stage(False, 3.8)], "caution", "measured loss exceeds the prediction 3.8x at every stage"),
        ([stage(True, 1.0, 0.5), stage(False, 3.8, 0.7)], "caution", "3.8x from stage 2, 70 % sparsity, on"),
        ([stage(False, 3.8), stage(True, 1.0)], "caution", "at stage 1"),
        ([stage(False, 0.2)], "caution", "falls short of the prediction 5x"),
        ([stage(False, -1.0)], "caution", "opposite directions"),
        ([stage(False, None)], "caution", "not finite"),
    ],
)  # fmt: skip
def test_predictions_and_what_is_said_of_them(stages: list[Stage], level: str, said: str) -> None:
    found = prediction_check(stages)
    assert found.level == level
    assert said in found.text
    assert (found.level == "ok") == all(prediction_status(one) != "off" for one in stages)
