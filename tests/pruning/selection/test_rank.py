"""Exactly so many groups go: with ties, zeros, what is gone already, and a best one left in each layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.pruning.selection.rank import keep_best

# Few values, so that ties are the rule; 0.0 and -0.0 are a tie too.
VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.5, -1.0, 1e-300, 1e300])


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor], int]:
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    scores = [torch.tensor(draw(st.lists(VALUES, min_size=n, max_size=n)), dtype=torch.float64) for n in sizes]
    gone = [torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))) for n in sizes]
    for score, lost in zip(scores, gone, strict=True):
        score[lost] = draw(st.sampled_from([float("nan"), float("inf"), -5.0]))  # not looked at
    removed = draw(st.integers(sum(int(g.sum()) for g in gone), sum(sizes)))
    return scores, gone, removed


def best(scores: list[Tensor], gone: list[Tensor], removed: int) -> list[Tensor]:
    return keep_best(scores, gone, removed, [f"layer{i}" for i in range(len(scores))])


def oracle(scores: list[Tensor], gone: list[Tensor], removed: int) -> list[list[bool]]:
    """In plain Python: gone first, then by (score, position), each layer's last in that order after all others."""
    entries = [
        (layer, i, float(s), bool(g))
        for layer, (score, lost) in enumerate(zip(scores, gone, strict=True))
        for i, (s, g) in enumerate(zip(score, lost, strict=True))
    ]
    left = [e for e in entries if not e[3]]
    order = sorted(left, key=lambda e: (e[2], e[0], e[1]))
    last = {e[0]: e for e in order}  # the last one of each layer
    if removed <= len(entries) - len(last):
        order = [e for e in order if last[e[0]] is not e] + [e for e in order if last[e[0]] is e]
    going = {(e[0], e[1]) for e in [e for e in entries if e[3]] + order[: removed - (len(entries) - len(left))]}
    return [[(layer, i) not in going for i in range(len(s))] for layer, s in enumerate(scores)]


@settings(deadline=None, max_examples=300)
@given(problems())
def test_against_plain_python(problem: tuple[list[Tensor], list[Tensor], int]) -> None:
    assert [k.tolist() for k in best(*problem)] == oracle(*problem)


@settings(deadline=None, max_examples=200)
@given(problems())
def test_what_must_hold(problem: tuple[list[Tensor], list[Tensor], int]) -> None:
    scores, gone, removed = problem
    keep = best(scores, gone, removed)
    assert [k.shape for k in keep] == [s.shape for s in scores]
    assert sum(int((~k).sum()) for k in keep) == removed
    for k, lost in zip(keep, gone, strict=True):
        assert not bool((k & lost).any())
    alive = [not bool(lost.all()) for lost in gone]
    if removed <= sum(s.numel() for s in scores) - sum(alive):
        assert [bool(k.any()) for k in keep] == alive


@settings(deadline=None, max_examples=100)
@given(problems(), st.data())
def test_more_removed_later_is_more_removed_at_once(
    problem: tuple[list[Tensor], list[Tensor], int], data: st.DataObject
) -> None:
    scores, gone, removed = problem
    room = sum(s.numel() for s in scores) - sum(not bool(lost.all()) for lost in gone)
    if removed > room:
        return
    midway = data.draw(st.integers(sum(int(g.sum()) for g in gone), removed))
    lost = [~k for k in best(scores, gone, midway)]
    assert [k.tolist() for k in best(scores, lost, removed)] == [k.tolist() for k in best(scores, gone, removed)]


def test_ties_go_by_position() -> None:
    same = [torch.ones(4), torch.ones(3)]
    none = [torch.zeros(4, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)]
    assert [k.tolist() for k in best(same, none, 2)] == [[False, False, True, True], [True, True, True]]
    assert [k.tolist() for k in best(same, none, 4)] == [[False, False, False, True], [False, True, True]]


def test_large_layers_have_exact_counts() -> None:
    scores = [torch.randint(0, 3, (n,)).float() for n in (100_000, 1, 77_777)]
    gone = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    for removed in (0, 1, 88_889, 177_775):
        assert sum(int((~k).sum()) for k in best(scores, gone, removed)) == removed


def test_small_scores_are_told_apart() -> None:
    tiny = torch.tensor([3e-40, 1e-40, 2e-40])
    assert best([tiny], [torch.zeros(3, dtype=torch.bool)], 1)[0].tolist() == [True, False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused_by_layer(bad: float) -> None:
    scores = [torch.ones(3), torch.tensor([1.0, bad])]
    none = [torch.zeros(3, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)]
    with pytest.raises(NumericsError, match="layer1: its scores are not finite"):
        best(scores, none, 2)
    none[1][1] = True
    assert sum(int((~k).sum()) for k in best(scores, none, 2)) == 2


def test_what_is_gone_cannot_come_back() -> None:
    with pytest.raises(ValueError, match="2 groups are gone, 1 were asked for"):
        best([torch.ones(3)], [torch.tensor([True, True, False])], 1)
