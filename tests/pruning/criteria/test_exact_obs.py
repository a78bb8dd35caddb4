"""ExactOBS against brute force: the greedy trace by refitting every candidate, the weights by least squares."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.pruning.criteria import _trace
from prunetaylor.pruning.criteria._trace import greedy_traces
from prunetaylor.pruning.criteria._units import ranking_unit
from prunetaylor.pruning.interfaces import load_criterion, load_structure
from prunetaylor.pruning.selection.selector import Selector
from prunetaylor.taylor.curvature.solve import damped
from prunetaylor.taylor.model import TaylorModel
from support.samples import rand
from support.taylor_models import scored, taylor

DAMPING = 0.01


def kept(model: TaylorModel, masks: dict[str, Tensor], removed: int) -> dict[str, Tensor]:
    """The masks after which ``removed`` weights are gone."""
    network = model.network
    selector = Selector(network, load_criterion("exact_obs"), load_structure("weight"), torch.Generator())
    scores = scored("exact_obs", model, masks)
    return selector.ranked(scores, masks, removed)


def gram(columns: int, seed: int = 0) -> Tensor:
    x = rand(3 * columns, columns, seed=seed).double() @ (
        torch.eye(columns).double() + 0.4 * rand(columns, columns, seed=seed + 1).double()
    )
    return x.mT @ x / len(x)


def best(h: Tensor, w: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """The row on ``kept`` nearest to w in H's norm, by a dense solve, and its squared distance."""
    v = torch.zeros_like(w)
    if bool(kept.any()):
        v[kept] = torch.linalg.solve(h[kept][:, kept], (h @ w)[kept])
    return v, float((v - w) @ h @ (v - w))


def greedy(h: Tensor, w: Tensor, kept: Tensor) -> tuple[list[int], list[float]]:
    """Every step tries each weight that is left and fits the others anew."""
    kept, order, added = kept.clone(), [], []
    while bool(kept.any()):
        base = best(h, w, kept)[1]
        costs = {}
        for j in kept.nonzero().squeeze(1).tolist():
            kept[j] = False
            costs[j] = best(h, w, kept)[1] - base
            kept[j] = True
        j = min(costs, key=lambda k: costs[k])
        order.append(j)
        added.append(costs[j])
        kept[j] = False
    return order, added


