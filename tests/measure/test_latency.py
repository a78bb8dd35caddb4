"""What rounds of seconds say of a ratio; the clock itself is nobody's oracle."""

import random

import pytest
import torch
from torch import nn

from prunetaylor.core.progress import Silent
from prunetaylor.data.samples import Inputs
from prunetaylor.measure.latency import MAX_NOISE, ROUNDS, _rank, compare_latency, summarise


def rounds(ratio: float, noise: float, drift: float = 0.0, n: int = ROUNDS, seed: int = 0) -> list[tuple[float, ...]]:
    """(dense, pruned, dense) seconds of a machine that slows down by ``drift`` from one timing to the next."""
    chance = random.Random(seed)
    found = []
    for i in range(n):
        speed = [(1 + drift) ** (3 * i + j) for j in range(3)]
        found.append(
            tuple(s * factor * chance.lognormvariate(0, noise) for s, factor in zip(speed, (1, ratio, 1), strict=True))
        )
    return found


def test_the_limits_are_the_order_statistics_of_textbooks() -> None:
    """Conover (1999), appendix: P(Bin(n, 1/2) <= r) <= 0.05 for r = 3 of 13, 5 of 20 and 14 of 40, and for no more."""
    assert [_rank(n) for n in (13, 20, 40)] == [3, 5, 14]
    assert _rank(5) == 0
    with pytest.raises(ValueError, match="too few"):
        _rank(4)


def test_drift_cancels_and_the_ratio_is_found() -> None:
    found = summarise(rounds(0.8, noise=0.0, drift=0.01), batch=1, device="cpu")
    assert found.ratio == pytest.approx(0.8, rel=1e-3)
    assert found.low <= found.ratio <= found.high
    assert found.steady
    assert found.rounds == ROUNDS
    assert found.pruned_ms < found.dense_ms


def test_a_limit_is_on_the_wrong_side_as_seldom_as_promised() -> None:
    found = [summarise(rounds(0.9, noise=0.05, n=20, seed=seed), 1, "cpu") for seed in range(400)]
    # three standard errors of 400 trials above 5 %
    assert sum(one.low > 0.9 for one in found) <= 400 * 0.05 + 13
    assert sum(one.high < 0.9 for one in found) <= 400 * 0.05 + 13


def test_an_uneven_machine_is_noticed() -> None:
    assert summarise(rounds(0.8, noise=0.01), 1, "cpu").steady
    uneven = summarise(rounds(0.8, noise=0.4), 1, "cpu")
    assert not uneven.steady
    assert uneven.noise > MAX_NOISE


def test_real_networks_are_timed_and_left_as_they_were() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    found = compare_latency(network, nn.Linear(4, 4), Inputs.of(torch.ones(2, 4)), Silent())
    assert 0 < found.low <= found.ratio <= found.high
    assert found.dense_ms > 0 < found.pruned_ms
    assert (found.batch, found.device, found.rounds) == (2, "cpu", ROUNDS)
    assert all(module.training for module in network.modules())
    assert all(p.grad is None for p in network.parameters())
