"""Where a gradient is told from sampling, and where its term counts."""

import pytest

from prunetaylor.taylor.convergence import Convergence


@pytest.mark.parametrize(("square", "seen"), [(1.4, False), (1.6, True), (4.0, True)])
def test_a_gradient_is_significant_from_1_5_times_its_sampling_noise(square: float, seen: bool) -> None:
    found = Convergence(first_order_share=0.9, gradient_norm=(square * 9) ** 0.5, noise_norm=3.0, probe=0.25)
    assert found.gradient_is_significant is seen
    assert found.first_order_matters is seen


@pytest.mark.parametrize(("share", "matters"), [(0.3, False), (0.35, True)])
def test_the_first_order_term_counts_from_half_the_second_order_one(share: float, matters: bool) -> None:
    assert Convergence(share, gradient_norm=2.0, noise_norm=1.0, probe=0.25).first_order_matters is matters