@pytest.mark.parametrize("steps", [2, 32])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_traces_are_the_greedy_ones(share: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With updates put off for two steps the matrices are brought up to date, and shrunk, many times."""
    monkeypatch.setattr(_trace, "STEPS", steps)
    rows, columns = 5, 11
    h = gram(columns)
    keep = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1)) >= share
    w = rand(rows, columns, seed=2).double() * keep
    order, added = greedy_traces(h, w, keep, DAMPING, "layer", pytest.fail)
    for row in range(rows):
        first, costs = greedy(damped(h, DAMPING), w[row], keep[row])
        assert torch.argsort(order[row])[int((~keep[row]).sum()) :].tolist() == first
        torch.testing.assert_close(added[row, first], torch.tensor(costs, dtype=torch.float64), rtol=1e-8, atol=1e-10)
        assert bool((order[row, ~keep[row]] == -1).all())
        assert bool((added[row, ~keep[row]] == 0).all())


def test_added_errors_sum_to_the_error_of_what_is_left() -> None:
    h, w = gram(60), rand(3, 60, seed=5).double()
    order, added = greedy_traces(h, w, torch.ones(3, 60, dtype=torch.bool), DAMPING, "layer", pytest.fail)
    for gone in (1, 20, 45, 60):
        for row in range(3):
            total = float(added[row][order[row] < gone].sum())
            assert total == pytest.approx(best(damped(h, DAMPING), w[row], order[row] >= gone)[1], rel=1e-9)


def test_nearly_singular_matrices_keep_costs_positive_and_finite() -> None:
    x = rand(40, 3, seed=1).double() @ rand(3, 40, seed=2).double()  # rank three, damped a little
    h = x.mT @ x / 40
    w = rand(4, 40, seed=3).double()
    order, added = greedy_traces(h, w, torch.ones(4, 40, dtype=torch.bool), 1e-9, "layer", pytest.fail)
    assert torch.equal(order.sort(1).values, torch.arange(40).expand(4, -1))
    assert bool(torch.isfinite(added).all())
    assert float(added.min()) >= 0
    total = ((w @ damped(h, 1e-9)) * w).sum(1)
    torch.testing.assert_close(added.sum(1), total, rtol=1e-4, atol=1e-8)


def test_a_gram_matrix_that_is_not_finite_is_refused_by_name() -> None:
    with pytest.raises(NumericsError, match=r"conv7: the Gram matrix"):
        greedy_traces(gram(4) * torch.nan, rand(2, 4).double(), torch.ones(2, 4, dtype=torch.bool), 0.1, "conv7", print)


def heap(costs: list[list[float]], count: int) -> list[int]:
    """How many go of each row when always the cheapest next one goes."""
    taken = [0] * len(costs)
    for _ in range(count):
        left = [r for r in range(len(costs)) if taken[r] < len(costs[r])]
        taken[min(left, key=lambda r: costs[r][taken[r]])] += 1
    return taken


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(7, 4), lambda: nn.Conv2d(2, 4, 2, groups=2)], ids=["linear", "conv"]
)
def test_the_next_to_go_is_the_cheapest_over_all_rows(make: object, share: float) -> None:
    module = make().eval()
    x = rand(30, 7) if isinstance(module, nn.Linear) else rand(12, 2, 4, 4)
    mask = torch.rand(module.weight.shape, generator=torch.Generator().manual_seed(3)) >= share
    module.weight.data *= mask
    model = taylor(module, x, task="regression", damping=DAMPING)
    (layer,) = model.network.layers
    h = damped(model.moments[""].centred()[0], DAMPING)
    unit, w, keep = ranking_unit(model, layer), layer.matrix(module.weight.detach()).double(), layer.matrix(mask)
    traces, at = [], []
    for g, r in itertools.product(range(w.shape[0]), range(w.shape[1])):
        order, added = greedy(h[g], w[g, r], keep[g, r])
        traces.append([float(unit[g, r]) * a for a in added])
        at.append((g, r, order))
    gone = int((~mask).sum())
    for removed in (gone, gone + 1, (gone + mask.numel()) // 2, mask.numel() - 2):
        found = kept(model, {"weight": mask}, removed)
        expected = keep.clone()
        for (g, r, order), count in zip(at, heap(traces, removed - gone), strict=True):
            expected[g, r, order[:count]] = False
        assert torch.equal(found["weight"], layer.tensor(expected))


def test_the_greedy_choice_in_a_row_is_near_the_best_of_all_subsets() -> None:
    """Greedy is no oracle of the best subset, but never better and mostly the same."""
    h, w = gram(9, seed=4), rand(6, 9, seed=6).double()
    order, added = greedy_traces(h, w, torch.ones(6, 9, dtype=torch.bool), DAMPING, "layer", pytest.fail)
    ratios = []
    for row, gone in itertools.product(range(6), (3, 6)):
        costs = []
        for subset in itertools.combinations(range(9), gone):
            kept = torch.ones(9, dtype=torch.bool)
            kept[list(subset)] = False
            costs.append(best(damped(h, DAMPING), w[row], kept)[1])
        ratios.append(float(added[row][order[row] < gone].sum()) / min(costs))
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) < 3
    assert sum(r < 1 + 1e-9 for r in ratios) > len(ratios) / 2


@settings(max_examples=25, deadline=None)
@given(first=st.floats(0, 0.9), more=st.floats(0, 1), seed=st.integers(0, 5))
def test_exactly_so_many_are_gone(first: float, more: float, seed: int) -> None:
    """Those gone before included, zeros and ties too, and every layer keeps a weight while it can."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    module[0].weight.data[2:4] = 0
    network = Network.from_module(module)
    masks = {
        layer.parameter: torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) >= first
        for layer in network.layers
    }
    for layer in network.layers:
        layer.weight.data *= masks[layer.parameter]
    model = taylor(module, rand(12, 5, seed=seed), torch.arange(12) % 3, damping=DAMPING)
    gone = sum(int((~m).sum()) for m in masks.values())
    removed = gone + round(more * (network.prunable - gone))
    after = kept(model, masks, removed)
    assert sum(int((~m).sum()) for m in after.values()) == removed
    for layer in network.layers:
        stays = after[layer.parameter]
        assert not bool((stays & ~masks[layer.parameter]).any())
        if removed <= network.prunable - 2:
            assert bool(stays.any()) or not bool(masks[layer.parameter].any())


def test_wide_rows_are_taken_in_blocks_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunetaylor.pruning.criteria.exact_obs.BLOCK", 4)
    module = nn.Linear(10, 3).eval()
    model = taylor(module, rand(30, 10), torch.arange(30) % 3)
    after = kept(model, model.network.masks(), 14)
    assert int((~after["weight"]).sum()) == 14
    assert model.notes == [": weights chosen in 3 blocks of columns, as rows keep more than 4"]
