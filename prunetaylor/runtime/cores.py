"""The number of cores that a process may use, and the one place that makes every library observe it."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""The variables of the libraries. If they differ, torch follows MKL's and not OpenMP's, so they are set together."""
_USERS = VARIABLES[:2]


def available() -> int:
    """Return the cores that this process may use: the machine's, less what affinity, a container or Slurm withhold.

    A cluster that does not bind its jobs shows each of them every core; what Slurm gave stands in the environment.
    """
    known = [_affinity(), quota(), _slurm(os.environ)]
    return max(1, min(number for number in known if number is not None))


def asked(environment: Mapping[str, str]) -> int | None:
    """Return the threads that a user set with OMP_NUM_THREADS or MKL_NUM_THREADS, the fewer of two; None if neither."""
    counts = [_whole(environment.get(name, "").split(",")[0]) for name in _USERS]
    return min((number for number in counts if number), default=None)


def share(processes: int) -> int:
    """Return the threads of each of so many processes of this one: equal shares, never more than the user set."""
    return max(1, min(available() // processes, asked(os.environ) or available()))


def environment(threads: int) -> dict[str, str]:
    """Return the variables with which a process, and all that it starts, computes with so many threads."""
    return {name: str(threads) for name in VARIABLES}


def keep_to(threads: int) -> None:
    """Make this process compute with so many threads, whatever was set when torch was imported."""
    import torch

    os.environ.update(environment(threads))
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # some operation has run already: its pool has its size
        torch.set_num_interop_threads(threads)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the cores that the container's quota amounts to, rounded up; None if there is no quota.

    ``own`` is the file that names the control groups of this process, ``root`` is where they are mounted.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            quotas += [_ratio(folder / "cpu.max") for folder in _up(root, path)]
        elif "cpu" in controllers.split(","):
            for folder in (*_up(root / controllers, path), *_up(root / "cpu", path)):
                quotas.append(_ratio(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
    return min((number for number in quotas if number is not None), default=None)


def _up(root: Path, path: str) -> list[Path]:
    """Return the folders from a control group up to the root; each may have a quota."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _ratio(*files: Path) -> int | None:
    """Return quota / period, which stand in one file or two; None if there is no quota."""
    try:
        quota, period = (word for file in files for word in file.read_text(encoding="utf-8").split())
        return max(1, math.ceil(int(quota) / int(period))) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such file
        return None


def _slurm(environment: Mapping[str, str]) -> int | None:
    """Return the cores of a task where this is one of Slurm's; those of the job on this node in a job's own script."""
    if "SLURM_JOB_ID" not in environment:
        return None
    node = _whole(environment.get("SLURM_CPUS_ON_NODE", ""))
    if node is None:
        return _whole(environment.get("SLURM_CPUS_PER_TASK", ""))
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(1, node // max(1, int(tasks[0]))) if tasks else node


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*\d{1,6}\s*", text) and int(text) > 0 else None
