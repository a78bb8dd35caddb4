"""McNemar's exact test against published p values and whole numbers; drops by class against counting by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetaylor.measure.disagreements import class_drops, flips, mcnemar
from prunetaylor.measure.paired import drop_interval


@pytest.mark.parametrize(
    ("b", "c", "p", "digits"),
    [
        # Fagerland, Lydersen & Laake (2013), BMC Med. Res. Methodol. 13:91, table 2 (Bentur et al. 2009)
        pytest.param(1, 7, 0.070, 3, id="airway-hyper-responsiveness"),
        # the same, table 3 (Cavo et al. 2012)
        pytest.param(6, 16, 0.0525, 4, id="complete-response"),
        # Agresti (1990), Categorical Data Analysis, table 10.1 (approval ratings), as R's mcnemar.exact prints it
        pytest.param(86, 150, 3.716e-5, 8, id="approval"),
        pytest.param(0, 1, 1.0, 9, id="one"),
        pytest.param(0, 5, 2 / 32, 9, id="five-one-way"),
    ],
)
def test_published_values(b: int, c: int, p: float, digits: int) -> None:
    assert mcnemar(b, c) == pytest.approx(p, abs=0.5 * 10**-digits)
    assert mcnemar(c, b) == mcnemar(b, c)


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_it_is_the_binomial_tail_in_whole_numbers(b: int, c: int) -> None:
    n, k = b + c, min(b, c)
    exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar(b, c) == pytest.approx(exact, rel=1e-9)


def test_no_flips_and_very_many() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(500_000, 501_000) == pytest.approx(math.erfc((999 / 1_001_000**0.5) / 2**0.5), rel=1e-3)
    assert mcnemar(0, 10_000) == 0  # 2^-9999, which no double holds


def test_flips_and_classes_are_counts() -> None:
    targets = torch.tensor([0, 0, 0, 2, 2, 2, 2, 5])
    dense = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0]).bool()
    pruned = torch.tensor([1, 1, 1, 0, 0, 1, 1, 0]).bool()
    found = flips(dense, pruned)
    assert (found.samples, found.lost, found.won) == (8, 2, 1)
    assert found.mcnemar_p == 1
    classes = class_drops(dense, pruned, targets)
    assert [(one.label, one.samples, one.lost, one.won) for one in classes] == [
        (2, 4, 2, 0),
        (5, 1, 0, 0),
        (0, 3, 0, 1),
    ]
    assert classes[0].drop == drop_interval(dense[3:7], pruned[3:7])
    assert classes[0].drop.value == 50
    assert sum(one.lost for one in classes) == found.lost
