"""Refinement by the layers' outputs: its loss by hand, where it arrives, and what it leaves as it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prunetaylor.data.preprocess import Preprocess
from prunetaylor.data.samples import Batches, Inputs, TensorSplit
from prunetaylor.network.network import Network
from prunetaylor.network.state import evaluating
from prunetaylor.pruning.intercepts import find_intercepts
from prunetaylor.pruning.refiners import _feature_loss
from prunetaylor.pruning.refiners import features as room
from prunetaylor.pruning.refiners.features import Matching, MatchState
from prunetaylor.taylor.objective import Objective
from support.networks import NETWORKS, network_case
from support.samples import rand
from support.taylor_models import assert_least_squares, pruned, risk


def batches(x: Tensor, size: int, seed: int | None = 0) -> Batches:
    drawn = {} if seed is None else {"generator": torch.Generator().manual_seed(seed), "shuffle": True}
    split = TensorSplit(x, torch.zeros(len(x), dtype=torch.long))
    return Batches(split, Preprocess(), batch_size=size, device="cpu", **drawn)


def matched(
    module: nn.Module, dense: nn.Module, masks: Mapping[str, Tensor], x: Tensor, held: Tensor, **how: Any
) -> list[MatchState]:
    task, size = how.pop("task", "classification"), how.pop("size", len(x))
    layers = Network.from_module(module).layers
    return list(
        Matching(
            module,
            dense,
            layers,
            find_intercepts(module, layers, batches(held, len(held), None)),
            masks,
            batches(x, size),
            risk(module, held, task=task, dense=dense),
            **{"scale": 1.0, "steps": 60, "chunk": len(x), **how},
        ).run()
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("in_place", [False, True])
def test_the_gradients_are_those_of_the_divergence_and_each_layers_share(in_place: bool) -> None:
    dense, x, _ = network_case("normed")
    dense[2] = nn.ReLU(inplace=in_place)  # overwrites what the batch norm puts out
    module, _ = pruned(dense)
    last = [layer for layer in Network.from_module(module).layers if layer.name == "4"]
    pull = _feature_loss.FeatureLoss(module, dense, last, ["1"])  # 1 is the batch norm that reads the convolution
    with evaluating(module), evaluating(dense):
        pull.variances = _feature_loss.output_variances(dense, batches(x, 4, None), pull)
        for part in x.split(5):
            towards = Objective("classification", "divergence")
            _feature_loss.add_gradients(
                module, dense, Inputs.of(part), torch.zeros(len(part)).long(), pull, towards, 0.5, len(part) / len(x)
            )
    found = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    layers = [network[:k](x).clone() for network in (module, dense) for k in (2, 5)]
    errors = [(layers[i] - layers[2 + i].detach()).square().mean() / layers[2 + i].var(unbiased=False) for i in (0, 1)]
    kl = nn.functional.kl_div(
        module(x).log_softmax(1), dense(x).detach().log_softmax(1), log_target=True, reduction="batchmean"
    )
    (kl / 0.5 + _feature_loss.FEATURES * sum(errors).div(2)).backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


def test_a_linear_layer_arrives_at_least_squares() -> None:
    dense, x = nn.Linear(6, 3), rand(80, 6)
    module, masks = pruned(dense)
    matched(module, dense, masks, x, x, task="regression", steps=800)
    assert_least_squares(module, dense, masks["weight"], x)


@pytest.mark.parametrize("name", NETWORKS)
def test_held_out_samples_confirm_it_and_masks_hold(name: str) -> None:
    dense, x, _ = network_case(name, samples=24)
    module, masks = pruned(dense)
    held = rand(*x.shape, seed=9)
    before = risk(module, held, dense=dense).value()
    states = matched(module, dense, masks, x, held, size=8)
    assert len(states) == 60
    assert sum(state.measured for state in states) == room.CHECKS
    assert states[0].before == pytest.approx(before)
    after = risk(module, held, dense=dense).value()
    assert states[-1].after == pytest.approx(after, rel=1e-5)
    assert after < before or name == "transposed"  # there it has little to gain
    weights = module.state_dict()
    for parameter, mask in masks.items():
        assert bool((weights[parameter][~mask] == 0).all())


def test_what_held_out_samples_do_not_confirm_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RATE", 50.0)
    dense, x, _ = network_case("mlp")
    module, masks = pruned(dense)
    before = copy.deepcopy(module.state_dict())
    states = matched(module, dense, masks, x, rand(*x.shape, seed=9))
    assert states[-1].after == states[-1].before
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nothing_else_is_changed() -> None:
    dense, x, _ = network_case("normed")
    module, masks = pruned(dense)
    module.train()
    module[1].weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    fixed, statistics = copy.deepcopy(dense.state_dict()), copy.deepcopy(dict(module.named_buffers()))
    matched(module, dense, masks, x, x, frozen=["4"])
    assert module.training
    assert {name: p.requires_grad for name, p in module.named_parameters()} == flags
    assert all(p.grad is None and p.is_contiguous() for p in [*module.parameters(), *dense.parameters()])
    assert all(torch.equal(tensor, fixed[name]) for name, tensor in dense.state_dict().items())
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in module.named_buffers())
    assert torch.equal(module[4].bias, dense[4].bias)
    assert not torch.equal(module[1].weight, dense[1].weight)


def test_how_samples_are_passed_changes_nothing() -> None:
    dense, x, _ = network_case("conv", samples=12)
    found = []
    for chunk in (12, 5):
        module, masks = pruned(dense)
        matched(module, dense, masks, x, x, chunk=chunk, steps=6)
        found.append(module.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_layers_of_constant_outputs_count_without_a_variance() -> None:
    dense = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with torch.no_grad():
        dense[0].weight.zero_()
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module[0].bias.add_(1.0)
    x = rand(10, 3)
    masks = {f"{i}.weight": torch.ones(2, 3 - i, dtype=torch.bool) for i in (0, 1)}
    states = matched(module, dense, masks, x, x, task="regression", steps=300)
    assert states[-1].after < 0.1 * states[-1].before


def test_what_rounding_leaves_of_a_constants_variance_is_none() -> None:
    dense = nn.Linear(3, 1)
    with torch.no_grad():
        dense.weight.fill_(4e-9)
        dense.bias.fill_(0.1)
    assert len(dense(rand(3001, 3)).unique()) > 1
    module = copy.deepcopy(dense)
    pull = _feature_loss.FeatureLoss(module, dense, Network.from_module(module).layers, [])
    assert _feature_loss.output_variances(dense, batches(rand(3001, 3), 64, None), pull) == {" 1": 1.0}


class Kept(nn.Module):
    """(N, 3) to (N, 2); the activations inside are kept for the backward pass, or computed again in it."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again, self.first, self.second, self.last = (
            again,
            nn.Linear(3, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        again = checkpoint(self._inner, y, use_reentrant=False) if self.again else self._inner(y)
        return self.last(again)

    def _inner(self, y: Tensor) -> Tensor:
        return self.second(y).relu_()


def test_activations_that_are_computed_again_count_once() -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        dense = Kept(again)
        module, masks = pruned(dense)
        matched(module, dense, masks, rand(16, 3), rand(8, 3), steps=4)
        found.append(dict(module.state_dict()))
    torch.testing.assert_close(found[1], found[0])


class Routed(nn.Module):
    """(N, 3) to (N, 2): each sample's sign chooses one of two layers, which gets those samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        y = x.new_zeros(len(x), 2)
        for layer, chosen in ((self.one, gate[:, 0] > 0), (self.two, gate[:, 0] <= 0)):
            if chosen.any():
                y = y.index_put((chosen.nonzero()[:, 0],), layer(x[chosen]) * gate[chosen])
        return y


@pytest.mark.parametrize("bias", [0.5, 100.0])
def test_layers_called_otherwise_than_in_the_dense_network_are_not_matched(bias: float) -> None:
    dense = Routed()
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module.gate.bias.add_(bias)
    states = matched(module, dense, {}, rand(16, 3), rand(8, 3), steps=4)
    assert states[-1].after <= states[-1].before


def test_what_is_computed_between_steps_is_left_alone() -> None:
    found = []
    for between in (False, True):
        torch.manual_seed(0)
        dense, x, _ = network_case("normed")
        module, masks = pruned(dense)
        layers = Network.from_module(module).layers
        states = Matching(
            module,
            dense,
            layers,
            {},
            masks,
            batches(x, 8),
            risk(module, x, dense=dense),
            scale=1.0,
            steps=4,
            chunk=8,
        ).run()
        for _ in states:
            if between:
                dense(x[:3])
                module(x[:2])
        found.append(dict(module.state_dict()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
