"""What is said of memory beforehand: amounts, formulas, what is free, chunks that fit, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from prunetaylor.core import registry
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.config.sizes import parse_size, show_size
from prunetaylor.core.errors import UsageError
from prunetaylor.network.network import Network
from prunetaylor.pipeline.sampling.calibration import chunk
from prunetaylor.pruning import activation_cache
from prunetaylor.pruning.activation_cache import settled_bytes
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.pruning.repairs import least_squares
from prunetaylor.runtime import free_memory
from prunetaylor.taylor import memory
from prunetaylor.taylor.curvature import block_fisher, fisher, gradients, gram, solve
from prunetaylor.taylor.curvature.gram import Positions, layer_moments
from prunetaylor.taylor.memory import Activations, ChunkDivisors, LayerSize, Phase, Sizes, current_chunks, use_chunks
from support.samples import batches, rand
from support.taylor_models import risk

CPU = torch.device("cpu")
MIB = 2**20


# Amounts


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("3GiB", 3 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 gib", 3 * 2**29),
        ("2kB", 2000),
        ("2KiB", 2048),
        ("1TB", 10**12),
        ("12345", 12345),
        (" 7 B ", 7),
    ],
)
def test_amounts_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert from_values({"memory": text}).config.memory == size


@pytest.mark.parametrize("text", ["3G", "much", "", "-1GiB", "GiB", "0", "0.1 B", "1e3GiB", "3 GiB 2"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        parse_size(text)
    with pytest.raises(UsageError, match="memory"):
        from_values({"memory": text})


def test_a_number_is_an_amount_too() -> None:
    assert from_values({"memory": 10**9}).config.memory == 10**9
    assert from_values({}).config.memory is None
    with pytest.raises(UsageError, match="greater than 0"):
        from_values({"memory": 0})


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1.0 KiB"), (2**20, "1.0 MiB"), (340 * MIB, "340 MiB"), (22 * 2**30, "22 GiB")],
)
def test_amounts_as_they_are_printed(size: int, text: str) -> None:
    assert show_size(size) == text


# What is free


def write(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)


def test_control_groups_of_version_2(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    write(tmp_path / "fs", memory__max="max\n", memory__current="5\n")
    write(tmp_path / "fs/a", memory__max="1000\n", memory__current="400\n", memory__stat="anon 1\ninactive_file 150\n")
    write(tmp_path / "fs/a/b", memory__max="900\n", memory__current="100\n")
    assert sorted(free_memory.group_bytes(own, tmp_path / "fs")) == [750, 800]


def test_control_groups_of_version_1_where_the_path_is_the_host_s(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("9:name=systemd:/\n4:memory,hugetlb:/docker/abc\n0::/\n")
    write(
        tmp_path / "fs/memory",
        memory__limit_in_bytes="1000\n",
        memory__usage_in_bytes="1200\n",
        memory__stat="total_inactive_file 300\n",
    )
    assert free_memory.group_bytes(own, tmp_path / "fs") == [100]


def test_no_control_groups(tmp_path: Path) -> None:
    assert free_memory.group_bytes(tmp_path / "none", tmp_path) == []
    (tmp_path / "odd").write_text("what\n0::/x\n")
    assert free_memory.group_bytes(tmp_path / "odd", tmp_path) == []


def test_the_least_that_anybody_leaves_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "available_bytes", lambda: 700)
    monkeypatch.setattr(free_memory, "group_bytes", lambda: [900, 500])
    assert free_memory.free_bytes(CPU) == 500
    monkeypatch.setattr(free_memory, "group_bytes", list)
    assert free_memory.free_bytes(CPU) == 700
    monkeypatch.setattr(free_memory, "available_bytes", lambda: None)
    assert free_memory.free_bytes(CPU) is None


def test_without_proc_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 10 kB\nMemAvailable:    7 kB\n")
    assert free_memory.available_bytes(path) == 7 * 1024
    monkeypatch.setattr(free_memory.os, "sysconf", {"SC_AVPHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_memory.available_bytes(tmp_path / "none") == 3 * 4096

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(free_memory.os, "sysconf", unknown)
    assert free_memory.available_bytes(tmp_path / "none") is None


# Formulas, against the tensors themselves


def sizes_of(module: nn.Module, x: torch.Tensor, samples: int, batch: int = 4) -> Sizes:
    network = Network.from_module(module)
    found = memory.measure(network, x[:1], lambda out: settled_bytes(module, network.layers, out))
    return Sizes(
        found.layers,
        memory.state_bytes(module),
        sum(p.numel() for p in module.parameters()),
        samples,
        2,
        batch,
        found.outputs,
        found.activations,
    )


def small() -> tuple[nn.Module, torch.Tensor]:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    return module.eval(), rand(9, 2, 4, 4)


def test_what_one_sample_makes_of_the_layers() -> None:
    module, x = small()
    module[0].weight.requires_grad_(False)
    found = sizes_of(module, x, 9)
    assert found.layers == (
        LayerSize("0", 2, 2, 9, positions=16, inputs=32, outputs=64),
        LayerSize("4", 1, 3, 64, positions=1, inputs=64, outputs=3),
    )
    assert (found.weights, found.largest, found.outputs) == (36 + 192, 192, 3)
    # The inputs of the convolution and of the batch norm, and the activation's output, which is the last layer's input.
    assert found.activations.kept == 4 * (32 + 64 + 64)
    assert found.activations.live == 4 * (64 + 64)
    assert found.activations.sample == 4 * 32
    assert [p.requires_grad for p in module.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_hooks for m in module.modules())


def test_a_layer_that_is_called_twice_has_the_positions_of_both_calls() -> None:
    layer = nn.Linear(3, 3)
    [found] = sizes_of(nn.Sequential(layer, nn.Tanh(), layer), rand(2, 3), 2).layers
    assert (found.positions, found.inputs, found.outputs, found.calls) == (2, 6, 6, 2)


def test_bytes_of_the_layer_grams() -> None:
    module, x = small()
    network = Network.from_module(module)
    moments = layer_moments(module, network.layers, batches(x), Positions(9, 0))
    real = sum(t.nbytes for m in moments.values() for t in (m.xx, m.tx, m.tt))
    sizes = sizes_of(module, x, 9)
    assert gram.grams_bytes(sizes)[0] == real == 8 * (2 * (100 + 20 + 2) + 65 * 65 + 3 * 65 + 3)
    assert gram.grams_bytes(sizes)[1] > memory.forward(sizes)
    h = moments["4"].centred()[0]
    assert gram.centred_bytes(sizes.layers[1], 8) == 3 * h.nbytes


def test_bytes_of_gradients_and_rows() -> None:
    module, x = small()
    network, sizes = Network.from_module(module), sizes_of(module, x, 9)
    error = risk(module, x)
    rows = fisher.fisher_rows(error, network.layers, 0)
    assert fisher.rows_bytes(sizes)[0] == sum(r.nbytes for r in rows.values()) == 4 * 9 * 228
    # Layers that do not fit together: the larger one, and what the one before may still hold.
    assert fisher.rows_bytes(sizes, 9 * 200)[0] == 4 * 9 * (192 + 192)
    held = sum(g.nbytes for g in gradients.mean_gradient(error, network.layers).values())
    assert gradients.gradient_bytes(sizes)[0] == gradients.diagonal_bytes(sizes)[0] == held
    sensitivity = gradients.output_sensitivity(error, network.layers, 0)
    assert gradients.sensitivity_bytes(sizes)[0] == sum(s.nbytes for s in sensitivity.values())


def test_bytes_of_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LayerSize("x", 1, rows=10, columns=8)
    vectors = 3 * 8 * 80
    assert solve.systems_bytes(layer, 8, copies=2) == 8 * 64 * (2 * 10 + 2) + vectors
    monkeypatch.setattr(solve, "_BATCH_ELEMENTS", 4 * 64)
    assert solve.systems_bytes(layer, 8, copies=2) == 8 * 64 * (2 * 4 + 2) + vectors
    with use_chunks(ChunkDivisors(systems=2)):
        assert solve.systems_bytes(layer, 8, copies=2) == 8 * 64 * (2 * 2 + 2) + vectors
    with use_chunks(ChunkDivisors(systems=100)):  # one at least
        assert solve.systems_bytes(layer, 8, copies=2) == 8 * 64 * (2 * 1 + 2) + vectors
    monkeypatch.setattr(solve, "BLOCK", 4)  # two blocks of columns
    assert solve.systems_bytes(layer, 8, copies=2) == 8 * 16 * (2 * 10 + 2) + vectors


def test_what_repair_keeps_of_a_chain() -> None:
    """While a layer is solved the one before it has just become final, beside all before that one."""
    a, b, c = (nn.Linear(2, 2) for _ in range(3))
    module = nn.Sequential(a, b, c)
    out = {module: 8, a: 8, b: 16, c: 32}
    assert settled_bytes(module, Network.from_module(module).layers, out) == [0, 8, 24]
    inner = nn.Sequential(a, b)
    nested = nn.Sequential(inner, c)
    # Once both are solved the block's output stands for theirs; the first one's is let go only after that pass.
    assert settled_bytes(nested, Network.from_module(nested).layers, {**out, inner: 16}) == [0, 8, 24]


def test_what_repair_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes((LayerSize("x", 1, 2, 3),), 24, 6, samples=10, activations=Activations(repair_outputs=(0, 100)))
    assert activation_cache.kept_bytes(sizes) == 1000
    monkeypatch.setattr(activation_cache, "KEPT_BYTES", 600)
    assert activation_cache.kept_bytes(sizes) == 600
    with use_chunks(ChunkDivisors(kept=2)):
        assert activation_cache.kept_bytes(sizes) == 300
    kept = least_squares.LeastSquares().memory(sizes)[0].parts["kept outputs"]
    assert kept == 4 * 10 * 2 + 600
    monkeypatch.setattr(least_squares, "_CACHE_BYTES", 79)  # the dense outputs are computed anew
    assert least_squares.LeastSquares().memory(sizes)[0].parts["kept outputs"] == 600


# Chunks


def test_chunks_hold_inside_and_come_back() -> None:
    assert current_chunks() == ChunkDivisors()
    with use_chunks(ChunkDivisors(batch=2)):
        with use_chunks(ChunkDivisors(batch=4)):
            assert current_chunks().batch == 4
        assert current_chunks().batch == 2
    assert current_chunks() == ChunkDivisors()


def test_code_that_works_in_chunks_asks_for_them() -> None:
    assert chunk(3072, 64) == 85
    error = risk(*small())
    layers, ones = Network.from_module(error.module).layers, torch.ones(12, 4, dtype=torch.bool)
    rows = fisher.FisherRows(error, layers, 0, elements=9 * 228)
    assert len(rows.passes()) == 1
    assert len(list(solve.row_batches(ones))) == 1
    with use_chunks(ChunkDivisors(batch=16, rows=2, systems=solve._BATCH_ELEMENTS // 32)):
        assert chunk(3072, 64) == 5
        assert chunk(10**9, 64) == 1
        assert len(rows.passes()) == 2
        assert len(list(solve.row_batches(ones))) == 6


def test_blocks_under_chunks() -> None:
    usual = block_fisher.blocks_bytes(10**6, 100, 256, 8)
    with use_chunks(ChunkDivisors(systems=16)):
        assert block_fisher.blocks_bytes(10**6, 100, 256, 8) < usual


# Every criterion


@pytest.mark.parametrize("criterion", registry.names(registry.CRITERIA))
def test_every_criterion_states_its_memory(criterion: str) -> None:
    module = load_criterion(criterion)

    def total(scale: int) -> int:
        layers = (LayerSize("a", 1, 4 * scale, 9, 16, 100, 64), LayerSize("b", 2, 8, 16 * scale, 1, 32, 8))
        weights = sum(layer.weights for layer in layers)
        activations = Activations(400, 4000, 800, (0, 256))
        phases = module.memory(Sizes(layers, 4 * weights, weights, 50, 10, 8, 5, activations))
        assert phases
        for phase in phases:
            assert isinstance(phase, Phase)
            assert phase.name
            assert phase.parts
            assert all(isinstance(size, int) and size >= 0 for size in phase.parts.values())
            assert phase.layer in (None, "a", "b")
        return max(phase.total for phase in phases)

    assert 0 < total(1) < total(8), "more weights take more"
    with use_chunks(ChunkDivisors(*[1 << 12] * 5)):
        smaller = total(8)
    assert smaller <= total(8), "smaller chunks take no more"


def test_large_tensors_leave_no_gaps() -> None:
    sizes = Sizes((LayerSize("x", 1, 1, 1),), 4, 1, batch=10, activations=Activations(0, 0, 1000))
    assert memory.forward(sizes) == int(memory.SLACK * 30_000)
    large = Sizes(sizes.layers, 4, 1, batch=10, activations=Activations(0, 0, 7 * MIB))
    assert memory.forward(large) == pytest.approx(1.1 * 210 * MIB)


def test_memory_inside_modules_counts_if_larger_than_their_outputs() -> None:
    def planned(**more: int) -> tuple[int, int, int]:
        activations = Activations(0, 100, 1000, **more)
        sizes = Sizes((LayerSize("x", 1, 1, 1),), 4, 1, batch=10, activations=activations)
        return memory.forward(sizes), memory.backward(sizes) - memory.graph(sizes), memory.directional(sizes)

    shown = planned()
    assert planned(passing=3000, moving=6000) == shown
    forward, backward, directional = planned(passing=30_000, moving=6000)
    assert forward == backward == int(memory.SLACK * 300_000)
    assert directional == 2 * forward
    assert planned(moving=120_000) == (*shown[:2], int(memory.SLACK * 1_200_000))
    large = planned(moving=42 * MIB)  # large tensors in forward mode alone
    assert large[:2] == shown[:2]
    assert large[2] == pytest.approx(1.1 * 420 * MIB)


def test_attention_by_hand_is_kept_for_the_backward_pass() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.into(x)
            return self.head((x @ x.mT).softmax(2) @ x).mean(1)

    assert sizes_of(Mixing(), rand(2, 50, 4), 2).activations.kept >= 4 * 50 * 50
