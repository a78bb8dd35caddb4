"""What a run's numbers add up to."""

from __future__ import annotations

import pytest

from prunetaylor.core.results.outcome import Stage, believed_to


def stage(sparsity: float, believed: bool | None, *, accepted: bool = True) -> Stage:
    return Stage(sparsity, 1.0, 1.0, 1.0, 1.0, accepted=accepted, believed=believed)


@pytest.mark.parametrize(
    ("stages", "reached"),
    [
        ([], None),
        ([stage(0.5, None)], None),
        ([stage(0.5, True), stage(0.8, True), stage(0.9, True)], 0.9),
        ([stage(0.5, True), stage(0.8, False), stage(0.9, True)], 0.5),
        ([stage(0.5, False), stage(0.8, True)], None),
        ([stage(0.5, True), stage(0.8, False, accepted=False), stage(0.7, True)], 0.7),
    ],
)
def test_how_far_the_model_is_believed(stages: list[Stage], reached: float | None) -> None:
    assert believed_to(stages) == reached
