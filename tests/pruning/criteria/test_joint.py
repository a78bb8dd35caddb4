"""The joint solve against brute force over all supports, dense float64 algebra, and other solvers of the same model."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.pruning.criteria._quadratic import Quadratic
from prunetaylor.pruning.criteria._subset import best_subset, eliminate
from prunetaylor.taylor.curvature.fisher import fisher_rows
from support.samples import rand
from support.taylor_models import scored, solved, taylor

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "joint.py"


class Dense:
    """The same model as dense matrices: an oracle of every formula."""

    def __init__(self, p: int, n: int, seed: int, *, gradient: bool = False) -> None:
        self.rows = rand(n, p, seed=seed).double() * rand(p, seed=seed + 100).double().abs()
        self.w = rand(p, seed=seed + 200).double()
        self.g = self.rows.mean(0) * 0.3 if gradient else torch.zeros(p).double()
        self.ridge = 0.02 * float(self.rows.square().mean())
        self.h = self.rows.mT @ self.rows / n + self.ridge * torch.eye(p).double()

    def model(self) -> Quadratic:
        return Quadratic(self.rows.clone(), self.w, self.g, self.ridge)

    def value(self, d: Tensor) -> float:
        return float(self.g @ d + 0.5 * d @ self.h @ d)

    def best(self, keep: Tensor) -> Tensor:
        d = torch.where(keep, 0, -self.w)
        d[keep] = -torch.linalg.solve(self.h[keep][:, keep], (self.g + self.h @ d)[keep])
        return d

    def least(self, k: int) -> float:
        """Over all supports of k weights."""
        found = []
        for subset in itertools.combinations(range(len(self.w)), k):
            keep = torch.zeros(len(self.w), dtype=torch.bool)
            keep[list(subset)] = True
            found.append(self.value(self.best(keep)))
        return min(found)


def some(p: int, seed: int) -> Tensor:
    return torch.rand(p, generator=torch.Generator().manual_seed(seed)) > 0.5


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("p", "n"), [(12, 5), (6, 20)])
def test_values_points_and_changes_are_those_of_dense_algebra(p: int, n: int, gradient: bool) -> None:
    dense = Dense(p, n, seed=1, gradient=gradient)
    model, d = dense.model(), rand(p, seed=9).double()
    assert model.value(d) == pytest.approx(dense.value(d), rel=1e-10)
    torch.testing.assert_close(model.slope(d), dense.g + dense.h @ d, rtol=1e-9, atol=1e-12)
    for keep in (some(p, 1), some(p, 2), torch.ones(p, dtype=torch.bool)):
        support = model.support(keep)
        torch.testing.assert_close(model.best_point(support), dense.best(keep), rtol=1e-8, atol=1e-9)
        now = dense.value(dense.best(keep))
        assert model.best_value(support) == pytest.approx(now, rel=1e-8, abs=1e-10)
        changes = model.changes(support).size
        for j in range(p):
            other = keep.clone()
            other[j] = not keep[j]
            change = dense.value(dense.best(other)) - now
            assert float(changes[j]) == pytest.approx(change if keep[j] else -change, rel=1e-7, abs=1e-10)


def test_a_changed_support_is_the_one_computed_afresh() -> None:
    model, keep, other = Dense(30, 8, 2, gradient=True).model(), some(30, 3), some(30, 4)
    changed = model.changed(model.support(keep), (other & ~keep).nonzero(), (keep & ~other).nonzero())
    afresh = model.support(other)
    assert torch.equal(changed.kept, other)
    torch.testing.assert_close(changed.m, afresh.m)
    torch.testing.assert_close(changed.z, afresh.z)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_of_all_supports_on_tiny_models(seed: int) -> None:
    dense = Dense(9 + seed % 3, 4 + seed % 7, seed, gradient=seed % 2 == 1)
    k = 3 + seed % 4
    keep, d = best_subset(dense.model(), k)
    assert int(keep.sum()) == k
    torch.testing.assert_close((dense.w + d)[~keep], torch.zeros(len(keep) - k).double(), rtol=0, atol=1e-12)
    assert dense.value(d) == pytest.approx(dense.least(k), rel=1e-8, abs=1e-10)


def test_uncorrelated_weights_go_by_their_own_cost() -> None:
    """Rows with one entry each: F is diagonal, and Q of the best support is the sum of the smallest OBD scores."""
    scale = torch.tensor([3.0, 0.1, 2.0, 0.5, 1.0, 4.0]).double()
    w = torch.tensor([0.2, 5.0, 1.0, 1.0, 0.1, 0.3]).double()
    cost = 0.5 * (scale.square() / 6 + 0.1) * w.square()
    keep, d = best_subset(Quadratic(torch.diag(scale), w, torch.zeros(6), 0.1), 3)
    assert torch.equal(~keep, cost <= cost.sort().values[2])
    assert Dense.value(_of(torch.diag(scale), w, 0.1), d) == pytest.approx(float(cost.sort().values[:3].sum()))


def _of(rows: Tensor, w: Tensor, ridge: float) -> Dense:
    dense = Dense(len(w), len(rows), 0)
    dense.h, dense.g = rows.mT @ rows / len(rows) + ridge * torch.eye(len(w)).double(), torch.zeros(len(w)).double()
    return dense


def test_what_is_fixed_stays_and_the_counts_are_exact() -> None:
    dense = Dense(25, 6, 3)
    fixed = torch.zeros(25, dtype=torch.bool)
    fixed[dense.model().changes(dense.model().support(~fixed)).size.argsort()[:4]] = True  # what would go first
    for k in (4, 5, 24, 25):
        keep, d = best_subset(dense.model(), k, fixed)
        assert int(keep.sum()) == k
        assert bool(keep[fixed].all())
        torch.testing.assert_close(d, dense.best(keep), rtol=1e-7, atol=1e-9)
    keep, d = best_subset(dense.model(), 0)
    assert not bool(keep.any())
    torch.testing.assert_close(d, -dense.w)


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("joint_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
def test_not_worse_than_chita_or_cbs_on_the_same_model(sparsity: float) -> None:
    methods = benchmark()
    model = methods.random_model(600, 40, 0.01, seed=0, dtype=torch.float64)
    k = 600 - round(sparsity * 600)
    found = {name: model.value(solve(model, k)) for name, solve in methods.METHODS.items()}
    ours = found.pop("ours (joint)")
    for name, value in found.items():
        assert ours <= value * (1 + 1e-9), name
    eliminated = model.best_value(eliminate(model, k, torch.zeros(600, dtype=torch.bool)))
    assert found["ours, elimination only"] == pytest.approx(eliminated, rel=1e-9)


@pytest.mark.parametrize("name", ["CHITA (IHT, active set, back-solve)", "CBS (swaps)"])
def test_the_benchmark_s_rivals_are_sound(name: str) -> None:
    """Their points have exactly k weights, and on tiny models they reach the best of all supports now and then."""
    methods, hits = benchmark(), 0
    for seed in range(8):
        dense = Dense(9, 5, seed)
        d = methods.METHODS[name](dense.model(), 4)
        assert int(((dense.w + d).abs() > 1e-9).sum()) <= 4
        hits += dense.value(d) <= dense.least(4) * (1 + 1e-8)
        assert dense.value(d) >= dense.least(4) * (1 - 1e-8)
        assert dense.value(d) <= dense.value(methods.magnitude(dense.model(), 4)) * (1 + 1e-8)
    assert hits >= 2


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)).eval()


def solve(model: object, masks: dict[str, Tensor], removed: int) -> object:
    return solved("joint", model, removed, masks)


@pytest.mark.parametrize("removed", [6, 10])
def test_a_network_s_best_support_over_all_layers(removed: int) -> None:
    """15 weights of two layers, two gone before: brute force over the dense Fisher matrix."""
    module, x = mlp(), rand(14, 3)
    network = Network.from_module(module)
    masks = network.masks()
    masks["0.weight"][1, 1] = masks["2.weight"][0, 2] = False
    for layer in network.layers:
        layer.weight.data *= masks[layer.parameter]
    model = taylor(module, x, torch.arange(14) % 2)
    model.keep_first = False
    step = solve(model, masks, removed)
    rows = torch.cat(list(fisher_rows(model.risk, network.layers, model.seed).values()), 1).double()
    left = torch.cat([masks[layer.parameter].flatten() for layer in network.layers])
    w = torch.cat([layer.weight.detach().flatten() for layer in network.layers]).double()[left]
    ridge = model.damping * float(rows[:, left].square().mean())
    dense = _of(rows[:, left], w, ridge)
    dense.w = w
    assert sum(int((~m).sum()) for m in step.masks.values()) == removed
    kept = torch.cat([step.masks[layer.parameter].flatten() for layer in network.layers])
    d = torch.cat([step.displacement[layer.parameter].flatten() for layer in network.layers]).double()
    assert not bool((kept & ~left).any())
    assert not bool(d[~left].any())
    torch.testing.assert_close(d[left], dense.best(kept[left]), rtol=1e-4, atol=1e-4)
    assert dense.value(d[left]) == pytest.approx(dense.least(len(w) - removed + 2), rel=1e-4)
    assert all(bool(m.any()) for m in step.masks.values())


def test_scores_are_the_cost_of_one_removal_with_all_layers_moving() -> None:
    module, x = mlp(), rand(14, 3)
    model = taylor(module, x, torch.arange(14) % 2)
    model.keep_first = False
    masks = model.network.masks()
    scores = scored("joint", model, masks)
    rows = torch.cat(list(fisher_rows(model.risk, model.network.layers, model.seed).values()), 1).double()
    w = torch.cat([layer.weight.detach().flatten() for layer in model.network.layers]).double()
    h = rows.mT @ rows / 14 + model.damping * float(rows.square().mean()) * torch.eye(len(w)).double()
    expected = w.square() / (2 * torch.linalg.inv(h).diagonal())
    found = torch.cat([scores[layer.parameter].flatten() for layer in model.network.layers])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_the_first_order_term_is_kept_or_not() -> None:
    """With a task gradient the error falls where nothing goes; without it, nothing moves."""
    module, x = mlp(), rand(14, 3)
    model = taylor(module, x, torch.arange(14) % 2, kind="task")
    masks = model.network.masks()
    model.keep_first = False
    still = solve(model, masks, 0)
    assert not any(bool(d.any()) for d in still.displacement.values())
    model.keep_first = True
    moved = solve(model, masks, 0)
    # What the whole network's Taylor model says of the same move, which the Fisher of 14 labels does not decide alone.
    assert model.predict(moved.displacement).change(True) < 0


def test_fewer_than_are_gone_is_refused_and_so_is_no_curvature() -> None:
    module = mlp()
    model = taylor(module, rand(9, 3))
    masks = model.network.masks()
    masks["0.weight"][0] = False
    with pytest.raises(ValueError, match=r"3 weights .*2 "):
        solve(model, masks, 2)
    with torch.no_grad():
        module[2].weight.zero_()
        module[0].weight.zero_()
        module[0].bias.zero_()
    with pytest.raises(NumericsError, match="no curvature"):
        solve(taylor(module, torch.zeros(9, 3)), model.network.masks(), 4)


def test_once_earlier_stages_have_cut_the_network_through_the_smallest_go() -> None:
    module, x = mlp(), torch.zeros(9, 3)
    with torch.no_grad():
        module[0].bias.zero_()  # then nothing comes through, and no weight has a gradient
    model = taylor(module, x)
    with pytest.raises(NumericsError, match="no curvature"):
        solve(model, model.network.masks(), 8)
    model.stage = 2
    step = solve(model, model.network.masks(), 8)
    kept = torch.cat([step.masks[layer.parameter].flatten() for layer in model.network.layers])
    sizes = torch.cat([layer.weight.detach().flatten().abs() for layer in model.network.layers])
    assert torch.equal(kept, sizes > sizes.sort().values[7])
    for layer in model.network.layers:
        assert not bool(step.displacement[layer.parameter][step.masks[layer.parameter]].any())
    text = "no curvature along any remaining weight: the order of removal is random or by magnitude"
    assert text in model.notes


def test_a_layer_that_would_keep_nothing_keeps_its_largest_weight() -> None:
    """The last layer's weights are so small that they would all go."""
    module = mlp()
    with torch.no_grad():
        module[2].weight.mul_(1e-4)
    model = taylor(module, rand(14, 3), torch.arange(14) % 2, kind="task")
    model.keep_first = False
    for removed, kept in ((13, 1), (14, 0)):  # with one weight left in all, it is any layer's
        step = solve(model, model.network.masks(), removed)
        assert sum(int((~m).sum()) for m in step.masks.values()) == removed
        if kept:
            assert step.masks["2.weight"].nonzero().tolist() == [list(divmod(int(module[2].weight.abs().argmax()), 3))]
