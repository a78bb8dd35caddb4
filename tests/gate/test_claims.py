"""The gate's claim on a loss: a rise beyond the maximum passes in 5 % of test sets at most, however it is spread."""

import math

import pytest
import torch

from prunetaylor.gate.limits import metric_drop
from prunetaylor.measure.evaluate import evaluate_outputs
from prunetaylor.measure.metrics import load_metric
from prunetaylor.measure.paired import bootstrap_interval
from prunetaylor.taylor.losses.by_task import LOSSES

LARGEST_CHANGE = 10.0
TRIALS = 100


def shares(samples: int, share: float, size: float, limit: float) -> dict[str, float]:
    """Of each verdict on test sets where a share of the samples loses so much, and the rest changes by little."""
    random = torch.Generator().manual_seed(0)
    found = {"pass": 0, "fail": 0, "inconclusive": 0}
    for trial in range(TRIALS):
        rises = 0.01 * torch.randn(samples, generator=random, dtype=torch.float64)
        rises += size * (torch.rand(samples, generator=random) < share)
        drop = bootstrap_interval(
            rises, torch.zeros(samples), torch.Generator().manual_seed(trial), 0.9, LARGEST_CHANGE
        )
        found[metric_drop("loss", drop, samples, limit, LARGEST_CHANGE).status] += 1
    return {status: count / TRIALS for status, count in found.items()}


@pytest.mark.parametrize(
    ("share", "size"),
    [
        (0.001, LARGEST_CHANGE),
        (0.001, 1.0),
        (0.003, LARGEST_CHANGE),
        (0.01, LARGEST_CHANGE),
        (0.01, 1.0),
        (0.2, 1.0),
    ],
)
def test_a_rise_at_the_limit_is_misjudged_at_most_once_in_twenty(share: float, size: float) -> None:
    found = shares(400, share, size, limit=share * size)
    at_most = 0.05 + 2 * math.sqrt(0.05 * 0.95 / TRIALS)
    assert found["pass"] <= at_most
    assert found["fail"] <= at_most


def test_what_the_samples_can_carry_is_still_judged() -> None:
    assert shares(400, 0.0, 0.0, limit=0.1)["pass"] == 1  # 3 reach / n is 0.075
    assert shares(400, 0.2, 1.0, limit=0.05)["fail"] > 0.9


def test_it_says_which_rise_the_samples_cannot_exclude() -> None:
    rises = torch.full((400,), 0.001, dtype=torch.float64)
    drop = bootstrap_interval(rises, torch.zeros(400), torch.Generator().manual_seed(0), 0.9, LARGEST_CHANGE)
    check = metric_drop("loss", drop, 400, 0.02, LARGEST_CHANGE)
    assert check.status == "inconclusive"
    assert check.samples_needed == pytest.approx(400 * 0.075 / 0.019, rel=0.1)  # nearly all of it shrinks with n
    assert "cannot exclude that 0.75 % of all lose up to 10 each" in check.why


@pytest.mark.parametrize("task", ["classification", "binary", "regression"])
def test_no_target_costs_more_than_the_worst(task: str) -> None:
    g = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn(60, 4 if task == "classification" else 1, generator=g)
    targets = {
        "classification": torch.randint(4, (60,), generator=g),
        "binary": (torch.rand(60, 1, generator=g) < 0.5).float(),
        "regression": torch.randn(60, 1, generator=g),
    }[task]
    worst = evaluate_outputs(outputs, targets, task, load_metric("loss")).largest_change
    assert worst is not None
    loss = LOSSES[task]
    every = [loss.values(outputs, targets[i : i + 1].expand(60, *targets.shape[1:])) for i in range(60)]
    largest = float(torch.stack(every).max())
    assert worst <= largest + 1e-5
    assert worst >= (0.8 if task == "regression" else 0.999) * largest
