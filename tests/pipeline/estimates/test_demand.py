"""The memory that criteria are measured to work in: against what is known of their formulas, and for one that fails."""

from __future__ import annotations

import pytest
import torch

from prunetaylor.pipeline.estimates.demand import Demand, demand_of
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.taylor.memory import ChunkDivisors, use_chunks


@pytest.mark.parametrize(
    ("method", "fits", "predicts"),
    [
        ("magnitude", set(), False),
        ("taylor1", {"gradient"}, False),
        ("obd", {"gradient", "diagonal"}, False),
        ("obs", {"moments", "sensitivity"}, False),
        ("exact_obs", {"moments", "sensitivity"}, False),
        ("obs_kfac", {"moments", "sensitivity", "gradient"}, True),
        ("obs_fisher", {"fisher_rows", "gradient"}, True),
    ],
)
def test_a_criterion_shows_what_it_asks_the_taylor_model_for(method: str, fits: set[str], predicts: bool) -> None:
    demand = demand_of(method)
    assert (demand.fits, demand.predicts) == (fits, predicts)


def test_scores_are_vectors_of_all_weights() -> None:
    assert demand_of("magnitude").weights == 0.5  # in float32
    assert demand_of("magnitude").systems == demand_of("magnitude").squares == 0


def test_systems_are_held_as_matrix_and_factor_and_exact_obs_makes_smaller_copies() -> None:
    assert 2 <= demand_of("obs").systems < 2.5
    assert demand_of("obs").systems < demand_of("exact_obs").systems < 4.5


def test_blocks_of_gradients_are_chunks() -> None:
    demand, gradients = demand_of("obs_fisher"), 10**10
    assert demand.gradients == 0
    assert demand.gradients_at_once(gradients, 0) < gradients
    with use_chunks(ChunkDivisors(systems=2)):
        half = demand.gradients_at_once(gradients, 0)
    assert half == demand.gradients_at_once(gradients, 0) / 2


def test_a_search_is_stated_since_it_is_too_long_to_measure() -> None:
    assert demand_of("joint").weights == 20


def test_a_criterion_that_cannot_score_the_small_layers_gets_a_cautious_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(criterion: object, context: object) -> dict[str, torch.Tensor]:
        raise ValueError("only convolutions")

    monkeypatch.setattr(type(load_criterion("magnitude")), "score", fail)
    demand_of.cache_clear()
    try:
        assert demand_of("magnitude") == Demand()
    finally:
        demand_of.cache_clear()


def test_measuring_draws_no_global_random_numbers() -> None:
    before = torch.random.get_rng_state()
    demand_of.cache_clear()
    demand_of("obs")
    assert torch.equal(torch.random.get_rng_state(), before)
