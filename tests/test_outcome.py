"""What a run's numbers add up to."""

from __future__ import annotations

import pytest

from prunetaylor.outcome import Stage, believed_to


def stage(sparsity: float, ratio: float | None, *, accepted: bool = True, noise: float = 0.0) -> Stage:
    predicted = None if ratio is None else 1.0
    return Stage(
        sparsity,
        predicted,
        ratio,
        ratio,
        1.0,
        accepted=accepted,
        cumulative_noise=noise,
        cumulative_predicted=predicted,
        cumulative_measured=ratio,
        cumulative_ratio=ratio,
    )


@pytest.mark.parametrize(
    ("stages", "reached"),
    [
        ([], None),
        ([stage(0.5, None)], None),
        ([stage(0.5, 1.0), stage(0.8, 2.0), stage(0.9, 0.5)], 0.9),
        ([stage(0.5, 1.0), stage(0.8, 2.1), stage(0.9, 1.0)], 0.5),
        ([stage(0.5, 0.4), stage(0.8, 1.0)], None),
        ([stage(0.5, 1.0), stage(0.8, 9.0, accepted=False), stage(0.7, 1.0)], 0.7),
        ([stage(0.5, 0.4, noise=0.4)], 0.5),
    ],
)
def test_how_far_the_model_is_believed(stages: list[Stage], reached: float | None) -> None:
    assert believed_to(stages) == reached
