"""Each limit by its rule; both errors of the gate summed exactly over all tables."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetaylor.core.results.outcome import ClassDrop, Drop, Flips, Latency
from prunetaylor.gate.limits import (
    accuracy_drop,
    class_drop,
    drop_limits,
    file_size,
    flops,
    latency,
    metric_drop,
    sparsity,
)
from prunetaylor.gate.sample_size import MAX_SAMPLES, pairs_needed, values_needed
from prunetaylor.measure.disagreements import mcnemar
from prunetaylor.measure.paired import tango


def flipped(samples: int, lost: int, won: int) -> Flips:
    return Flips(samples, lost, won, mcnemar(lost, won))


def test_one_sided_limits_are_tangos_and_half_a_pair_wider() -> None:
    low, high = tango(43, 30, 1000, 0.90)
    assert drop_limits(43, 30, 1000)[0] < 100 * low
    assert drop_limits(43, 30, 1000)[1] > 100 * high
    assert drop_limits(43, 30, 1000) == pytest.approx((100 * low - 0.05, 100 * high + 0.05), abs=0.005)
    assert tango(43, 30, 1000, 0.90, 0.0) == (low, high)


@pytest.mark.parametrize(
    ("found", "limit", "status"),
    [
        (flipped(10_000, 30, 20), 0.5, "pass"),
        (flipped(10_000, 150, 20), 0.5, "fail"),
        (flipped(1000, 6, 3), 0.5, "inconclusive"),
        (flipped(1000, 0, 0), 0.5, "pass"),
        (flipped(100, 0, 0), 0.5, "inconclusive"),
        (flipped(1000, 0, 400), 0.0, "pass"),
    ],
)
def test_pass_fail_and_between(found: Flips, limit: float, status: str) -> None:
    check = accuracy_drop(found, limit)
    assert check.status == status
    assert check.value == pytest.approx(100 * (found.lost - found.won) / found.samples)
    assert (check.high <= limit, check.low > limit) == (status == "pass", status == "fail")
    assert (check.samples_needed is not None) == (status == "inconclusive")


@pytest.mark.parametrize("limit", [0.005, 0.01])
@pytest.mark.parametrize("won", [0.001, 0.005, 0.02])
def test_neither_error_exceeds_five_percent(won: float, limit: float) -> None:
    """The gate of 1,000 samples at a true drop that is the limit: the sum over every table with a chance to occur."""
    n, lost = 1000, won + limit
    passed = failed = 0.0

    def counts(p: float) -> range:
        spread = 6 * math.sqrt(n * p) + 3
        return range(max(0, int(n * p - spread)), int(n * p + spread) + 1)

    for b in counts(lost):
        for c in counts(won):
            log = math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(c + 1) - math.lgamma(n - b - c + 1)
            chance = math.exp(log + b * math.log(lost) + c * math.log(won) + (n - b - c) * math.log1p(-lost - won))
            if chance > 1e-7:
                low, high = drop_limits(b, c, n)
                passed += chance * (high <= 100 * limit)
                failed += chance * (low > 100 * limit)
    assert 0.01 < passed <= 0.05
    assert 0.01 < failed <= 0.05


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.0, 0.3, 0.5, 2.0]))
@settings(max_examples=40, deadline=None)
def test_the_number_of_samples_that_settles_it_is_the_smallest(lost: int, won: int, limit: float) -> None:
    check = accuracy_drop(flipped(1000, lost, won), limit)
    needed = pairs_needed(lost, won, 1000, limit, drop_limits)

    def decides(n: int) -> bool:
        low, high = drop_limits(lost * n / 1000, won * n / 1000, n)
        return not low <= limit < high

    if needed is None:
        assert not decides(MAX_SAMPLES)
        return
    assert decides(needed)
    assert needed == 1 or not decides(needed - 1)
    assert (check.status == "inconclusive") == (needed > 1000)


def test_a_drop_that_is_the_limit_is_never_settled() -> None:
    check = accuracy_drop(flipped(1000, 10, 5), 0.5)
    assert check.samples_needed is None
    assert "no number of samples" in check.why
    assert values_needed(Drop(0.5, 0.4, 0.6), 100, 0.5) is None


def test_a_mean_narrows_with_the_root_of_the_samples() -> None:
    check = metric_drop("loss", Drop(0.2, 0.1, 0.4), 1000, 0.3)
    assert check.status == "inconclusive"
    assert check.samples_needed == pytest.approx(4000, abs=1)
    assert metric_drop("loss", Drop(0.2, 0.1, 0.3), 1000, 0.3).status == "pass"
    assert metric_drop("loss", Drop(0.4, 0.31, 0.6), 1000, 0.3).status == "fail"
    assert metric_drop("loss", Drop(0.4, 0.2, 0.6), 1000, 0.3).samples_needed == pytest.approx(4000, abs=1)


def one_class(label: int, samples: int, lost: int, won: int = 0) -> ClassDrop:
    return ClassDrop(label, samples, lost, won, Drop(100 * (lost - won) / samples, -1, 1))


def test_every_class_must_be_within_and_one_beyond_suffices() -> None:
    good = [one_class(i, 1000, 2) for i in range(9)]
    assert class_drop(good, 3).status == "pass"
    doubtful = class_drop([*good, one_class(9, 40, 0)], 3)
    assert doubtful.status == "inconclusive"
    assert "samples of class 9 would decide it" in doubtful.why
    failed = class_drop([*good, one_class(9, 1000, 100), one_class(10, 40, 0)], 3)
    assert failed.status == "fail"
    assert failed.value == 10
    assert "class 9" in failed.why


def test_many_classes_need_a_clearer_failure_than_one() -> None:
    """45 of 1,000 lost against 3 %: beyond 3 % at one-sided 95 %, not at 95 % over a hundred classes."""
    bad = one_class(0, 1000, 45)
    assert class_drop([bad], 3).status == "fail"
    assert class_drop([bad, *(one_class(i, 1000, 2) for i in range(1, 100))], 3).status == "inconclusive"


@pytest.mark.parametrize(("removed", "status"), [(71_706, "pass"), (71_705, "fail")])
def test_sparsity_is_a_count(removed: int, status: str) -> None:
    check = sparsity(removed, 89_632, 0.8)  # 0.8 of them is 71,705.6
    assert check.status == status
    assert check.low is None is check.high


def test_size_is_of_the_file() -> None:
    assert file_size(2_000_000, 2_000_000).status == "pass"
    assert file_size(2_000_001, 2_000_000).status == "fail"


def test_flops_are_what_remains_by_zeros_or_by_shape() -> None:
    by_zeros = flops((100, 100), (100, 40), 0.5)
    assert (by_zeros.status, by_zeros.value) == ("pass", 0.4)
    by_shape = flops((100, 100), (60, 10), 0.5)
    assert (by_shape.status, by_shape.value) == ("fail", 0.6)
    assert "layers shrank" in by_shape.why


def test_latency_is_not_judged_by_an_uneven_clock() -> None:
    quiet = Latency(10, 8, 0.8, 0.78, 0.82, 0.01, True, 40, 1, "cpu")
    assert latency(quiet, 0.9).status == "pass"
    assert latency(quiet, 0.7).status == "fail"
    assert latency(quiet, 0.8).status == "inconclusive"
    noisy = Latency(10, 8, 0.8, 0.78, 0.82, 0.3, False, 40, 1, "cpu")
    for limit in (0.7, 0.9):
        assert latency(noisy, limit).status == "inconclusive"
        assert "too noisy" in latency(noisy, limit).why
