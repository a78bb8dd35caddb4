"""Gauss-Newton refinement: each step against the dense system, its damping by held-out samples, its end."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from prunetaylor.network.network import Network
from prunetaylor.pruning.refiners import gauss_newton as room
from prunetaylor.pruning.refiners.gauss_newton import _free, _Krylov, refine
from prunetaylor.taylor.curvature.gradients import gauss_newton_diagonal, parameter_gradient, sampled_diagonal
from support.networks import network_case
from support.samples import rand
from support.taylor_models import assert_least_squares, jacobians, output_hessian, outputs_at, pruned, risk


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_a_step_is_the_solution_of_the_damped_system(damping: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PRODUCTS", 500)  # all of the space
    dense, x, _ = network_case("normed")
    module, masks = pruned(dense)
    error = risk(module, x, dense=dense)
    krylov = _Krylov(error, _free(module, masks), seed=1)
    names = list(krylov.parameters)
    flat = {n: krylov.scale[n].flatten().double() for n in names}
    scale = torch.cat(list(flat.values()))
    j = torch.cat([v.flatten(2) for v in jacobians(module, x, names).values()], 2)
    h = output_hessian(outputs_at(module, x)({}).detach(), "classification")
    g = torch.einsum("nkp,nkl,nlq->pq", j, h, j) / len(x)
    gradient = torch.cat([v.flatten().double() for v in parameter_gradient(error, krylov.parameters).values()])
    a, b = scale[:, None] * g * scale, -scale * gradient
    shift = damping * float(krylov.eigenvalues[-1])
    wanted = scale * torch.linalg.solve(a + shift * torch.eye(len(a), dtype=a.dtype), b)
    found = torch.cat([v.flatten().double() for v in krylov.step(damping).values()])
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-3 * float(wanted.abs().max()))


def test_a_linear_layer_arrives_at_least_squares() -> None:
    dense, x = nn.Linear(6, 3), rand(80, 6)
    module, masks = pruned(dense)
    error = risk(module, x, task="regression", dense=dense)
    list(refine(module, masks, lambda: error, error, steps=30, seed=0))
    assert_least_squares(module, dense, masks["weight"], x)


def test_the_held_out_error_never_rises_and_masks_hold() -> None:
    dense, x, _ = network_case("normed")
    module, masks = pruned(dense)
    held = risk(module, rand(*x.shape, seed=9), dense=dense)
    before = held.value()
    states = list(refine(module, masks, lambda: risk(module, x, dense=dense), held, steps=8, seed=0))
    assert states[0].before == pytest.approx(before)
    assert states[-1].after == pytest.approx(held.value())
    assert all(state.after <= state.before for state in states)
    assert all(a.after == b.before for a, b in pairwise(states))
    assert states[-1].after < 0.9 * before
    state = module.state_dict()
    for name, mask in masks.items():
        assert bool((state[name][~mask] == 0).all())
    # Batch norm's statistics are no weights.
    for name, value in dense.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(state[name], value), name


def test_it_ends_where_held_out_samples_gain_nothing() -> None:
    dense, x, _ = network_case("normed")
    held = risk(dense, x)  # the dense network is what it should be: nothing can be lower
    state = {name: value.clone() for name, value in dense.state_dict().items()}
    other, _ = pruned(dense)
    fresh = risk(dense, x, dense=other)  # pulls away from there
    states = list(refine(dense, {}, lambda: fresh, held, steps=10, seed=0))
    assert [s.damping for s in states] == [None]
    for name, value in dense.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_without_a_gradient_nothing_moves_but_by_rounding() -> None:
    dense, x, _ = network_case("normed")
    error = risk(dense, x)
    state = {name: value.clone() for name, value in dense.state_dict().items()}
    list(refine(dense, {}, lambda: error, error, steps=3, seed=0))
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=1e-4)


def test_the_drawn_diagonal_is_right_in_the_mean() -> None:
    module, x, _ = network_case("normed")
    error, layers = risk(module, x), Network.from_module(module).layers
    exact = gauss_newton_diagonal(error, layers, 0)
    weights = {layer.parameter: layer.weight for layer in layers}
    draws = [sampled_diagonal(error, weights, 7 * seed) for seed in range(600)]
    for name, wanted in exact.items():
        stack = torch.stack([draw[name] for draw in draws])
        standard = stack.std(0) / len(draws) ** 0.5
        assert bool(((stack.mean(0) - wanted).abs() <= 5 * standard + 1e-7).all()), name
