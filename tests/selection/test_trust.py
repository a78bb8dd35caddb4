"""How far stages go, against a model whose believability is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunetaylor.selection.trust import LARGEST, RAISES, SMALLEST, START, TrustRegion


def region(target: float = 0.9) -> TrustRegion:
    return TrustRegion(target, 2.0, 0.01)


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


def test_it_always_arrives() -> None:
    trust, now = region(0.95), 0.0
    for _ in range(200):
        then = trust.propose(now, lambda _: 1e9)
        assert trust.judge(now, then, 1e9, 1e12, 0.0), "a smallest step stands"
        now = then
        if now == 0.95:
            return
    raise AssertionError(now)


def test_radius_and_damping_follow_the_gain_ratio() -> None:
    trust = region()
    radius = START * 2.0
    assert trust.radius == radius
    assert trust.judge(0, 0.5, radius, 1.2 * radius, 0)  # as predicted
    assert (trust.radius, trust.damping) == (2 * radius, 0.01)
    assert trust.judge(0.5, 0.7, 1.5 * radius, 0.2 * radius, 0)  # better than predicted
    assert (trust.radius, trust.damping) == (2 * radius, 0.01)
    assert trust.judge(0.5, 0.7, 1.5 * radius, 4 * radius, 0)  # worse, yet within bounds
    assert (trust.radius, trust.damping) == (pytest.approx(0.75 * radius), pytest.approx(0.1))
    assert not trust.judge(0.5, 0.7, 0.5 * radius, 5 * radius, 0)  # far worse
    assert (trust.radius, trust.damping) == (pytest.approx(0.25 * radius), pytest.approx(1.0))
    assert trust.judge(0.5, 0.6, 0.2 * radius, 0.25 * radius, 0)
    assert (trust.radius, trust.damping) == (pytest.approx(0.5 * radius), pytest.approx(0.1))


def test_noise_is_no_failure_and_damping_has_an_end() -> None:
    trust = region()
    assert trust.judge(0, 0.5, 0.001, 0.1, 0.05)
    for _ in range(20):
        trust.judge(0, 0.5, 1.0, 100.0, 0.0)
    assert trust.damping == pytest.approx(0.01 * 10**RAISES)
    assert trust.radius > 0
