"""Tango's interval against published examples, closed forms and its own promise; the bootstrap against theory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetaylor.core.errors import DataError, NumericsError
from prunetaylor.measure.paired import bootstrap_interval, drop_interval, tango

Z2 = 3.841458820694124  # the 95 % point of chi-squared with one degree of freedom


def pairs(both: int, b: int, c: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    first = [True] * both + [True] * b + [False] * c + [False] * neither
    second = [True] * both + [False] * b + [True] * c + [False] * neither
    return torch.tensor(first), torch.tensor(second)


# (both, only first, only second, neither), level, limits as printed
PUBLISHED = [
    # Tango (1998), Stat. Med. 17:891, the two worked examples
    pytest.param((4, 9, 3, 16), 0.95, (-0.027, 0.390), 3, id="tango-1998-a"),
    pytest.param((43, 0, 1, 0), 0.90, (-0.096, 0.037), 3, id="tango-1998-contact-lenses"),
    # Agresti & Min (2005), Stat. Med. 24:729
    pytest.param((53, 16, 8, 9), 0.95, (-0.020, 0.207), 3, id="agresti-min-2005"),
    # Fagerland, Lydersen & Laake (2014), Stat. Med. 33:2850, airway hyper-responsiveness (Bentur et al. 2009)
    pytest.param((1, 1, 7, 12), 0.95, (-0.517, -0.026), 3, id="fagerland-2014"),
    # Tang et al. (2010), as reproduced by the tests of the R package ratesci
    pytest.param((8, 3, 1, 2), 0.95, (-0.1670, 0.4327), 4, id="tang-2010"),
    # Fagerland, Lydersen & Laake (2017), Statistical Analysis of Contingency Tables, chapter 8 (Cavo et al. 2012)
    pytest.param((59, 6, 16, 80), 0.95, (-0.1240, -0.0054), 4, id="fagerland-2017"),
]


@pytest.mark.parametrize(("table", "level", "limits", "digits"), PUBLISHED)
def test_published_examples(table, level, limits, digits):
    drop = drop_interval(*pairs(*table), level=level)
    assert drop.value == pytest.approx(100 * (table[1] - table[2]) / sum(table))
    assert (round(drop.low / 100, digits), round(drop.high / 100, digits)) == limits


@pytest.mark.parametrize("n", [1, 10, 1000, 1_000_000])
def test_no_disagreement_has_the_closed_form_and_a_width(n):
    """With b = c = 0 the limits are -+ z^2 / (n + z^2)."""
    low, high = tango(0, 0, n)
    assert high == pytest.approx(Z2 / (n + Z2), rel=1e-9)
    assert low == -high


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_all_disagree_one_way_has_the_closed_form(n):
    """With b = n the limits are (n - z^2) / (n + z^2) and 1."""
    low, high = tango(n, 0, n)
    assert low == pytest.approx((n - Z2) / (n + Z2), rel=1e-9, abs=1e-12)
    assert high == 1
    assert tango(0, n, n) == (-high, -low)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500), st.sampled_from([0.8, 0.95, 0.999]))
@settings(max_examples=150, deadline=None)
def test_interval_brackets_mirrors_and_solves_the_score_equation(b, c, rest, level):
    n = b + c + rest + 1
    low, high = tango(b, c, n, level)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert tango(c, b, n, level) == (-high, -low)
    wider = tango(b, c, n, 0.9999)
    assert wider[0] <= low
    assert high <= wider[1]
    # the limits against T itself, with its quotient, from the restricted maximum-likelihood estimate by brute force
    z2 = torch.distributions.Normal(0, 1).icdf(torch.tensor(0.5 + level / 2, dtype=torch.float64)).item() ** 2
    for limit in (low, high):
        q = restricted_estimate(b, c, n, limit)
        score = (b - c - n * limit) ** 2 / (n * (2 * q + limit * (1 - limit)))
        assert score == pytest.approx(z2, rel=2e-3)


def restricted_estimate(b: int, c: int, n: int, d: float) -> float:
    """The second discordant probability that makes the counts likeliest when the first is d larger, by search."""

    def log_likelihood(q: float) -> float:
        terms = [(b, q + d), (c, q), (n - b - c, 1 - 2 * q - d)]
        return sum(k * math.log(p) if p > 0 else -math.inf for k, p in terms if k)

    low, high = max(0.0, -d), (1 - d) / 2
    for _ in range(200):  # the log-likelihood is concave in q
        a, e = low + (high - low) * 0.382, low + (high - low) * 0.618
        if log_likelihood(a) < log_likelihood(e):
            low = a
        else:
            high = e
    return (low + high) / 2


@pytest.mark.parametrize(("n", "p", "q"), [(60, 0.10, 0.05), (60, 0.02, 0.02), (80, 0.30, 0.01)])
def test_exact_coverage(n, p, q):
    """The probability, summed over all tables, that the interval holds the true difference."""
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            log = math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(c + 1) - math.lgamma(n - b - c + 1)
            chance = math.exp(log + b * math.log(p) + c * math.log(q) + (n - b - c) * math.log(1 - p - q))
            if chance > 1e-9:
                low, high = tango(b, c, n)
                covered += chance * (low <= p - q <= high)
    assert 0.935 < covered < 0.985


def test_coverage_of_simulated_networks():
    """A test set of 1,000, dense 90 % right, pruned 88.5 %: 600 such sets, seeded; 0.95 -+ 3 standard errors."""
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(600):
        u = torch.rand(1000, generator=generator)
        dense = u < 0.90
        pruned = (u < 0.87) | (u > 0.985)  # loses 3 %, wins 1.5 %
        drop = drop_interval(dense, pruned)
        inside += drop.low <= 1.5 <= drop.high
    assert 0.95 - 0.027 < inside / 600 < 0.95 + 0.027


def test_drop_is_in_percentage_points_dense_minus_pruned():
    drop = drop_interval(torch.tensor([True] * 90 + [False] * 10), torch.tensor([True] * 85 + [False] * 15))
    assert drop.value == 5
    assert drop.low < 5 < drop.high


def test_same_network_twice():
    correct = torch.arange(1000) % 10 > 0
    drop = drop_interval(correct, correct)
    assert drop.value == 0
    assert drop.low == -drop.high
    assert 0.3 < drop.high < 0.4


@pytest.mark.parametrize("measure", [drop_interval, lambda d, p: bootstrap_interval(d, p, torch.Generator())])
def test_wrong_samples_are_refused(measure):
    with pytest.raises(DataError, match="no samples"):
        measure(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(DataError, match="different samples"):
        measure(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="boolean"):
        drop_interval(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="confidence"):
        drop_interval(torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool), level=95)


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(1)) + 0.5
    drop = bootstrap_interval(values + 2, torch.full((4000,), 2.0), torch.Generator().manual_seed(2))
    half = 1.96 * values.std().item() / math.sqrt(4000)
    assert drop.value == pytest.approx(values.mean().item(), abs=1e-6)
    assert drop.low == pytest.approx(drop.value - half, abs=0.1 * half)
    assert drop.high == pytest.approx(drop.value + half, abs=0.1 * half)


@pytest.mark.parametrize(("ones", "n"), [(1, 40), (7, 60), (50, 60)])
def test_bootstrap_of_zeros_and_ones_is_clopper_and_pearsons(ones, n):
    """Their one-sided limits p solve P(X >= ones) = 5 % and P(X <= ones) = 5 % for X of Binomial(n, p)."""

    def binomial(p: float, counts: range) -> float:
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts)

    values = (torch.arange(n) < ones).double()
    drop = bootstrap_interval(values, torch.zeros(n), torch.Generator().manual_seed(8), level=0.9)
    assert binomial(drop.low, range(ones, n + 1)) == pytest.approx(0.05, abs=0.015)  # 3 standard errors of 2,000 draws
    assert binomial(drop.high, range(ones + 1)) == pytest.approx(0.05, abs=0.015)


def test_bootstrap_mirrors_and_looks_a_sample_beyond_what_it_has_seen():
    """One rise in a hundred samples: by the normal interval the mean is at most 2.7 times what was seen; here 4.7."""
    values = torch.zeros(100, dtype=torch.float64)
    values[0] = 1
    drop = bootstrap_interval(values, torch.zeros(100), torch.Generator().manual_seed(9), level=0.9)
    assert drop.high == pytest.approx(0.0466, abs=0.003)  # Clopper and Pearson's
    mirror = bootstrap_interval(-values, torch.zeros(100), torch.Generator().manual_seed(9), level=0.9)
    assert (mirror.low, mirror.value, mirror.high) == pytest.approx((-drop.high, -drop.value, -drop.low))


def test_bootstrap_is_paired_and_repeatable():
    dense = torch.randn(500, generator=torch.Generator().manual_seed(3)) * 100
    drop = bootstrap_interval(dense, dense - 1, torch.Generator().manual_seed(4))
    assert (drop.low, drop.value, drop.high) == pytest.approx((1, 1, 1), abs=1e-3)
    noisy = dense + torch.randn(500, generator=torch.Generator().manual_seed(5))
    again = [bootstrap_interval(dense, noisy, torch.Generator().manual_seed(6)) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0].low < again[0].value < again[0].high


def test_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(DataError, match="at least two"):
        bootstrap_interval(torch.ones(1), torch.ones(1), torch.Generator())
    with pytest.raises(NumericsError, match="not finite on 1 of 2"):
        bootstrap_interval(torch.tensor([1.0, math.nan]), torch.ones(2), torch.Generator())
