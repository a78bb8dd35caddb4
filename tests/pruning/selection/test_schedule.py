"""How far each stage goes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunetaylor.pruning.selection.schedule import (
    STEP,
    Fixed,
    StageChange,
    gradual,
    pruning_steps,
    sparsities,
    usual_stages,
)

TARGETS = st.floats(0.001, 0.999)


@given(TARGETS, st.integers(1, 40))
def test_each_stage_keeps_the_same_share_and_the_last_is_the_target(target: float, stages: int) -> None:
    levels = sparsities(target, stages)
    assert len(levels) == stages
    assert levels[-1] == target
    densities = [1.0, *(1 - s for s in levels)]
    shares = [after / before for before, after in pairwise(densities)]
    assert shares == pytest.approx([(1 - target) ** (1 / stages)] * stages)
    assert all(a < b for a, b in pairwise([0.0, *levels]))


@given(TARGETS)
def test_by_default_no_stage_removes_more_than_its_step(target: float) -> None:
    levels = sparsities(target, usual_stages(target))
    densities = [1.0, *(1 - s for s in levels)]
    assert min(after / before for before, after in pairwise(densities)) >= STEP - 1e-9
    fewer = len(levels) - 1
    assert fewer == 0 or (1 - target) ** (1 / fewer) < STEP, "one stage fewer would do"


def test_nothing_to_remove_is_no_stage() -> None:
    assert sparsities(0.0, usual_stages(0.0)) == []
    assert sparsities(0.0, 5) == []


def test_usual_targets() -> None:
    assert [len(sparsities(t, usual_stages(t))) for t in (0.3, 0.5, 0.8, 0.9, 0.95)] == [1, 2, 5, 7, 9]


def test_a_list_is_taken_as_it_is_up_to_the_target() -> None:
    assert sparsities(0.8, [0.3, 0.6]) == [0.3, 0.6, 0.8]
    assert sparsities(0.5, [0.3, 0.6]) == [0.3, 0.5]
    assert sparsities(0.3, [0.3]) == [0.3]


@given(TARGETS, st.integers(1, 40))
def test_gradual_steps_follow_their_curve_to_the_target(target: float, steps: int) -> None:
    for shape in ("cubic", "linear", "constant"):
        levels = gradual(target, shape, steps)
        assert len(levels) == steps
        assert levels[-1] == target
        assert all(a < b for a, b in pairwise([0.0, *levels]))
        assert gradual(0.0, shape, steps) == []
    removed = [1 - level / target for level in gradual(target, "cubic", steps)]
    assert removed == pytest.approx([((steps - k) / steps) ** 3 for k in range(1, steps + 1)], abs=1e-9)
    rises = [b - a for a, b in pairwise([0.0, *gradual(target, "linear", steps)])]
    assert rises == pytest.approx([target / steps] * steps)
    assert gradual(target, "constant", steps) == sparsities(target, steps)


@given(st.integers(1, 40), st.floats(40, 1e4))
def test_gradual_steps_come_evenly_the_first_before_any_training(stages: int, steps: float) -> None:
    at = pruning_steps(stages, steps)
    assert at[0] == 0
    assert len({*at}) == stages
    assert all(0 <= steps * k / stages - step < 1 for k, step in enumerate(at))


def test_fixed_stages_go_on_whatever_happens() -> None:
    plan = Fixed([0.3, 0.6], 0.01)
    assert plan.propose(0.0, lambda _: 1e9) == 0.3
    assert plan.update(StageChange(0.0, 0.3, 1.0, 1e9, 0.0))
    assert plan.propose(0.29, lambda _: 1e9) == 0.6
