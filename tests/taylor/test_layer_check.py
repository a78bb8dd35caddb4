"""What a network does with its layers: those that are not what everything fitted takes them for are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, linear

from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data.samples import Batches
from prunetaylor.network.network import Network
from prunetaylor.pipeline.sampling import sampler
from prunetaylor.taylor.layer_check import (
    NO_GRADIENT,
    SAMPLES_MIXED,
    UNREACHED,
    USED_ELSEWHERE,
    check_layers,
    unreached,
)
from support.networks import Unreached, mlp, trained
from support.runs import quick
from support.samples import batches, quadrants, rand


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        return conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True), self.bias)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * super().forward(x)


class Both(nn.Linear):
    """Returns more than its output."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0]


class Autoencoder(nn.Module):
    """Decodes with the encoder's weight, not through its module."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(linear(self.encode(x).tanh(), self.encode.weight.T))


class Heads(nn.Module):
    """Two outputs, and a part that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(36, 12), nn.Linear(12, 4), nn.Linear(12, 4)
        self.cut = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x.flatten(1)).tanh()
        return self.head(h) + self.cut(h).detach(), self.aux(h)


class Routed(nn.Module):
    """Bright images, by their mean, go through another layer than the rest."""

    def __init__(self, bright: float) -> None:
        super().__init__()
        self.bright, self.a, self.b = bright, nn.Linear(36, 4), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        here, flat = x.mean((1, 2, 3)) > self.bright, x.flatten(1)
        out = flat.new_zeros(len(x), 4)
        for chosen, layer in ((here, self.a), (~here, self.b)):
            if chosen.any():
                out[chosen] = layer(flat[chosen])
        return out


LEFT = {
    "standardised": (lambda: nn.Sequential(Standardised(1, 3, 3), nn.Flatten(), nn.Linear(48, 3)), "0", UNREACHED),
    "unused": (lambda: Unreached(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))), "unreached", UNREACHED),
    "tied by hand": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 6), Autoencoder()), "2.encode", USED_ELSEWHERE),
}


def test_a_class_that_does_more_than_the_product_is_a_layer() -> None:
    module = nn.Sequential(nn.Flatten(), Scaled(36, 5), Both(5, 4), First(), nn.Linear(4, 3))
    report = check_layers(Network.from_module(module), batches(rand(8, 1, 6, 6)), fitted=True)
    assert report.order == ["1", "2", "4"]
    assert not report.why


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_as_taken_is_left_alone_with_the_reason(name: str) -> None:
    make, layer, reason = LEFT[name]
    network = Network.from_module(make())
    found = check_layers(network, batches(rand(8, 1, 6, 6)), fitted=True)
    assert found.why == {layer: reason}
    assert found.order == [one.name for one in network.layers if one.name != layer]
    plain = check_layers(network, batches(rand(8, 1, 6, 6)), fitted=False)
    assert plain.why == ({layer: reason} if reason == UNREACHED else {})


@pytest.mark.parametrize("method", ["exact_obs", "obd", "joint"])
def test_a_run_reports_them_and_leaves_their_weights(method: str) -> None:
    data = quadrants(120, 0)
    module = nn.Sequential(Standardised(1, 4, 3), nn.Tanh(), nn.Flatten(), Scaled(64, 8), nn.Tanh(), nn.Linear(8, 4))
    outcome = quick(trained(module, data, cross_entropy, 30), prune__method=method, sparsity=0.5)
    assert {one.name for one in outcome.skipped} == {"0"}
    assert [one.name for one in outcome.layers] == ["3", "5"]
    assert torch.equal(outcome.module.state_dict()["0.weight"], module.state_dict()["0.weight"])


def test_other_outputs_are_said_and_what_feeds_them_alone_is_left() -> None:
    data = quadrants(120, 0)
    module = trained(Heads(), data, lambda z, y: cross_entropy(z[0], y) + cross_entropy(z[1], y), 30)
    outcome = quick(module, sparsity=0.5)
    assert {one.name: one.why for one in outcome.skipped} == {"aux": NO_GRADIENT, "cut": NO_GRADIENT}
    assert any(
        choice.startswith("the network returns 2 tensors; the error is computed from the first")
        for choice in outcome.choices
    )
    assert quick(module, sparsity=0.5, prune__method="magnitude").skipped == []


def test_layers_are_looked_for_until_a_sample_reaches_them() -> None:
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 6, 6)
    network = Network.from_module(Routed(4.5))
    found = check_layers(network, batches(x, size=1), fitted=True)
    assert (found.order, found.why) == (["b", "a"], {})
    assert unreached(network, batches(x[:5], size=1)) == ["a"]


def test_fresh_draws_reach_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = quadrants(240, 1)
    bright = float(x.mean((1, 2, 3)).sort().values[-8])  # so that a draw of few may have none of those
    again = {"calibration__resample": True, "calibration__samples": 50, "prune__stages": 6, "prune__refine": "none"}
    module = trained(Routed(bright), (x, y), cross_entropy, 30)
    drawn: list[bool] = []

    def looked(network: Network, found: Batches) -> list[str]:
        missing = unreached(network, found)
        drawn.append(not missing)
        return missing

    monkeypatch.setattr(sampler, "unreached", looked)
    outcome = quick(module, (x, y), sparsity=0.5, prune__method="obs", **again)
    assert (len(outcome.stages), outcome.skipped) == (6, [])
    assert drawn.count(True) == 5
    assert False in drawn  # a draw was done again
    monkeypatch.setattr(sampler, "unreached", lambda network, found: ["a"])
    with pytest.raises(DataError, match="a is used by no sample of 10 draws"):
        quick(module, (x, y), sparsity=0.5, prune__method="obs", **again)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x.squeeze(1).transpose(0, 1)).tanh().mean(0))


def test_that_samples_pass_one_at_a_time_is_said() -> None:
    found = check_layers(Network.from_module(TimeFirst()), batches(rand(8, 1, 6, 6)), fitted=True)
    assert (found.order, found.why, found.notes) == (["a", "head"], {}, [SAMPLES_MIXED])
    assert check_layers(Network.from_module(TimeFirst()), batches(rand(8, 1, 6, 6)), fitted=False).notes == []


def test_an_mlp_is_as_taken() -> None:
    network = Network.from_module(mlp())
    found = check_layers(network, batches(rand(8, 6)), fitted=True)
    assert (found.order, found.why, found.notes) == ([one.name for one in network.layers], {}, [])


class Apart(nn.Module):
    """Returns outputs that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result.detach()


@pytest.mark.parametrize("method", ["magnitude", "obs"])
def test_every_criterion_refuses_a_network_without_gradient(method: str) -> None:
    with pytest.raises(UsageError, match=r"inner\.1 "):
        quick(Apart(), sparsity=0.5, prune__method=method)
