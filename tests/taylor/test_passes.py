"""The one loop over data: means over samples whatever the batches, state put back, randomness caught."""

import pytest
import torch
from torch import nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.taylor.output_check import check_deterministic, check_outputs, finite_samples
from prunetaylor.taylor.passes import Watch, all_outputs, forward_own
from support.samples import batches, rand
from support.taylor_models import risk


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_the_mean_is_over_samples(size: int) -> None:
    module, x, y = network().eval(), rand(7, 4), torch.arange(7) % 3
    found = risk(module, x, y, kind="task", size=size).value()
    with torch.no_grad():
        wanted = float(nn.functional.cross_entropy(module(x), y))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_outputs_are_in_order_and_in_evaluation_mode() -> None:
    module, x = network().train(), rand(7, 4)
    module[1].eval()
    outputs, targets = all_outputs(module, batches(x, torch.arange(7), 3))
    assert torch.equal(targets, torch.arange(7))
    assert [m.training for m in (module, module[0], module[1], module[2])] == [True, True, False, True]
    torch.testing.assert_close(outputs, module.eval()(x))
    assert not outputs.requires_grad


def test_watchers_see_inputs_and_outputs_and_a_pass_may_stop_early() -> None:
    module, x, seen = network(), rand(7, 4), []
    layers = Network.from_module(module).layers
    watch = Watch(layers, lambda start, n, c: seen.append((start, n, tuple(c.x.shape), tuple(c.y.shape))))
    forward_all = list(forward_own(module, batches(x, size=3), watch=watch, until=layers[0]))
    assert seen == [(0, 3, (3, 4), (3, 5)), (3, 3, (3, 4), (3, 5)), (6, 1, (1, 4), (1, 5))]
    assert [p.outputs for p in forward_all] == [None] * 3
    assert [p.start for p in forward_all] == [0, 3, 6]
    assert not any(m._forward_hooks for m in module.modules())


def test_a_layer_called_by_keyword_is_watched() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(input=x)

    module, x, seen = Keyword(), rand(2, 4), []
    list(forward_own(module, batches(x), watch=Watch(modules={module.layer: lambda _, __, i, o: seen.append(i)})))
    torch.testing.assert_close(seen, [x])


def test_hooks_and_modes_are_put_back_when_the_network_fails() -> None:
    module = network().train()
    with pytest.raises(RuntimeError):
        list(
            forward_own(module, batches(rand(3, 5)), watch=Watch(modules={module[0]: lambda *_: None}), until=module[3])
        )
    assert not any(m._forward_hooks for m in module.modules())
    assert module.training


def test_gradients_leave_no_trace() -> None:
    module, x = network(), rand(5, 4)
    module[0].weight.requires_grad_(False)
    at = risk(module, x)
    for _, _, outputs, reference in at.backward_batches([module[0].weight, module[3].weight]):
        assert module[0].weight.requires_grad
        torch.autograd.grad((outputs - reference.values).sum(), [module[0].weight])
    assert not module[0].weight.requires_grad
    assert module[3].weight.requires_grad
    assert all(p.grad is None for p in module.parameters())
    assert module.training


def test_an_error_that_is_not_finite_is_refused() -> None:
    module = nn.Linear(4, 3)
    at = risk(module, rand(5, 4))
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="error on 5 samples is nan"):
        at.value()


def test_randomness_in_evaluation_mode_is_caught() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, 0.1)

    samples = batches(rand(8, 4))
    check_deterministic(network(), samples)
    with pytest.raises(NumericsError, match="outputs"):
        check_deterministic(Noisy(), samples)


def test_outputs_that_are_not_finite_are_caught() -> None:
    with pytest.raises(NumericsError, match="outputs are not finite"):
        check_deterministic(nn.Linear(4, 3), batches(torch.full((2, 4), float("inf"))))


class Inverse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / x.round()


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Sequential(Inverse(), nn.Linear(4, 3))), r"the first are those of 1\.0\n"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Identity(), Inverse())),
            r"the first are those of 2\.1\n",
        ),
    ],
)
def test_the_first_module_whose_outputs_are_not_finite_is_named(module: nn.Module, where: str) -> None:
    with torch.no_grad():
        module[0].weight.copy_(10 * module[0].weight)
        module[0].bias.zero_()
    x = 5 + rand(9, 4)
    x[6] = 0  # in the second batch
    outputs, _ = all_outputs(module, batches(x, size=4))
    bad = int((~torch.isfinite(outputs)).any(1).sum())
    assert bad > 0
    with pytest.raises(NumericsError, match=rf"for {bad} of 9 samples; {where}"):
        check_outputs(module, batches(x, size=4), finite_samples(outputs))
    assert not any(m._forward_hooks for m in module.modules())


def test_a_sample_that_is_not_finite_is_the_reason() -> None:
    x = rand(9, 4)
    x[6, 1] = float("nan")
    module = nn.Linear(4, 3)
    outputs, _ = all_outputs(module, batches(x, size=4))
    with pytest.raises(NumericsError, match="1 of 9 samples"):
        check_outputs(module, batches(x, size=4), finite_samples(outputs))
    check_outputs(module, batches(x, size=4), finite_samples(outputs[:6]))
