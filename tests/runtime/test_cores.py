"""What a process may compute with, whoever gives it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from prunetaylor.runtime import cores
from prunetaylor.runtime.python_process import python


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 cores, and nobody who has set anything."""
    for name in [*cores.VARIABLES, *(name for name in os.environ if name.startswith("SLURM"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "quota", lambda: None)


@pytest.mark.parametrize(
    ("slurm", "expected"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "4"}, 4),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 2),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "1", "SLURM_STEP_TASKS_PER_NODE": "4"}, 1),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "64"}, 16),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "many"}, 16),
        ({"SLURM_CPUS_ON_NODE": "2"}, 16),  # left over, and no job's
    ],
)
def test_a_job_of_slurm_has_what_it_was_given(
    monkeypatch: pytest.MonkeyPatch, slurm: dict[str, str], expected: int
) -> None:
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert cores.available() == expected


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "900000 100000"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_a_container_s_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str, files: dict[str, str], expected: int | None
) -> None:
    monkeypatch.undo()
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    assert cores.quota(tmp_path / "groups", tmp_path / "fs") == expected


@pytest.mark.parametrize(
    ("said", "processes", "expected"),
    [
        ({}, 1, 16),
        ({}, 3, 5),
        ({}, 40, 1),
        ({"OMP_NUM_THREADS": "4"}, 2, 4),
        ({"OMP_NUM_THREADS": "12"}, 2, 8),  # more than there are would slow all of them down
        ({"OMP_NUM_THREADS": "4,2", "MKL_NUM_THREADS": "3"}, 2, 3),
        ({"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": "0"}, 2, 8),
    ],
)
def test_processes_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], processes: int, expected: int
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert cores.share(processes) == expected


def test_torch_keeps_to_it_whatever_was_set() -> None:
    """As in a task of Ray, which sets one of the two."""
    code = (
        "from prunetaylor.runtime.cores import keep_to; keep_to(3); import torch, os; "
        "print(torch.get_num_threads(), os.environ['MKL_NUM_THREADS'])"
    )
    for before in ({"OMP_NUM_THREADS": "1"}, {"MKL_NUM_THREADS": "1"}, {}):
        environment = {name: value for name, value in os.environ.items() if name not in cores.VARIABLES}
        done = subprocess.run(
            python("-c", code), env=environment | before, capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stdout.split() == ["3", "3"]
