"""Layer Grams: means of products, the same whatever the batches, at the same positions in every pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunetaylor.network.network import Network
from prunetaylor.taylor.curvature.gram import Positions, layer_moments
from support.samples import batches, rand
from support.taylor_models import EVERY


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(75, 3)
    )


def patches(x: Tensor, kernel: int, padding: int) -> Tensor:
    """(positions of all samples, channels x taps) in float64, from torch's own unfold."""
    return nn.functional.unfold(x.double(), kernel, padding=padding).transpose(1, 2).flatten(0, 1)


def test_moments_are_the_dense_sums() -> None:
    module, x = conv_net(), rand(5, 2, 6, 6)
    layers = Network.from_module(module).layers
    found = layer_moments(module, layers, batches(x, size=2), Positions(5, 0, EVERY))
    with torch.no_grad():
        after = module[:2](x)
        rows = {"0": patches(x, 3, 1), "2": patches(after, 2, 0), "4": module[:4](x).double()}
        outs = {
            "0": module[0](x).flatten(2).mT.flatten(0, 1),
            "2": module[2](after).flatten(2).mT.flatten(0, 1),
            "4": module(x),
        }
    for name, groups in (("0", 2), ("2", 1), ("4", 1)):
        inputs = rows[name].reshape(len(rows[name]), groups, -1)
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], 2)
        targets = outs[name].double().reshape(len(inputs), groups, -1)
        moments = found[name]
        assert moments.rows == len(inputs)
        close = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(moments.xx, torch.einsum("pgi,pgj->gij", inputs, inputs) / len(inputs), **close)
        torch.testing.assert_close(moments.tx, torch.einsum("pgr,pgj->grj", targets, inputs) / len(inputs), **close)
        torch.testing.assert_close(moments.tt, targets.square().mean(0), **close)
        torch.testing.assert_close(moments.variance, targets.var(0, correction=0), **close)
        h, cross = moments.centred()
        free = inputs[..., :-1] - inputs[..., :-1].mean(0)
        torch.testing.assert_close(h, torch.einsum("pgi,pgj->gij", free, free) / len(inputs), **close)
        torch.testing.assert_close(cross, torch.einsum("pgr,pgj->grj", targets, free) / len(inputs), **close)
        second, product = moments.plain()
        torch.testing.assert_close(second, moments.xx[:, :-1, :-1])
        torch.testing.assert_close(product, moments.tx[..., :-1])


@pytest.mark.parametrize("mean", [1.0, 3e3])
def test_covariances_survive_means_far_from_zero(mean: float) -> None:
    module, x = nn.Linear(4, 2), rand(500, 4) + mean
    x[:, 2] = mean / 3  # a constant: a ridge relative to what rounding leaves of it could be negative
    h, cross = layer_moments(module, Network.from_module(module).layers, batches(x, size=64), Positions(500, 0))[
        ""
    ].centred()
    free = (x - x.double().mean(0)).double()
    torch.testing.assert_close(h[0], free.mT @ free / len(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cross[0], module.weight.detach().double() @ h[0], rtol=2e-3, atol=2e-3)
    assert not h[0, 2].any()
    assert not cross[0, :, 2].any()


@pytest.mark.parametrize("size", [1, 3, 7])
def test_moments_do_not_depend_on_the_batch_size(size: int) -> None:
    module, x = conv_net(), rand(7, 2, 6, 6)
    layers = Network.from_module(module).layers
    where = Positions(7, 0, 5)
    wanted = layer_moments(module, layers, batches(x, size=100), where)
    found = layer_moments(module, layers, batches(x, size=size), where)
    assert list(found) == list(wanted) == ["0", "2", "4"]
    for name in wanted:
        assert found[name].rows == wanted[name].rows == (35 if name != "4" else 7)
        torch.testing.assert_close(found[name].xx, wanted[name].xx, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[name].tx, wanted[name].tx, rtol=1e-5, atol=1e-5)


def test_sampled_moments_converge_to_all_of_them() -> None:
    """A position's chance is the same everywhere: edges, which zero padding makes different, included."""
    module, x = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)), rand(2000, 1, 7, 7) + 1
    layers = Network.from_module(module).layers
    all_of_them = layer_moments(module, layers, batches(x, size=500), Positions(2000, 0, EVERY))["0"]
    sampled = layer_moments(module, layers, batches(x, size=500), Positions(2000, 0, 32))["0"]
    assert sampled.rows == 2000 * 32
    torch.testing.assert_close(sampled.xx, all_of_them.xx, rtol=0, atol=0.02)


def test_a_layer_called_twice_counts_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.a(x).tanh())

    module, x = Twice(), rand(4, 3)
    found = layer_moments(module, Network.from_module(module).layers, batches(x), Positions(4, 0))["a"]
    with torch.no_grad():
        inputs = torch.cat([x, module.a(x).tanh()]).double()
    assert found.rows == 8
    torch.testing.assert_close(found.plain()[0][0], inputs.T @ inputs / 8, rtol=1e-5, atol=1e-5)


def test_layers_that_nothing_reaches_have_no_entry() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[1].unused = nn.Linear(2, 2)
    layers = Network.from_module(module).layers
    assert [layer.name for layer in layers] == ["0", "1.unused", "2"]
    assert list(layer_moments(module, layers, batches(rand(2, 3)), Positions(2, 0))) == ["0", "2"]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_positions_are_distinct_in_range_and_as_many_as_asked(
    samples: int, per_entry: int, each: int, wanted: int, seed: int
) -> None:
    where = Positions(samples, seed, wanted)
    entries, at = where.pick(0, samples, samples * per_entry, each, torch.device("cpu"))
    taken = min(wanted, per_entry * each)
    assert len(entries) == len(at) == samples * taken
    assert int(at.min()) >= 0
    assert int(at.max()) < each
    # A sample's rows come together, and windows or frames of a sample are its own entries.
    assert torch.equal(entries // per_entry, torch.arange(samples).repeat_interleave(taken))
    assert len(set(zip(entries.tolist(), at.tolist(), strict=True))) == samples * taken


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 3), st.integers(1, 100))
def test_positions_are_the_same_however_samples_are_batched(samples: int, size: int, per_entry: int, each: int) -> None:
    where = Positions(samples, 0, 6)
    cpu = torch.device("cpu")
    wanted = torch.stack(where.pick(0, samples, samples * per_entry, each, cpu))
    found = []
    for start in range(0, samples, size):
        count = min(size, samples - start)
        entries, at = where.pick(start, count, count * per_entry, each, cpu)
        found.append(torch.stack([entries + start * per_entry, at]))
    assert torch.equal(torch.cat(found, 1), wanted)


def test_every_position_has_the_same_chance() -> None:
    where = Positions(20_000, 0, 5)
    _, at = where.pick(0, 20_000, 20_000, 7, torch.device("cpu"))
    share = torch.bincount(at, minlength=7) / 20_000
    torch.testing.assert_close(share, torch.full((7,), 5 / 7), rtol=0, atol=0.015)


def test_the_seed_decides_the_positions() -> None:
    picks = [Positions(3, seed, 4).pick(0, 3, 3, 50, torch.device("cpu"))[1].tolist() for seed in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]


def test_rows_that_belong_to_no_sample_are_all_taken() -> None:
    entries, at = Positions(4, 0, 2).pick(0, 4, 3, 5, torch.device("cpu"))
    assert sorted(zip(entries.tolist(), at.tolist(), strict=True)) == [(e, a) for e in range(3) for a in range(5)]
