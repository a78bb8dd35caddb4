"""Least squares of what is kept, towards the dense layer's outputs, from the inputs that the pruned network gives."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunetaylor.core.errors import UsageError
from prunetaylor.network.network import Network
from prunetaylor.network.state import snapshot
from prunetaylor.pruning import activation_cache
from prunetaylor.pruning.intercepts import find_intercepts
from prunetaylor.pruning.masks import apply_masks, check_masks
from prunetaylor.pruning.repairs import least_squares
from prunetaylor.pruning.repairs.least_squares import DenseOutputs, paired_moments, repair
from prunetaylor.taylor.curvature.gram import Positions
from support.samples import batches, rand
from support.taylor_models import EVERY


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).tanh()).tanh())


class SharedBiases(nn.Sequential):
    """One bias of two layers, the second of which has a norm to take up a shift; and one that is computed."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(4, 4),
            nn.Tanh(),
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
            nn.Tanh(),
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
        )
        with torch.no_grad():
            self[0].bias.copy_(torch.tensor([1.0, -1.0, 2.0, -2.0]))
        self[2].bias = self[0].bias
        parametrize.register_parametrization(self[5], "bias", nn.Identity())


class Twice(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4, bias=bias), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.a(x).tanh()).tanh())


class Around(nn.Module):
    """A tied layer on both sides of one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.b, self.head = (nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.c(self.c(self.a(x).tanh()).tanh()).tanh()).tanh())


class Blocks(nn.Module):
    """Residual blocks in a container: what is settled is whole modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
            )
            for _ in range(2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def residual() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 2, 2, bias=False),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    module[1].running_mean.copy_(0.3 * rand(4))
    module[1].running_var.copy_(0.5 + rand(4).abs())
    return module


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "conv": (residual, (2, 5, 5)),
    "in-place before a norm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2, bias=False), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)
        ),
        (2, 5, 5),
    ),
    "tied": (Tied, (4,)),
    "twice": (Twice, (4,)),
    "around": (Around, (4,)),
    "blocks": (Blocks, (2, 5, 5)),
    "twice without bias": (lambda: Twice(bias=False), (4,)),
    "shared biases": (lambda: SharedBiases(), (4,)),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (7, 4)),
}


