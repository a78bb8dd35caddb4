"""Batch-norm statistics are corrected by what pruning changed, and by nothing else."""

import copy

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.network.state import snapshot
from prunetaylor.pruning.repairs.batch_norm import correct, norms
from support.samples import batches, rand


def network() -> nn.Module:
    """Stored statistics that are not those of the samples, as augmentation leaves them."""
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    for i in (1, 4):
        module[i].running_mean.copy_(0.3 * rand(4, seed=i))
        module[i].running_var.copy_(0.5 + rand(4, seed=i + 1).abs())
    return module.eval()


def run(module: nn.Module, dense: nn.Module, x: Tensor, size: int = 4) -> list[str]:
    return list(correct(module, dense, snapshot(dense), batches(x, size=size)))


def statistics(part: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        out = part(x).double()
    dims = [0, *range(2, out.dim())]
    return out.mean(dims), out.var(dims, correction=0)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_nothing_changed_corrects_nothing(size: int) -> None:
    dense, x = network(), rand(10, 2, 5, 5)
    module = copy.deepcopy(dense)
    assert run(module, dense, x, size) == ["1", "4"]
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, dense.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_formula_one_norm_after_another(size: int) -> None:
    dense, x = network(), rand(10, 2, 5, 5)
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module[0].weight[rand(4, 2, 3, 3, seed=8) > 0] = 0
        module[3].weight[rand(4, 4, 2, 2, seed=9) > 0] = 0
    run(module, dense, x, size)
    for i in (1, 4):
        (mean, var), (now_mean, now_var) = statistics(dense[:i], x), statistics(module[:i], x)
        stored_mean, stored_var = dense[i].running_mean.double(), dense[i].running_var.double()
        floor = 0.01 * stored_var + dense[i].eps
        wanted_mean = stored_mean + now_mean - mean
        wanted_var = stored_var * (now_var + floor) / (var + floor)
        torch.testing.assert_close(module[i].running_mean.double(), wanted_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module[i].running_var.double(), wanted_var, rtol=1e-4, atol=1e-5)


def test_corrected_twice_is_corrected_once() -> None:
    """The dense statistics are the start, not what an earlier stage made of them."""
    dense, x = network(), rand(10, 2, 5, 5)
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module[0].weight *= 0.5
    run(module, dense, x)
    once = snapshot(module)
    run(module, dense, x)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, once[name], rtol=1e-5, atol=1e-6)


def test_a_rescaled_layer_is_made_up_for() -> None:
    dense, x = network(), rand(40, 2, 5, 5)
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module[0].weight *= 0.5
        before = (module(x) - dense(x)).square().mean()
        run(module, dense, x)
        after = (module(x) - dense(x)).square().mean()
    assert float(after) < 0.2 * float(before)


def test_dead_channels_do_not_blow_up() -> None:
    """Dense: a channel that is constant on the samples. Pruned: it moves a little, and another one dies."""
    dense, x = network(), rand(10, 2, 5, 5)
    with torch.no_grad():
        dense[0].weight[0] = 0
        module = copy.deepcopy(dense)
        module[0].weight[0] = 1e-3
        module[0].weight[1] = 0
    run(module, dense, x)
    for i in (1, 4):
        assert bool(torch.isfinite(module[i].running_mean).all())
        ratio = module[i].running_var / dense[i].running_var
        assert float(ratio.min()) > 1e-3
        assert float(ratio[0] if i == 1 else ratio.min()) < 2
    with torch.no_grad():
        assert float(module(x).abs().max()) < 10 * float(dense(x).abs().max())


def test_a_norm_that_is_called_twice_is_measured_over_both_calls() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.b(self.norm(self.a(x)).relu()))

    dense, x = Shared().eval(), rand(6, 2, 4, 4)
    module = copy.deepcopy(dense)
    assert run(module, dense, x) == ["norm"]
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, dense.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_modes_other_tensors_and_norms_without_statistics_do_not_change() -> None:
    dense, x = network(), rand(10, 2, 5, 5)
    dense.add_module("7", nn.BatchNorm1d(3, track_running_stats=False))
    module = copy.deepcopy(dense).train()
    assert list(norms(module)) == ["1", "4"]
    with torch.no_grad():
        module[0].weight *= 0.5
    before = snapshot(module)
    assert run(module, dense, x) == ["1", "4"]
    assert all(m.training for m in module.modules())
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"1.running_mean", "1.running_var", "4.running_mean", "4.running_var"}
