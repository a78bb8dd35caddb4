"""Which tensors are prunable, and that whatever is left alone is named with its reason."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from prunetaylor.core.errors import NumericsError, UsageError
from prunetaylor.network.network import Network
from prunetaylor.network.state import check_values, copy_module, evaluating, restore, snapshot


class Named(nn.Module):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def names(network: Network) -> list[str]:
    return [layer.name for layer in network.layers]


def skipped(network: Network) -> dict[str, str]:
    return {s.name: s.why for s in network.skipped}


def plain() -> nn.Module:
    return Named(conv1=nn.Conv2d(1, 2, 3), conv2=nn.Conv2d(2, 2, 3), norm=nn.BatchNorm2d(2), head=nn.Linear(8, 3))


def test_only_weights_of_convolutions_and_linear_layers_are_prunable() -> None:
    network = Network.from_module(plain())
    assert names(network) == ["conv1", "conv2", "head"]
    assert network.prunable == 18 + 36 + 24
    assert network.skipped == []
    masks = network.masks()
    assert {k: tuple(v.shape) for k, v in masks.items()} == {
        "conv1.weight": (2, 1, 3, 3),
        "conv2.weight": (2, 2, 3, 3),
        "head.weight": (3, 8),
    }
    assert all(m.dtype == torch.bool and bool(m.all()) for m in masks.values())


def test_a_bare_layer_has_an_empty_name() -> None:
    network = Network.from_module(nn.Linear(2, 3))
    assert names(network) == [""]
    assert list(network.masks()) == ["weight"]


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (["conv*"], [], ["conv1", "conv2"]),
        (["*"], ["head"], ["conv1", "conv2"]),
        (["*"], ["conv?"], ["head"]),
        (["conv1", "head"], ["h*"], ["conv1"]),
    ],
)
def test_patterns(include: list[str], exclude: list[str], left: list[str]) -> None:
    network = Network.from_module(plain(), include, exclude)
    assert names(network) == left
    for name in {"conv1", "conv2", "head"} - set(left):
        assert "prune.include" in skipped(network)[name] or "prune.exclude" in skipped(network)[name]


def test_skipped_layers_say_which_pattern_left_them_out() -> None:
    found = skipped(Network.from_module(plain(), ["conv*"], ["conv2"]))
    assert found == {"head": "not matched by prune.include", "conv2": "matched by prune.exclude"}


@pytest.mark.parametrize(("include", "exclude"), [(["cnov1"], []), (["*"], ["cnov1"])])
def test_a_pattern_that_matches_nothing_is_an_error_with_a_close_match(include: list[str], exclude: list[str]) -> None:
    with pytest.raises(UsageError, match=r"'cnov1' matches no .* did you mean 'conv1'\?") as caught:
        Network.from_module(plain(), include, exclude)
    assert "conv1, conv2, head" in caught.value.remedy


def test_patterns_do_not_match_norms() -> None:
    with pytest.raises(UsageError, match="'norm' matches no"):
        Network.from_module(plain(), ["*"], ["norm"])


def test_everything_excluded_is_an_error() -> None:
    with pytest.raises(UsageError, match="no prunable weights"):
        Network.from_module(plain(), ["*"], ["*"])


def test_nothing_prunable_is_an_error() -> None:
    with pytest.raises(UsageError, match="no prunable weights"):
        Network.from_module(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)))
    with pytest.raises(UsageError, match=r"0\.weight was skipped .*Embedding"):
        Network.from_module(nn.Sequential(nn.Embedding(3, 4)))


def test_tied_linear_layers_are_one_layer() -> None:
    module = Named(a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2))
    module.b.weight = module.a.weight
    network = Network.from_module(module)
    assert names(network) == ["a", "c"]
    assert network.layers[0].modules == ("a", "b")
    assert network.prunable == 16 + 8
    assert names(Network.from_module(module, ["*"], ["b"])) == ["c"]


def test_linear_tied_to_an_embedding_is_left_alone() -> None:
    module = Named(tokens=nn.Embedding(5, 4), body=nn.Linear(4, 4), head=nn.Linear(4, 5, bias=False))
    module.head.weight = module.tokens.weight
    network = Network.from_module(module)
    assert names(network) == ["body"]
    assert skipped(network) == {"head": "its weight is tied to tokens.weight"}


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_computed_weights_are_left_alone(norm: object) -> None:
    network = Network.from_module(Named(a=norm(nn.Linear(4, 4)), b=nn.Linear(4, 2)))
    assert names(network) == ["b"]
    assert "computed" in skipped(network)["a"]


def test_attention_input_projection_is_named_as_left_alone() -> None:
    network = Network.from_module(Named(attention=nn.MultiheadAttention(4, 2), head=nn.Linear(4, 2)))
    assert names(network) == ["attention.out_proj", "head"]
    assert skipped(network) == {
        "attention.in_proj_weight": "not the weight of a convolution or linear layer (MultiheadAttention)"
    }


def test_recurrent_and_embedding_weights_are_named_as_left_alone() -> None:
    network = Network.from_module(Named(tokens=nn.Embedding(5, 4), rnn=nn.GRU(4, 3), head=nn.Linear(3, 2)))
    assert names(network) == ["head"]
    assert set(skipped(network)) == {"tokens.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"}


def test_keep_only_orders_and_names_the_rest() -> None:
    network = Network.from_module(plain())
    network.keep_only(["head", "conv1"], {"conv2": "not reached"})
    assert names(network) == ["head", "conv1"]
    assert skipped(network) == {"conv2": "not reached"}


def test_evaluating_restores_every_submodule() -> None:
    module = plain().train()
    module.norm.eval()
    with evaluating(module):
        assert not any(child.training for child in module.modules())
    assert module.norm.training is False
    with pytest.raises(ZeroDivisionError), evaluating(module):
        raise ZeroDivisionError
    assert module.training
    assert module.conv1.training
    assert not module.norm.training


def test_snapshot_is_a_copy_and_restores_buffers_too() -> None:
    module = plain().train()
    state = snapshot(module)
    before = {k: v.clone() for k, v in state.items()}
    module.norm(torch.ones(2, 2, 3, 3))
    with torch.no_grad():
        module.head.weight.zero_()
    restore(module, state)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert int(module.norm.num_batches_tracked) == 0


class Counted(nn.Linear):
    """A module with extra state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        raise AssertionError("a snapshot puts tensors back, nothing else")


