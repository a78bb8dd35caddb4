"""The bytes of passes, fits and systems, against the tensors themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from prunetaylor.data.samples import Inputs
from prunetaylor.network.network import Network
from prunetaylor.pipeline.estimates.sizes import measure_sample, network_sizes
from prunetaylor.pruning.activation_cache import bytes_by_layer
from prunetaylor.taylor.curvature import fisher, gradients
from prunetaylor.taylor.curvature.gram import Positions, layer_moments
from prunetaylor.taylor.curvature.solve import BATCH_ELEMENTS
from prunetaylor.taylor.memory import ChunkDivisors, use_chunks
from prunetaylor.taylor.sizes import (
    LayerSize,
    SampleBytes,
    Sizes,
    backward,
    directional,
    fits,
    forward,
    graph,
    system_entries,
)
from support.samples import batches, rand
from support.taylor_models import risk

MIB = 2**20


def small() -> tuple[nn.Module, torch.Tensor]:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    return module.eval(), rand(9, 2, 4, 4)


def sizes_of(module: nn.Module, x: torch.Tensor) -> Sizes:
    network = Network.from_module(module)
    sizes = measure_sample(network_sizes(network, torch.device("cpu")), network, Inputs.of(x[:1]))
    return replace(sizes, samples=len(x), batch=4)


def test_one_sample_shows_the_layers_and_the_passes() -> None:
    module, x = small()
    module[0].weight.requires_grad_(False)
    sizes = sizes_of(module, x)
    assert sizes.layers == (
        LayerSize("0", 2, 2, 9, positions=16, inputs=32, outputs=64),
        LayerSize("4", 1, 3, 64, positions=1, inputs=64, outputs=3),
    )
    assert (sizes.weights, sizes.largest, sizes.outputs) == (36 + 192, 192, 3)
    # The input of the batch norm, the activation's output, which is the last layer's input, and the outputs.
    assert sizes.sample.backward == 4 * (64 + 64 + 3)
    assert sizes.sample.module == 4 * (64 + 64)
    assert sizes.sample.x == 4 * 32
    assert [p.requires_grad for p in module.parameters()] == [False, *[True] * 5]
    assert not any(m._forward_hooks for m in module.modules())


def test_a_layer_that_is_called_twice_has_the_positions_of_both_calls() -> None:
    layer = nn.Linear(3, 3)
    [size] = sizes_of(nn.Sequential(layer, nn.Tanh(), layer), rand(2, 3)).layers
    assert (size.positions, size.inputs, size.outputs) == (2, 6, 6)


def test_fits_take_what_their_tensors_take() -> None:
    module, x = small()
    network, error, planned = Network.from_module(module), risk(module, x), fits(sizes_of(module, x))
    moments = layer_moments(module, network.layers, batches(x), Positions(9, 0))
    assert planned["moments"][0] == sum(t.nbytes for m in moments.values() for t in (m.xx, m.tx, m.tt))
    rows = fisher.fisher_rows(error, network.layers, 0)
    assert planned["fisher_rows"][0] == sum(r.nbytes for r in rows.values()) == 4 * 9 * 228
    gradient = gradients.mean_gradient(error, network.layers)
    assert planned["gradient"][0] == planned["diagonal"][0] == sum(g.nbytes for g in gradient.values())
    sensitivity = gradients.output_sensitivity(error, network.layers, 0)
    assert planned["sensitivity"][0] == sum(s.nbytes for s in sensitivity.values())


def test_rows_that_do_not_fit_together_are_those_of_a_chunk_and_of_a_layer() -> None:
    sizes = sizes_of(*small())
    with use_chunks(ChunkDivisors(rows=1 << 30)):
        assert fits(sizes)["fisher_rows"][0] == 4 * 9 * (192 + 192)


def test_systems_of_rows_are_a_chunk() -> None:
    layer = LayerSize("x", 1, rows=10, columns=8)
    assert system_entries(layer) == 10 * 64
    with use_chunks(ChunkDivisors(systems=BATCH_ELEMENTS // 256)):
        assert system_entries(layer) == 4 * 64
    with use_chunks(ChunkDivisors(systems=1 << 30)):  # one at least
        assert system_entries(layer) == 64
    assert system_entries(LayerSize("wide", 1, rows=1, columns=4096)) == 1024**2  # in blocks of columns


def test_what_repair_keeps_of_a_chain() -> None:
    """While a layer is solved the one before it has just become final, beside all before that one."""
    a, b, c = (nn.Linear(2, 2) for _ in range(3))
    module = nn.Sequential(a, b, c)
    out = {module: 8, a: 8, b: 16, c: 32}
    assert bytes_by_layer(module, Network.from_module(module).layers, out) == [0, 8, 24]
    inner = nn.Sequential(a, b)
    nested = nn.Sequential(inner, c)
    # Once both are solved the block's output stands for theirs; the first one's is let go only after that pass.
    assert bytes_by_layer(nested, Network.from_module(nested).layers, {**out, inner: 16}) == [0, 8, 24]


def of_sample(**sample: int) -> Sizes:
    return Sizes((LayerSize("x", 1, 1, 1),), 4, 1, batch=10, sample=SampleBytes(**sample))


def test_large_tensors_leave_no_gaps() -> None:
    assert forward(of_sample(module=1000)) == int(1.75 * 30_000)
    assert forward(of_sample(module=7 * MIB)) == pytest.approx(1.1 * 210 * MIB)
    assert directional(of_sample(forward_mode=42 * MIB)) == pytest.approx(1.1 * 420 * MIB)


def test_memory_inside_modules_counts_if_larger_than_their_outputs() -> None:
    shown, inside = of_sample(module=1000), of_sample(module=1000, forward=30_000)
    assert forward(of_sample(module=1000, forward=3000, forward_mode=6000)) == forward(shown)
    assert forward(inside) == int(1.75 * 300_000)
    assert backward(inside) == forward(inside) + graph(inside)
    assert directional(inside) == 2 * forward(inside)


def test_attention_by_hand_is_kept_for_the_backward_pass() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.into(x)
            return self.head((x @ x.mT).softmax(2) @ x).mean(1)

    assert sizes_of(Mixing(), rand(2, 50, 4)).sample.backward >= 4 * 50 * 50
