"""What takes up a shift of a layer's output is found by what really happens in a forward pass."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunetaylor.network.network import Network
from prunetaylor.pruning.intercepts import Intercept, find_intercepts
from support.samples import batches, rand


def intercepts(module: nn.Module, *shape: int) -> dict[str, Intercept]:
    return find_intercepts(module, Network.from_module(module).layers, batches(rand(5, *shape)))


def conv(bias: bool = False) -> nn.Module:
    return nn.Conv2d(2, 2, 1, bias=bias)


class Net(nn.Module):
    """Two convolutions and two norms, wired by the function given."""

    def __init__(self, wire: object) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()
        self.first, self.second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.wire = wire

    def forward(self, x: Tensor) -> Tensor:
        return self.wire(self, x)


def test_a_bias_absorbs_before_a_norm_does() -> None:
    module = nn.Sequential(conv(bias=True), nn.BatchNorm2d(2), conv(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1))
    assert intercepts(module, 2, 2, 2) == {
        "0": Intercept("0.bias", 1),
        "2": Intercept("3.running_mean", -1),
        "5": Intercept("5.bias", 1),
    }


def test_a_bare_layer() -> None:
    assert intercepts(nn.Linear(2, 3), 2) == {"": Intercept("bias", 1)}
    assert intercepts(nn.Linear(2, 3, bias=False), 2) == {}


def test_norms_are_paired_by_wiring_not_by_name() -> None:
    def crossed(m: Net, x: Tensor) -> Tensor:
        return m.first(m.b(m.second(m.a(x))))

    found = intercepts(Net(crossed), 2, 3, 3)
    assert found == {"a": Intercept("second.running_mean", -1), "b": Intercept("first.running_mean", -1)}


def test_a_norm_of_two_layers_is_not_paired() -> None:
    assert intercepts(Net(lambda m, x: m.first(m.a(x)) + m.first(m.b(x))), 2, 3, 3) == {}
    assert intercepts(Net(lambda m, x: m.first(m.a(x)) + m.first(x)), 2, 3, 3) == {}


def test_a_layer_of_two_norms_is_not_paired() -> None:
    def forked(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.first(y) + m.second(y)

    assert intercepts(Net(forked), 2, 3, 3) == {}


def test_a_layer_called_twice_is_not_paired() -> None:
    assert intercepts(Net(lambda m, x: m.first(m.a(m.a(x)))), 2, 3, 3) == {}


def test_a_norm_behind_something_else_is_not_paired() -> None:
    assert intercepts(Net(lambda m, x: m.first(m.a(x).relu())), 2, 3, 3) == {}
    assert intercepts(Net(lambda m, x: m.first(m.a(x).relu_())), 2, 3, 3) == {}, "in place: the same tensor, changed"
    assert intercepts(Net(lambda m, x: m.first(m.a(x) + x)), 2, 3, 3) == {}


def test_a_norm_without_statistics_absorbs_nothing() -> None:
    module = nn.Sequential(conv(), nn.BatchNorm2d(2, track_running_stats=False), conv(), nn.GroupNorm(1, 2))
    assert intercepts(module, 2, 3, 3) == {}


def test_a_norm_over_positions_is_not_one_over_a_linear_layer_s_outputs() -> None:
    tokens = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3))
    assert intercepts(tokens, 3, 4) == {}
    assert intercepts(tokens, 4) == {"0": Intercept("1.running_mean", -1)}


def test_tied_layers_with_biases_of_their_own_have_no_absorber() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    assert intercepts(module, 3) == {}


def test_a_norm_whose_input_a_skip_connection_reads_too_absorbs_nothing() -> None:
    """The norms of other layers still do, and a bias may: what reads the sum reads it whole."""

    def skipped(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.second(m.b(m.first(y).relu())) + y

    net = Net(skipped)
    with torch.no_grad():
        net.a.weight.mul_(0.1)
    assert intercepts(net, 2, 3, 3) == {"b": Intercept("second.running_mean", -1)}
    net.a.bias = nn.Parameter(torch.zeros(2))
    assert intercepts(net, 2, 3, 3) == {"a": Intercept("a.bias", 1), "b": Intercept("second.running_mean", -1)}


def test_a_bias_that_is_read_elsewhere_too_absorbs_nothing() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].bias = module[0].bias
    assert intercepts(module, 3) == {"4": Intercept("4.bias", 1)}

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).tanh() + self.a.bias

    assert intercepts(Again(), 3) == {}


def test_a_bias_that_is_computed_absorbs_nothing() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    for layer in (module[0], module[2]):
        parametrize.register_parametrization(layer, "bias", nn.Identity())
    assert intercepts(module, 3) == {"0": Intercept("1.running_mean", -1)}


def test_long_chains_of_large_shifts_keep_all_their_norms() -> None:
    """Rounding adds up from norm to norm, and is not taken for a shift that got through."""
    parts = [part for i in range(20) for part in (conv(), nn.BatchNorm2d(2), nn.Tanh())]
    for norm in parts[1::3]:
        norm.running_mean, norm.running_var = 30 * torch.randn(2), torch.full((2,), 1e-2)
    assert len(intercepts(nn.Sequential(*parts), 2, 3, 3)) == 20


def test_modes_and_hooks_are_put_back() -> None:
    module = nn.Sequential(conv(), nn.BatchNorm2d(2), nn.Dropout())
    module.train()
    module[1].eval()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    intercepts(module, 2, 3, 3)
    assert [m.training for m in module.modules()] == [True, True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name])