def test_a_snapshot_leaves_extra_state_alone() -> None:
    module = Counted(2, 2)
    state = snapshot(module)
    assert set(state) == {"weight", "bias"}
    was = module.weight.detach().clone()
    nn.init.zeros_(module.weight)
    restore(module, state)
    assert torch.equal(module.weight, was)


@pytest.mark.parametrize("key", ["conv2.weight", "head.bias", "norm.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(key: str, value: float) -> None:
    module = plain()
    module.register_buffer("mask", torch.full((2, 2), float("-inf")))
    check_values(module)  # what attention adds to its scores may be infinite
    module.get_submodule(key.split(".")[0]).state_dict()[key.split(".")[1]][0] = value
    with pytest.raises(NumericsError, match=rf"^{key} has values that are not finite\n.*checkpoint"):
        check_values(module)
    with torch.no_grad():
        module.conv1.weight.fill_(value)
    with pytest.raises(NumericsError, match=r"^conv1\.weight \(and 1 more\) has values"):
        check_values(module)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_network_whose_weights_a_pass_has_computed_can_be_copied() -> None:
    module = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 3))
    x = torch.randn(5, 4)
    before = module(x)
    assert module[0].weight.grad_fn is not None
    other = copy_module(module)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        other[0].weight_g.mul_(2)
    assert torch.equal(module(x), before)
    assert not torch.equal(other(x), before), "its weight is still computed, from its own parameters"


@pytest.mark.parametrize("held", [threading.Lock(), torch.ones(2, requires_grad=True) * 2])
def test_what_cannot_be_copied_says_so(held: object) -> None:
    module = plain()
    module.conv1.held = [held]
    with pytest.raises(UsageError, match=r"the network cannot be copied: .*\n.*store what cannot be copied"):
        copy_module(module)
