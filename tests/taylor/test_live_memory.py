"""What is alive in a pass, whoever made it: against the tensors that are known to be there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.parametrizations import weight_norm

from prunetaylor.data.samples import Inputs
from prunetaylor.network.network import Network
from prunetaylor.taylor.live_memory import alive_in_forward_mode, alive_without_gradients
from support.samples import rand

TOKENS, HEADS = 64, 4
PRODUCTS = 4 * HEADS * TOKENS**2
"""Bytes of the products of all tokens with all others; everything else is far smaller."""


class Attention(nn.Module):
    """Samples (N, TOKENS, 8) to (N, 3), by one way of attention."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        self.mix = nn.Linear(8, 24)
        self.layer = nn.TransformerEncoderLayer(8, HEADS, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.by == "module":
            return self.head(self.layer(x).mean(1))
        q, k, v = (t.unflatten(2, (HEADS, 2)).transpose(1, 2) for t in self.mix(x).chunk(3, 2))
        mixed = scaled_dot_product_attention(q, k, v) if self.by == "fused" else (q @ k.mT).softmax(3) @ v
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def alive(module: nn.Module, x: Tensor) -> tuple[int, int]:
    return alive_without_gradients(module, Inputs.of(x)), alive_in_forward_mode(
        module, Inputs.of(x), Network.from_module(module).layers
    )


@pytest.mark.parametrize("by", ["by hand", "fused", "module"])
def test_products_of_tokens_are_seen(by: str) -> None:
    plain, forward = alive(Attention(by), rand(1, TOKENS, 8))
    # Before and after the softmax; a fused kernel on a CPU makes a few rows at a time.
    low, high = (0, 1) if by == "fused" else (2, 3)
    assert low * PRODUCTS <= plain < high * PRODUCTS
    # A softmax, its derivative and what that is made of.
    assert 4 * PRODUCTS <= forward < 8 * PRODUCTS


@pytest.mark.parametrize("by", ["by hand", "fused", "module"])
def test_more_samples_take_as_much_more(by: str) -> None:
    module = Attention(by)
    one, four = alive(module, rand(1, TOKENS, 8)), alive(module, rand(4, TOKENS, 8))
    assert four == pytest.approx([4 * size for size in one], rel=0.1)


def test_what_is_gone_does_not_count() -> None:
    layers = [layer for _ in range(20) for layer in (nn.Linear(16, 16), nn.Tanh())]
    plain, forward = alive(nn.Sequential(*layers), rand(1, 16))
    assert plain == 4 * (16 + 16)
    assert forward <= 4 * 16 * 8


class Filling(nn.Module):
    """Writes into a tensor that is made of nothing, with a weight that is made of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(rand(100, 100))
        self.layer = nn.Linear(100, 100)

    def forward(self, x: Tensor) -> Tensor:
        room = torch.zeros(len(x), 50, 100)
        room += self.layer(x).unsqueeze(1)
        return room.mean(1) @ (self.square @ self.square)


def test_only_what_comes_of_the_sample_counts() -> None:
    samples = rand(1000, 100)
    plain, forward = alive(Filling(), samples[:1])
    assert 4 * 50 * 100 <= plain < 4 * 60 * 100
    assert 2 * 4 * 50 * 100 <= forward < 4 * 4 * 50 * 100


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass


class Without(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return NoDerivative.apply(x)


def test_along_the_layers_where_others_have_no_derivative() -> None:
    """Weight norm has none in its own parameters."""
    module = nn.Sequential(weight_norm(nn.Linear(6, 30)), nn.Linear(30, 4))
    assert alive_in_forward_mode(module, Inputs.of(rand(1, 6)), Network.from_module(module).layers) >= 4 * (30 + 4)
    module = nn.Sequential(nn.Linear(6, 30), Without(), nn.Linear(30, 4))
    assert alive_in_forward_mode(module, Inputs.of(rand(1, 6)), Network.from_module(module).layers) == 0


def test_nothing_is_changed() -> None:
    module = Attention("module").train()
    module.head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    alive(module, rand(1, TOKENS, 8))
    assert all(m.training for m in module.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
