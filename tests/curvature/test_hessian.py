"""Hessian products and Hutchinson's diagonal against torch.func's Hessian in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian

from prunetaylor.curvature.hessian import hessian_diagonal, hessian_product, hessian_products
from prunetaylor.errors import NumericsError
from prunetaylor.network.network import Network
from support.networks import NETWORKS, Encoder, case
from support.tiny import outputs_at, rand, risk

State = dict[str, Tensor]


def task(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[State], Tensor]:
    outputs = outputs_at(module, x)
    return lambda state: nn.functional.cross_entropy(outputs(state), y)


def state_of(module: nn.Module) -> State:
    return {name: p.detach().double() for name, p in module.named_parameters()}


def matrix(error: Callable[[State], Tensor], state: State) -> Tensor:
    h = hessian(error)(state)
    return torch.cat([torch.cat([h[a][b].reshape(state[a].numel(), -1) for b in state], 1) for a in state]).detach()


def flat(values: State) -> Tensor:
    return torch.cat([v.flatten() for v in values.values()]).double()


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_products(name: str, size: int) -> None:
    module, x, y = case(name)
    state = state_of(module)
    h = matrix(task(module, x, y), state)
    vectors = [{k: rand(*v.shape, seed=seed + i) for i, (k, v) in enumerate(state.items())} for seed in (5, 50)]
    found = hessian_products(risk(module, x, y, of="task", size=size), vectors)
    for v, product in zip(vectors, found, strict=True):
        assert list(product) == list(state)
        torch.testing.assert_close(flat(product), h @ flat(v), rtol=1e-3, atol=2e-6)


def test_attention() -> None:
    """The slope of the gradient, in float64."""
    module, x, y = Encoder().eval(), rand(6, 5, 4), torch.arange(6) % 3
    state = state_of(module)
    v = {k: rand(*state[k].shape, seed=i) for i, k in enumerate(("layer.self_attn.in_proj_weight", "head.weight"))}
    error, ends = task(module, x, y), []
    for sign in (1, -1):
        at = {k: (state[k] + sign * 1e-5 * v[k].double()).requires_grad_() for k in v}
        ends.append(torch.autograd.grad(error(at), list(at.values())))
    found = hessian_product(risk(module, x, y, of="task"), v)
    for name, up, down in zip(v, *ends, strict=True):
        torch.testing.assert_close(found[name].double(), (up - down) / 2e-5, rtol=1e-3, atol=1e-6)


def weights_part(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Network]:
    network = Network.of(module)
    state = {layer.parameter: layer.weight.detach().double() for layer in network.layers}
    return matrix(task(module, x, y), state), network


@pytest.mark.parametrize("name", ["mlp", "normed"])
def test_the_diagonal_converges_as_its_variance_says(name: str) -> None:
    module, x, y = case(name)
    h, network = weights_part(module, x, y)
    found = flat(hessian_diagonal(risk(module, x, y, of="task", size=100), network.layers, 0, 400))
    spread = ((h.square().sum(1) - h.diagonal().square()) / 400).sqrt()
    assert bool(((found - h.diagonal()).abs() <= 4.5 * spread + 1e-6).all())
    assert bool((spread > 0).any())


def test_one_probe_is_exact_where_the_hessian_is_diagonal() -> None:
    """One input at a time is on, and outputs have errors of their own."""
    module, x = nn.Linear(3, 2, bias=False), torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    at = risk(module, x, torch.zeros(3, 2), kind="values", of="task")
    found = hessian_diagonal(at, Network.of(module).layers, 0, 1)["weight"]
    torch.testing.assert_close(found, torch.tensor([1.0, 4.0, 9.0]).expand(2, 3) / 3)


@pytest.mark.parametrize("size", [1, 5])
def test_it_does_not_depend_on_the_batches_and_is_the_seed_s(size: int) -> None:
    module, x, y = case("normed")
    layers = Network.of(module).layers
    whole, parts = (hessian_diagonal(risk(module, x, y, of="task", size=s), layers, 3, 5) for s in (100, size))
    other = hessian_diagonal(risk(module, x, y, of="task", size=100), layers, 4, 5)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-7)
        assert not torch.equal(other[name], value)


def test_an_error_that_is_linear_in_a_weight_has_no_curvature_there() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            both = (x * self.a).sum(1, keepdim=True)
            return torch.cat([both, both], 1)  # cross-entropy sees the difference only

    module, x = Sum(), rand(4, 2)
    found = hessian_product(risk(module, x, of="task"), {"a": torch.ones(2), "unused": torch.ones(2)})
    torch.testing.assert_close(found, {"a": torch.zeros(2), "unused": torch.zeros(2)})
    alone = hessian_product(risk(module, x, of="task"), {"unused": torch.ones(2)})
    torch.testing.assert_close(alone, {"unused": torch.zeros(2)})


def test_a_product_that_is_not_finite_is_refused_by_name() -> None:
    module, x, y = case("mlp")
    with pytest.raises(NumericsError, match=r"0\.bias: a Hessian product is not finite"):
        hessian_product(risk(module, x, y, of="task"), {"0.bias": torch.full((4,), float("inf"))})


def test_nothing_is_left_behind() -> None:
    module, x, y = case("normed")
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    hessian_diagonal(risk(module, x, y, of="task"), Network.of(module).layers, 0, 2)
    assert all(child.training for child in module.modules())
    assert all(p.grad is None for p in module.parameters())
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
