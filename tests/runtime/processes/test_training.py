"""Gradients and batch norms of two processes with their rows of a batch are those of one process with all rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.runtime.processes import group
from prunetaylor.runtime.processes.training import sum_gradients, synced_batch_norm
from support.processes import run_in_processes

ROWS = {"even": (3, 3), "uneven": (5, 2), "one": (1, 1), "none": (4, 0), "none first": (0, 4)}


class Network(nn.Module):
    """Two kinds of batch norm, one of them used twice, and one that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.2)
        self.fc, self.plain = nn.Linear(27, 4), nn.BatchNorm1d(4, affine=False, momentum=None)
        self.fixed, self.unused = nn.BatchNorm1d(4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = self.plain(self.fc(self.norm(x.relu()).flatten(1)))
        return self.fixed(x)


def network() -> Network:
    torch.manual_seed(1)
    module = Network().double().train()
    module.fixed.eval()
    module.fixed.running_mean += 0.5
    return module


def batch(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = 3 + torch.randn(rows, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(rows, 4, generator=generator, dtype=torch.float64)


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).abs().pow(1.5).sum(1)


def state_of(module: nn.Module, outputs: Tensor) -> dict[str, Any]:
    grads = {name: p.grad for name, p in module.named_parameters()}
    return {"state": dict(module.state_dict()), "grads": grads, "outputs": outputs.detach()}


def alone(rows: int) -> dict[str, Any]:
    module, (x, y) = network(), batch(rows)
    outputs = module(x)
    losses(outputs, y).mean().backward()
    return state_of(module, outputs)


def work() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, rows in ROWS.items():
        module, (x, y) = network(), batch(sum(rows))
        own = slice(0, rows[0]) if group.rank() == 0 else slice(rows[0], None)
        x, y = x[own], y[own]
        with synced_batch_norm(module):
            outputs = module(x)
            loss = losses(outputs, y).mean() * (len(x) / sum(rows)) if len(x) else outputs.sum() * 0
            loss.backward()
        sum_gradients(module.parameters())
        found[name] = copy.deepcopy(state_of(module, outputs))
    # Float32, evaluation mode, a single value, somebody else's forward: each leaves the norm as it was.
    norm = nn.BatchNorm1d(3)
    with synced_batch_norm(norm.eval()):
        found["evaluated"] = norm(torch.full((1 + group.rank(), 3), 2.0))
    with synced_batch_norm(norm.train()):
        found["float32"] = norm(1000 + torch.arange(6.0).view(2, 3) + 6 * group.rank()).detach()
        found["half"] = norm(torch.ones(2, 3, dtype=torch.bfloat16)).dtype
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm(torch.zeros(1 if group.rank() else 0, 3))
    found["left behind"] = "forward" in vars(norm)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_in_processes("test_training:work", tmp_path_factory.mktemp("training"))


@pytest.mark.parametrize("name", ROWS)
def test_two_are_one(found: list[dict[str, Any]], name: str) -> None:
    wanted = alone(sum(ROWS[name]))
    for one in found:
        assert one[name]["grads"]["unused.weight"] is None
        torch.testing.assert_close(one[name]["state"], wanted["state"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one[name]["grads"], wanted["grads"], rtol=1e-9, atol=1e-12, allow_subclasses=False)
    torch.testing.assert_close(found[0][name]["grads"], found[1][name]["grads"], rtol=0, atol=0)
    outputs = torch.cat([one[name]["outputs"] for one in found])
    torch.testing.assert_close(outputs, wanted["outputs"], rtol=1e-12, atol=1e-12)


def test_float32_far_from_zero_and_other_modes(found: list[dict[str, Any]]) -> None:
    wanted = nn.BatchNorm1d(3)(1000 + torch.arange(12.0).view(4, 3)).detach()
    torch.testing.assert_close(torch.cat([one["float32"] for one in found]), wanted, rtol=1e-4, atol=1e-4)
    assert [tuple(one["evaluated"].shape) for one in found] == [(1, 3), (2, 3)]
    assert all(one["half"] is torch.bfloat16 and not one["left behind"] for one in found)


def test_alone_nothing_is_touched() -> None:
    module = network()
    with synced_batch_norm(module):
        assert not any("forward" in vars(m) for m in module.modules())
    module(batch(3)[0]).sum().backward()
    before = {name: p.grad for name, p in module.named_parameters()}
    sum_gradients(module.parameters())
    assert all(p.grad is before[name] for name, p in module.named_parameters())
