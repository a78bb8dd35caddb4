"""Amounts of memory, what is free, and the chunks that a run works in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.config.sizes import parse_size, show_size
from prunetaylor.core.errors import UsageError
from prunetaylor.network.network import Network
from prunetaylor.pipeline.sampling.calibration import chunk
from prunetaylor.runtime import free_memory
from prunetaylor.taylor.curvature import fisher, solve
from prunetaylor.taylor.memory import ChunkDivisors, chunk_size, current_chunks, record_chunks, use_chunks
from support.samples import rand
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
    error = risk(nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.Linear(4, 25)), rand(9, 2, 4, 4))
    layers, ones = Network.from_module(error.module).layers, torch.ones(12, 4, dtype=torch.bool)
    rows = fisher.FisherRows(error, layers, 0, elements=9 * 228)
    assert len(rows.passes()) == 1
    assert len(list(solve.row_batches(ones))) == 1
    with use_chunks(ChunkDivisors(batch=16, rows=2, systems=solve.BATCH_ELEMENTS // 32)):
        assert chunk(3072, 64) == 5
        assert chunk(10**9, 64) == 1
        assert len(rows.passes()) == 2
        assert len(list(solve.row_batches(ones))) == 6


def test_the_largest_usual_size_of_each_chunk_is_recorded() -> None:
    with record_chunks() as recorded, use_chunks(ChunkDivisors(rows=4)):
        assert [chunk_size("rows", 8), chunk_size("rows", 20), chunk_size("systems", 3)] == [2, 5, 3]
    assert recorded == {"rows": 20, "systems": 3}
    assert chunk_size("kept", 7) == 7
    assert "kept" not in recorded
