"""Networks that are certainly no better than one answer are named, and no useful one is."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prunetaylor.core.results.outcome import CLASSES_RENAMED, DENSE_AT_CHANCE
from prunetaylor.measure.chance import best_constant_answer, check_chance, is_above_chance
from prunetaylor.measure.evaluate import evaluate_outputs

Network = Callable[[Tensor, torch.Generator], Tensor]


def labels(n: int, shares: list[float], g: torch.Generator) -> Tensor:
    return torch.multinomial(torch.tensor(shares), n, replacement=True, generator=g)


def trained(y: Tensor, g: torch.Generator, classes: int = 10) -> Tensor:
    """Right nine times in ten, and sure of it."""
    return 4 * (torch.randn(len(y), classes, generator=g) + 4 * functional.one_hot(y, classes))


def shifted(y: Tensor, g: torch.Generator) -> Tensor:
    return trained((y + 1) % 10, g)


def permuted_but_for_two(y: Tensor, g: torch.Generator) -> Tensor:
    return trained(torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 9, 2])[y], g)


def untrained(y: Tensor, g: torch.Generator) -> Tensor:
    return torch.randn(len(y), 10, generator=g)


def unscaled(y: Tensor, g: torch.Generator) -> Tensor:
    """Inputs out of range leave one answer, whatever they are."""
    return 50 * torch.randn(1, 10, generator=g) + torch.randn(len(y), 10, generator=g)


def weak(y: Tensor, g: torch.Generator) -> Tensor:
    """12 % right, far too sure: its cross-entropy is above that of the shares."""
    wrong = (y + torch.randint(1, 10, y.shape, generator=g)) % 10
    return 8.0 * functional.one_hot(torch.where(torch.rand(len(y), generator=g) < 0.12, y, wrong), 10)


EVEN = [0.1] * 10


@pytest.mark.parametrize(
    ("network", "n", "shares", "key"),
    [
        (shifted, 10_000, EVEN, DENSE_AT_CHANCE),
        (shifted, 100, EVEN, DENSE_AT_CHANCE),
        (permuted_but_for_two, 10_000, EVEN, CLASSES_RENAMED),
        (untrained, 10_000, EVEN, DENSE_AT_CHANCE),
        (untrained, 10_000, [0.55] + [0.05] * 9, DENSE_AT_CHANCE),
        (unscaled, 10_000, EVEN, DENSE_AT_CHANCE),
        (unscaled, 1000, [0.55] + [0.05] * 9, DENSE_AT_CHANCE),
        (trained, 10_000, EVEN, None),
        (trained, 40, EVEN, None),
        (untrained, 40, EVEN, None),  # who could tell?
        (shifted, 19, EVEN, None),
    ],
)
def test_who_is_told(network: Network, n: int, shares: list[float], key: str | None) -> None:
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        y = labels(n, shares, g)
        found = check_chance(evaluate_outputs(network(y, g), y, "classification"), "classification")
        assert (found.key if found else None) == key


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [40, 400, 10_000])
def test_a_problem_of_which_one_class_is_nearly_all_is_no_such_case(n: int, weighted: bool) -> None:
    """A calibrated network answers like the majority; one trained with weights is right less often, and costs more."""
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        y = labels(n, [0.95, 0.05], g)
        seen = torch.randn(n, generator=g) + y
        odds = 4 * (seen - 0.5) if weighted else math.log(0.05 / 0.95) + seen - 0.5
        assert (
            check_chance(
                evaluate_outputs(torch.stack([torch.zeros(n), odds], 1), y, "classification"), "classification"
            )
            is None
        )


@pytest.mark.parametrize("n", [100, 1000, 10_000])
def test_false_alarms_are_rare_among_networks_that_are_hardly_useful(n: int) -> None:
    """12 % of ten classes at a cross-entropy above that of the shares: accuracy alone speaks for it."""
    alarms = 0
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        y = labels(n, EVEN, g)
        alarms += check_chance(evaluate_outputs(weak(y, g), y, "classification"), "classification") is not None
    assert alarms <= 15  # 5 % and two standard errors


def test_two_labels_that_were_swapped() -> None:
    g = torch.Generator().manual_seed(0)
    y = labels(200, [0.5, 0.5], g)
    found = check_chance(evaluate_outputs(trained(1 - y, g, 2), y, "classification"), "classification")
    assert found is not None
    assert found.key == DENSE_AT_CHANCE


def test_the_shift_is_named() -> None:
    g = torch.Generator().manual_seed(0)
    y = labels(500, EVEN, g)
    found = check_chance(evaluate_outputs(shifted(y, g), y, "classification"), "classification")
    assert found is not None
    assert "shifted by -1" in found.text


@pytest.mark.parametrize("outputs", [1, 5])
def test_answers_of_yes_or_no(outputs: int) -> None:
    """A loss above that of the shares is no doubt where yes and no are told apart, as by weighted training."""
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(2000, outputs, generator=g) < 0.1).float()
    noise = torch.randn(y.shape, generator=g)
    useful = 4 * (noise + 2 * y - 0.5)
    assert check_chance(evaluate_outputs(useful, y, "binary"), "binary") is None
    for broken in (4 * (noise - 2 * y + 1.5), torch.full_like(y, 5.0)):
        found = check_chance(evaluate_outputs(broken, y, "binary"), "binary")
        assert found is not None
        assert found.key == DENSE_AT_CHANCE


def test_values_worse_than_their_mean() -> None:
    g = torch.Generator().manual_seed(0)
    y = 50 + torch.randn(200, 3, generator=g)
    raw = evaluate_outputs((y - 50) / 7, y, "regression")
    found = check_chance(raw, "regression")
    assert found is not None
    assert found.key == DENSE_AT_CHANCE
    assert (
        check_chance(evaluate_outputs(y + torch.randn(y.shape, generator=g) / 2, y, "regression"), "regression") is None
    )
    outlier = y.clone()
    outlier[0] += 1e6  # one sample is no certainty
    assert check_chance(evaluate_outputs(outlier, y, "regression"), "regression") is None


def test_the_constant_answer_is_the_best_of_its_kind() -> None:
    y = torch.tensor([0] * 30 + [1] * 10)
    found = best_constant_answer(evaluate_outputs(torch.zeros(40, 2), y, "classification"), "classification")
    assert found.metrics["top1"] == 75
    assert found.metrics["loss"] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), abs=0.05)


def test_a_network_plainly_better_than_guessing_is_told_from_others() -> None:
    g = torch.Generator().manual_seed(0)
    y = labels(256, EVEN, g)
    assert is_above_chance(evaluate_outputs(trained(y, g), y, "classification"), "classification")
    assert not is_above_chance(evaluate_outputs(untrained(y, g), y, "classification"), "classification")
    assert not is_above_chance(evaluate_outputs(shifted(y, g), y, "classification"), "classification")


def test_many_classes_and_few_samples_of_each() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(500, (25_000,), generator=g)
    at_random = torch.randn(25_000, 500, generator=g)
    assert check_chance(evaluate_outputs(at_random, y, "classification"), "classification") is not None
    useful = at_random + 0.5 * functional.one_hot(y, 500)  # right three times as often as chance, and sure of it
    assert check_chance(evaluate_outputs(3 * useful, y, "classification"), "classification") is None
