"""How far stages go, against a model whose believability is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunetaylor.pruning.selection.schedule import StageChange
from prunetaylor.pruning.selection.trust_region import (
    RAISES,
    REJECT,
    SMALLEST,
    STAGES,
    START,
    TrustRegion,
    agrees,
)

LARGEST = 0.35


def update(trust: TrustRegion, *numbers: float, **more: bool) -> bool:
    return trust.update(StageChange(*numbers, **more))


def region(target: float = 0.9) -> TrustRegion:
    return TrustRegion(target, 2.0, 0.01, LARGEST)


@given(st.floats(0.05, 0.99), st.floats(0.0, 0.9), st.floats(0.01, 50))
def test_a_proposal_is_ahead_within_reach_and_believed(target: float, now: float, steepness: float) -> None:
    if target - now < 1e-3:
        return
    trust = region(target)
    change = lambda s: steepness * (s - now) ** 2  # noqa: E731
    then = trust.propose(now, change)
    assert now < then <= target
    left = (1 - then) / (1 - now)
    assert left >= (1 - LARGEST) * (1 - SMALLEST) - 1e-9
    smallest = left >= 1 - 2 * SMALLEST
    assert then == target or smallest or change(then) <= trust.radius * (1 + 1e-9)


def test_the_target_is_taken_at_once_where_the_model_is_believed_so_far() -> None:
    assert region(0.3).propose(0.0, lambda _: 0.0) == 0.3
    assert region(0.9).propose(0.0, lambda _: 0.0) == pytest.approx(LARGEST)


@pytest.mark.parametrize("predicted", [1e9, 1e-9, 0.0, -1e-3, -1e9])
@pytest.mark.parametrize("measured", [1e12, float("inf")])
def test_it_always_arrives(predicted: float, measured: float) -> None:
    trust, now, taken_back = region(0.95), 0.0, 0
    for _ in range(200):
        then = trust.propose(now, lambda _: predicted)
        assert now < then <= 0.95
        if update(trust, now, then, predicted, measured, 0.0):
            now = then
        else:
            taken_back += 1
        if now == 0.95:
            assert RAISES <= taken_back < 12  # steps as small and as damped as may be are what is left
            return
    raise AssertionError(now)


def test_a_stage_that_is_taken_back_is_halved_and_grows_again() -> None:
    trust = region()
    assert not update(trust, 0, 0.35, 0.0, 1.0, 0.0)
    assert trust.propose(0, lambda _: 0.0) == pytest.approx(0.175)
    assert update(trust, 0, 0.175, 0.01, 0.01, 0.0)
    assert trust.propose(0.175, lambda _: 0.0) == pytest.approx(1 - 0.825 * 0.65)


@pytest.mark.parametrize(("measured", "doubles"), [(-0.6, True), (-1.0, True), (-1.9, True), (-3.0, False)])
def test_a_predicted_gain_that_came_is_believed(measured: float, doubles: bool) -> None:
    trust = region()
    radius = trust.radius
    assert update(trust, 0, 0.3, -1.0, measured, 0.0)
    assert (trust.radius, trust.damping) == ((2 if doubles else 1) * radius, 0.01)


@pytest.mark.parametrize("predictable", [True, False])
def test_a_stage_is_taken_back_where_it_is_far_beyond_the_radius(predictable: bool) -> None:
    trust = region()
    radius = trust.radius
    assert not update(trust, 0, 0.3, 5 * radius, 5 * radius, 0.0, predictable)  # though the model was right
    assert (trust.radius, trust.damping, trust.reach) == (radius, 0.01, pytest.approx(0.15))
    assert update(trust, 0, 0.3, 50 * radius, 2 * radius, 0.0, predictable)  # far better than predicted
    assert not update(trust, 0, 0.3, 50 * radius, 20 * radius, 0.0, predictable)  # and yet too far
    assert not update(trust, 0, 0.3, 5 * radius, 15 * radius, 6 * radius, predictable)  # perhaps as predicted
    assert update(trust, 0, SMALLEST, 50 * radius, 50 * radius, 0.0, predictable)  # there is no smaller one
    assert not update(trust, 0, 0.3, 50 * trust.radius, 125 * trust.radius, 0.0, predictable)  # worse, and too far
    assert trust.damping == pytest.approx(0.1)


def test_no_radius_is_so_small_that_what_nobody_can_see_is_beyond_it() -> None:
    trust = region()
    trust.radius = 1e-9
    assert update(trust, 0, 0.3, 1e-5, 1e-5, 0.0)  # of an error of 2 that a constant answer makes
    trust.radius = 1e-9
    assert not update(trust, 0, 0.3, 1e-4, 1e-4, 0.0)


@pytest.mark.parametrize(
    ("predictable", "predicted", "times"),
    [(True, 3, 2), (False, 3, 6), (False, 0.5, 2), (False, 50, 2 * REJECT)],
)
def test_the_radius_doubles_from_what_was_right_where_it_was_a_guess(
    predictable: bool, predicted: float, times: float
) -> None:
    trust = region()
    radius = trust.radius
    assert update(trust, 0, SMALLEST, predicted * radius, predicted * radius, 0.0, predictable)
    assert trust.radius == pytest.approx(times * radius)


@pytest.mark.parametrize("predictable", [True, False])
def test_it_arrives_where_each_stage_costs_far_more_than_the_radius(predictable: bool) -> None:
    trust, now, taken_back = region(0.95), 0.0, 0
    for _ in range(200):
        then = trust.propose(now, lambda _: 0.0)
        if update(trust, now, then, 1e9, 1e9, 0.0, predictable):
            now = then
        else:
            taken_back += 1
        if now == 0.95:
            break
    assert now == 0.95
    assert taken_back < STAGES


def test_a_predicted_gain_that_became_a_loss_is_not() -> None:
    trust = region()
    radius = trust.radius
    assert update(trust, 0, 0.3, -1.0, 0.5 * radius, 0.0)  # a small one: it stands
    assert (trust.radius, trust.damping) == (0.5 * radius, pytest.approx(0.1))
    assert not update(trust, 0, 0.3, -1.0, 2 * radius, 0.0)


def test_noise_alone_changes_nothing() -> None:
    trust = region()
    radius = trust.radius
    assert update(trust, 0, 0.3, 0.01, 1.0, 0.5)  # a gain ratio of 100
    assert (trust.radius, trust.damping) == (radius, 0.01)


def test_radius_and_damping_follow_the_gain_ratio() -> None:
    trust = region()
    radius = START * 2.0
    assert trust.radius == radius
    assert update(trust, 0, 0.5, radius, 1.2 * radius, 0)  # as predicted
    assert (trust.radius, trust.damping) == (2 * radius, 0.01)
    assert update(trust, 0.5, 0.7, 1.5 * radius, 0.2 * radius, 0)  # better than predicted
    assert (trust.radius, trust.damping) == (2 * radius, 0.01)
    assert update(trust, 0.5, 0.7, 1.5 * radius, 4 * radius, 0)  # worse, yet within bounds
    assert (trust.radius, trust.damping) == (pytest.approx(0.75 * radius), pytest.approx(0.1))
    assert not update(trust, 0.5, 0.7, 0.5 * radius, 5 * radius, 0)  # far worse
    assert (trust.radius, trust.damping) == (pytest.approx(0.25 * radius), pytest.approx(1.0))
    assert update(trust, 0.5, 0.6, 0.2 * radius, 0.25 * radius, 0)
    assert (trust.radius, trust.damping) == (pytest.approx(0.5 * radius), pytest.approx(0.1))


def test_noise_is_no_failure_and_damping_has_an_end() -> None:
    trust = region()
    assert update(trust, 0, 0.5, 0.001, 0.1, 0.05)
    for _ in range(20):
        update(trust, 0, 0.5, 1.0, 100.0, 0.0)
    assert trust.damping == pytest.approx(0.01 * 10**RAISES)
    assert trust.radius > 0


@pytest.mark.parametrize(
    ("predicted", "measured", "noise", "right"),
    [
        (1.0, 2.0, 0.0, True),
        (1.0, 0.5, 0.0, True),
        (1.0, 2.1, 0.0, False),
        (1.0, 0.4, 0.0, False),
        (1.0, 0.4, 0.3, True),
        (-1.0, -0.6, 0.0, True),
        (-1.0, 0.6, 0.0, False),
        (7.6e-6, 9.8e-7, 0.0, True),  # of an error of 2 that a constant answer makes
        (7.6e-4, 9.8e-5, 0.0, False),
        (1.0, float("inf"), 0.0, False),
    ],
)
def test_what_is_believed(predicted: float, measured: float, noise: float, right: bool) -> None:
    assert agrees(predicted, measured, noise, 2.0) == right


@pytest.mark.parametrize("target", [0.3, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("largest", [0.06, 0.35, 0.9])
@pytest.mark.parametrize(("predicted", "measured"), [(1e9, 1e9), (0.0, 1.0), (1e-3, float("inf")), (0.0, 0.0)])
def test_every_search_has_an_end(target: float, largest: float, predicted: float, measured: float) -> None:
    """Whatever comes of its stages, and no stage is a repetition of one that was taken back."""
    trust, now, tried = TrustRegion(target, 2.0, 0.01, largest), 0.0, set()
    for _ in range(1000):
        then = trust.propose(now, lambda _: predicted)
        assert now < then <= target
        assert (now, then, trust.damping) not in tried
        tried.add((now, then, trust.damping))
        if update(trust, now, then, predicted, measured, 0.0):
            now = then
        if now == target:
            break
    assert now == target
    assert trust.stages_tried <= trust.budget


def test_what_does_not_depend_on_the_damping_is_not_tried_again_for_it() -> None:
    trust = region()
    assert not update(trust, 0, SMALLEST, 1e-9, 100.0, 0.0)
    assert update(trust, 0, SMALLEST, 1e-9, 100.0, 0.0, damped=False)
    assert not update(trust, 0, 0.3, 1e-9, 100.0, 0.0, damped=False)
    assert update(trust, 0, 0.3, 1e-9, 100.0, 0.0, damped=False, smallest=True)  # a single weight of a small network