def some_masks(network: Network, share: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {layer.parameter: torch.rand(layer.weight.shape, generator=generator) >= share for layer in network.layers}


def run(
    dense: nn.Module,
    x: Tensor,
    share: float,
    *,
    masks: dict[str, Tensor] | None = None,
    positions: int = EVERY,
    size: int = 16,
    damping: float = 1e-3,
) -> tuple[nn.Module, nn.Module, dict[str, Tensor], list[str]]:
    """(masked only, repaired, masks, names solved); ``dense`` stays as it is."""
    module = copy.deepcopy(dense)
    network, samples, where = Network.from_module(module), batches(x, size=size), Positions(len(x), 0, positions)
    masks = masks or some_masks(network, share)
    intercepts = find_intercepts(module, network.layers, samples)
    apply_masks(module, masks)
    masked = copy.deepcopy(module)
    outputs = DenseOutputs(dense, Network.from_module(dense).layers, samples, where)
    done = repair(
        module, network.layers, masks, outputs, snapshot(dense), intercepts, samples, damping=damping, note=no_note
    )
    return masked, module, masks, list(done)


def no_note(text: str) -> None:
    raise AssertionError(f"nothing to note: {text}")


def distance(module: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((module(x) - dense(x)).square().mean())


def case(name: str, samples: int = 200) -> tuple[nn.Module, Tensor]:
    make, shape = NETWORKS[name]
    return make().eval(), rand(samples, *shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_removed_changes_nothing(name: str) -> None:
    dense, x = case(name, 50)
    _, module, _, done = run(dense, x, 0.0, size=7)
    assert done == [layer.name for layer in Network.from_module(dense).layers]
    for key, tensor in module.state_dict().items():
        # Single weights of squashed inputs are known to a part in a thousand; what they give is known better.
        torch.testing.assert_close(tensor, dense.state_dict()[key], rtol=1e-3, atol=3e-3)
    assert distance(module, dense, x) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_repaired_is_nearer_to_dense_than_masked_on_samples_not_seen(name: str) -> None:
    dense, x = case(name)
    masked, module, masks, _ = run(dense, x, 0.4, positions=8)
    check_masks(module, masks)
    fresh = rand(200, *x.shape[1:], seed=99)
    assert distance(module, dense, x) < 0.85 * distance(masked, dense, x)
    assert distance(module, dense, fresh) < 0.85 * distance(masked, dense, fresh)


@pytest.mark.parametrize("bias", [True, False])
def test_a_single_layer_reaches_the_optimum(bias: bool) -> None:
    """Of an explicit least squares over the kept columns, with an intercept where there is a bias."""
    dense = nn.Linear(6, 4, bias=bias).eval()
    x = rand(80, 6) @ rand(6, 6, seed=1) + 1
    _, module, masks, _ = run(dense, x, 0.5, damping=1e-9)
    for row, kept in enumerate(masks["weight"]):
        columns = torch.cat([x[:, kept], torch.ones(80, 1)], 1) if bias else x[:, kept]
        target = dense(x)[:, row : row + 1].detach()
        best = torch.linalg.lstsq(columns.double(), target.double(), driver="gelsd").solution[:, 0].float()
        count = int(kept.sum())
        torch.testing.assert_close(module.weight[row, kept], best[:count], rtol=1e-3, atol=1e-3)
        if bias:
            torch.testing.assert_close(module.bias[row], best[count], rtol=1e-3, atol=1e-3)


def test_a_convolution_reaches_the_optimum_through_its_batch_norm() -> None:
    dense = nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3)).eval()
    dense[1].running_mean.copy_(rand(3))
    x = rand(40, 2, 4, 4) + 1
    _, module, masks, _ = run(dense, x, 0.5, damping=1e-9)
    columns = nn.functional.unfold(x, 2).mT.flatten(0, 1).double()
    targets = dense[0](x).flatten(2).mT.flatten(0, 1).double().detach()
    for row, kept in enumerate(masks["0.weight"].flatten(1)):
        full = torch.cat([columns[:, kept], torch.ones(len(columns), 1).double()], 1)
        best = torch.linalg.lstsq(full, targets[:, row : row + 1], driver="gelsd").solution[:, 0].float()
        found = module[0].weight[row].flatten()
        torch.testing.assert_close(found[kept], best[:-1], rtol=1e-3, atol=1e-3)
        # A batch norm subtracts its running mean: the intercept goes in with a minus.
        shift = dense[1].running_mean[row] - module[1].running_mean[row]
        torch.testing.assert_close(shift, best[-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(module[1].running_var, dense[1].running_var, rtol=0, atol=0)


def test_a_bias_that_cannot_move_is_no_part_of_what_the_weights_explain() -> None:
    """Tied layers keep their own biases: the best shared weights for outputs without them."""
    dense, x = Tied().eval(), rand(300, 4) + 1
    _, module, masks, _ = run(dense, x, 0.4, damping=1e-9)
    assert torch.equal(module.a.bias, dense.a.bias)
    assert torch.equal(module.b.bias, dense.b.bias)
    assert module.b.weight is module.a.weight
    with torch.no_grad():
        masked = copy.deepcopy(dense)
        masked.a.weight *= masks["a.weight"]
        # Inputs are those of the network whose layer was masked, targets those of the dense one.
        inputs = torch.cat([x, masked.a(x).tanh()]).double()
        hidden = torch.cat([x, dense.a(x).tanh()]).double()
        for row, kept in enumerate(masks["a.weight"]):
            target = hidden @ dense.a.weight[row].double()
            best = torch.linalg.lstsq(inputs[:, kept], target[:, None], driver="gelsd").solution[:, 0]
            torch.testing.assert_close(module.a.weight[row, kept].double(), best, rtol=1e-3, atol=1e-3)


def test_a_layer_takes_back_what_the_layers_before_it_did() -> None:
    """Only the first layer is pruned; the second, whole, learns to read what is left."""
    dense, x = case("mlp")
    masks = some_masks(Network.from_module(dense), 0.6)
    masks["2.weight"] |= True
    masked, module, _, _ = run(dense, x, 0.6, masks=masks)
    only_first = copy.deepcopy(masked)
    only_first[0].load_state_dict(module[0].state_dict())
    assert distance(module, dense, x) < 0.9 * distance(only_first, dense, x)
    assert not torch.allclose(module[2].weight, dense[2].weight, rtol=1e-2)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_batch_size_does_not_matter(size: int) -> None:
    dense, x = case("conv", 30)
    wanted, found = (run(dense, x, 0.4, positions=6, size=s, damping=0.1)[1] for s in (10, size))
    for key, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, wanted.state_dict()[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_that_do_not_fit_in_memory_are_computed_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x = case(name, 50)
    cached = run(dense, x, 0.4, positions=6)[1]
    monkeypatch.setattr(least_squares, "_CACHE_BYTES", 0)
    uncached = run(dense, x, 0.4, positions=6)[1]
    for key, tensor in uncached.state_dict().items():
        assert torch.equal(tensor, cached.state_dict()[key]), key


@pytest.mark.parametrize("name", NETWORKS)
def test_replaying_what_is_settled_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x = case(name, 50)
    replayed = run(dense, x, 0.4, positions=6)[1]
    monkeypatch.setattr(activation_cache, "KEPT_BYTES", 0)
    anew = run(dense, x, 0.4, positions=6)[1]
    for key, tensor in anew.state_dict().items():
        torch.testing.assert_close(replayed.state_dict()[key], tensor, rtol=1e-5, atol=1e-6)


def test_replay_stays_within_its_memory_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a repair goes on: all that was solved before is kept by the first pass."""
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    x = torch.randn(10, 4)
    monkeypatch.setattr(activation_cache, "KEPT_BYTES", 3 * x.nbytes)
    layers = Network.from_module(module).layers
    keeping = activation_cache.ActivationCache(module, layers, 1)
    for layer in layers:
        keeping.freeze(layer)
    wanted = module(x)
    for _ in range(2):
        with keeping.passing():
            torch.testing.assert_close(module(x), wanted, rtol=0, atol=0)
        assert len(keeping._kept) == 3


def test_a_forward_of_the_user_s_own_is_put_back() -> None:
    dense, x = case("conv", 30)
    dense[0].forward = dense[0].forward
    module = run(dense, x, 0.4)[1]
    assert [("forward" in vars(m)) for m in module] == [True] + [False] * 8
    assert module[0].forward.__self__ is module[0]


@pytest.mark.parametrize("limit", [0, 1 << 29])
def test_dense_outputs_are_the_layers_own_at_the_drawn_positions(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "_CACHE_BYTES", limit)
    dense, x = case("twice", 5)
    outputs = DenseOutputs(dense, Network.from_module(dense).layers, batches(x, size=2), Positions(5, 0))
    assert (outputs._kept is None) is (limit == 0)
    found = list(outputs.rows_of("a"))
    assert [len(calls) for calls in found] == [2, 2, 2]
    with torch.no_grad():
        first = dense.a(x)
        wanted = [first, dense.a(first.tanh())]
    for call in (0, 1):
        torch.testing.assert_close(torch.cat([calls[call][0] for calls in found]), wanted[call])


def test_dead_channels_do_not_blow_up() -> None:
    dense, x = case("conv", 40)
    masks = some_masks(Network.from_module(dense), 0.3)
    with torch.no_grad():
        dense[0].weight[0] = 0  # never anything: dead in the dense network
        dense[1].bias[1] = -100  # never through its activation
    masks["0.weight"][2] = False  # dies here
    masked, module, _, _ = run(dense, x, 0.3, masks=masks)
    for key, tensor in module.state_dict().items():
        assert bool(torch.isfinite(tensor).all()), key
        assert float(tensor.abs().max()) <= 10 * max(1.0, float(dense.state_dict()[key].abs().max())), key
    assert distance(module, dense, x) < distance(masked, dense, x)


def test_a_layer_behind_constants_stays_as_it_is() -> None:
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)).eval(), rand(70, 6)
    with torch.no_grad():
        dense[0].weight.zero_()
    _, module, masks, _ = run(dense, x, 0.4)
    assert distance(module, dense, x) < 1e-10
    torch.testing.assert_close(module[2].weight, dense[2].weight * masks["2.weight"])


def test_zeros_of_a_checkpoint_that_was_pruned_before_stay() -> None:
    dense, x = case("conv", 40)
    was = some_masks(Network.from_module(dense), 0.5)
    for name, mask in was.items():
        dense.get_parameter(name).data.mul_(mask)
    _, module, masks, _ = run(dense, x, 0.2)
    for name, mask in masks.items():
        assert bool((module.get_parameter(name)[~(mask & was[name])] == 0).all()), name


def test_a_row_with_nothing_left_gives_its_mean() -> None:
    dense, x = nn.Linear(5, 2).eval(), rand(60, 5) + 1
    masks = {"weight": torch.tensor([[False] * 5, [True] * 5])}
    _, module, _, _ = run(dense, x, 0.0, masks=masks)
    assert bool((module.weight[0] == 0).all())
    torch.testing.assert_close(module.bias[0], dense(x)[:, 0].mean(), rtol=1e-4, atol=1e-5)


def test_fewer_samples_than_weights_move_only_what_the_samples_see() -> None:
    dense, x = nn.Linear(40, 3).eval(), rand(6, 40)
    masked, module, masks, _ = run(dense, x, 0.5)
    assert distance(module, dense, x) < 0.01 * distance(masked, dense, x)
    moved = (module.weight - masked.weight).detach().double()
    for row, kept in enumerate(masks["weight"]):
        seen = (x - x.mean(0))[:, kept].double()
        inside = torch.linalg.pinv(seen, rtol=1e-6) @ seen
        assert float(moved[row].norm()) > 0.01
        torch.testing.assert_close(inside @ moved[row, kept], moved[row, kept], rtol=1e-3, atol=1e-3)


def test_the_dense_network_and_the_modes_stay() -> None:
    dense, x = case("conv", 20)
    dense.train()
    before = snapshot(dense)
    _, module, _, _ = run(dense, x, 0.4)
    assert all(m.training for m in (*dense.modules(), *module.modules()))
    assert not any(m._forward_hooks for m in (*dense.modules(), *module.modules()))
    for key, tensor in dense.state_dict().items():
        assert torch.equal(tensor, before[key])


class Routed(nn.Module):
    """Samples of positive sign alone go through the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (self.gate(x)[:, 0] > 0).nonzero()[:, 0]
        return x.new_zeros(len(x), 3).index_put((chosen,), self.last(x[chosen]))


def test_a_layer_that_no_sample_reaches_any_more_is_named() -> None:
    dense, x = Routed(), rand(30, 4)
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module.gate.bias.sub_(100)
    outputs = DenseOutputs(dense, Network.from_module(dense).layers, batches(x, size=7), Positions(30, 0))
    with pytest.raises(UsageError, match=r"reaches last (.|\n)*prune.repair=obs"):
        least_squares.paired_moments(module, Network.from_module(module).layers[-1], None, outputs, batches(x, size=7))


class Experts(nn.Module):
    """Each sample goes through one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 2), nn.ModuleList(nn.Linear(8, 5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = self.gate(x).argmax(1), x.new_zeros(len(x), 5)
        for i, expert in enumerate(self.experts):
            out[chosen == i] = expert(x[chosen == i])
        return out


def test_an_expert_is_fitted_on_the_samples_that_reach_it() -> None:
    dense = Experts()
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module.gate.weight.neg_()  # nearly all samples go elsewhere
    data = batches(rand(50, 8), size=16)
    outputs = DenseOutputs(dense, Network.from_module(dense).layers, data, Positions(50, 0))
    layer = next(one for one in Network.from_module(module).layers if one.name == "experts.0")
    moments = paired_moments(module, layer, None, outputs, data)
    x = rand(50, 8)[module.gate(rand(50, 8)).argmax(1) == 0]
    targets = dense.experts[0](x) - dense.experts[0].bias
    assert moments.rows == len(x)
    torch.testing.assert_close(moments.tx[0, :, :-1].float(), targets.mT @ x / len(x), rtol=1e-4, atol=1e-5)
