"""Selection within a budget: exact counts with ties and zeros, one group left in each layer, and unequal costs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import Groups, ScoringContext, Structure, load_criterion
from prunetaylor.pruning.selection.budget import Budget, masks_after, select
from prunetaylor.pruning.selection.selector import Selector

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
    groups = [
        Groups(f"layer{i}", score, lost, {"weights": torch.ones(()).expand(len(score))}, {})
        for i, (score, lost) in enumerate(zip(scores, gone, strict=True))
    ]
    return select(groups, Budget(sum(map(len, scores)) - removed))


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


def test_removed_groups_stay_removed_within_a_budget_that_is_met_already() -> None:
    assert best([torch.ones(3)], [torch.tensor([True, True, False])], 1)[0].tolist() == [False, False, True]


def unequal(scores: list[float], costs: list[float], removed: list[int] | None = None, name: str = "all") -> Groups:
    gone = torch.zeros(len(scores), dtype=torch.bool)
    gone[removed or []] = True
    return Groups(name, torch.tensor(scores), gone, {"flops": torch.tensor(costs)}, {})


COSTS = st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=200)
@given(COSTS, st.integers(0, 30))
def test_no_other_choice_within_what_remains_has_a_lower_score(pairs: list[tuple[float, int]], limit: int) -> None:
    """Against all subsets; the last group that is removed may save more than the budget asks for."""
    scores, costs = [round(s, 3) for s, _ in pairs], [float(c) for _, c in pairs]
    kept = select([unequal(scores, costs)], Budget(limit, "flops"))[0]
    remaining = float(torch.tensor(costs)[kept].sum())
    assert remaining <= limit
    if remaining == sum(costs):
        return  # nothing had to be removed
    lowest = min(
        sum(s for s, keep in zip(scores, choice, strict=True) if not keep)
        for choice in itertools.product([False, True], repeat=len(scores))
        if sum(c for c, keep in zip(costs, choice, strict=True) if keep) <= remaining
        and (any(choice) or not bool(kept.any()))
    )
    assert float(torch.tensor(scores)[~kept].sum()) == pytest.approx(lowest, abs=1e-5)


def test_score_per_cost_decides_and_no_more_is_removed_than_needed() -> None:
    groups = [unequal([4.0, 3.0, 9.0], [4.0, 1.0, 1.0], name="a"), unequal([1.0, 5.0], [2.0, 5.0], [0], name="b")]
    assert [k.tolist() for k in select(groups, Budget(11, "flops"))] == [[True, True, True], [False, True]]
    assert [k.tolist() for k in select(groups, Budget(10, "flops"))] == [[False, True, True], [False, True]]
    assert [k.tolist() for k in select(groups, Budget(6, "flops"))] == [[False, False, True], [False, True]]


def test_a_cost_that_is_not_positive_and_a_negative_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="a: a cost in flops is not positive"):
        select([unequal([1.0, 2.0], [1.0, 0.0], name="a")], Budget(1, "flops"))
    with pytest.raises(ValueError, match="nothing can remain within -1 flops"):
        select([unequal([1.0], [1.0])], Budget(-1, "flops"))


class Neuron(Structure):
    """Hidden neurons of Sequential(Linear, ReLU, Linear): a row of the first layer and a column of the second."""

    def groups(self, context: ScoringContext, scores: dict[str, Tensor]) -> list[Groups]:
        writer, reader = (layer.parameter for layer in context.network.layers)
        hidden, inputs = context.masks[writer].shape
        outputs = len(context.masks[reader])
        weights = context.masks[writer].sum(1) + context.masks[reader].sum(0)
        return [
            Groups(
                name="hidden",
                scores=scores[writer].sum(1) + scores[reader].sum(0),
                removed=weights == 0,
                costs={"weights": weights.double()},
                members={
                    writer: lambda keep: keep[:, None].expand(hidden, inputs),
                    reader: lambda keep: keep[None].expand(outputs, hidden),
                },
            )
        ]


def test_a_structure_has_members_in_several_layers() -> None:
    network = Network.from_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    selector = Selector(network, load_criterion("magnitude"), Neuron(), torch.Generator())
    masks = network.masks()
    masks["0.weight"][0] = False  # the first neuron has its outgoing weights only
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None].expand(4, 3))
        network.layers[1].weight.copy_(torch.tensor([9.0, 1.0, 1.0, 1.0]).expand(2, 4))
    selection = selector.weakest(masks, removed=8)  # of 20 weights, 3 of them removed before
    assert selection.masks["0.weight"].tolist() == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]
    assert selection.masks["2.weight"].tolist() == [[True, False, True, True]] * 2
    for layer in network.layers:
        assert torch.equal(layer.weight != 0, selection.masks[layer.parameter])


def test_a_weight_of_several_groups_stays_only_if_all_of_them_do() -> None:
    rows = Groups("rows", torch.ones(2), torch.zeros(2, dtype=torch.bool), {}, {"w": lambda keep: keep[:, None]})
    columns = Groups("columns", torch.ones(3), torch.zeros(3, dtype=torch.bool), {}, {"w": lambda keep: keep[None]})
    keep = [torch.tensor([True, False]), torch.tensor([True, True, False])]
    masks = {"w": torch.tensor([[False, True, True], [True, True, True]]), "v": torch.ones(1, dtype=torch.bool)}
    after = masks_after([rows, columns], keep, masks)
    assert after["w"].tolist() == [[False, True, False], [False, False, False]]
    assert after["v"].tolist() == [True]
