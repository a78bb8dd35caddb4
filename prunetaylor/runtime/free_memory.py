"""The memory that is free for this process, on a device or under the control groups of a container."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that are free for tensors on ``device`` now; None if they are unknown.

    On a CPU they are the least of the system's available memory and what remains of this process's control groups.
    """
    if device.type == "cuda":
        # Memory that torch has reserved but does not use is free for this process.
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    if device.type != "cpu":
        return None
    known = [size for size in (available_bytes(), *group_bytes()) if size is not None]
    return min(known, default=None)


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the memory that the system can give without swapping."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # macOS does not know the first
        return None


def group_bytes(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what remains of the limit of each control group (version 1 or 2) around this process.

    Cached pages of files, which the system can drop, do not count as used.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    remaining = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        here = Path(path.strip("/"))
        # In a container the path may be the host's, of which only the root is visible.
        for group in {top / part for part in (here, *here.parents)}:
            free = _remaining(group, *names)
            if free is not None:
                remaining.append(free)
    return remaining


def _remaining(group: Path, limit: str, used: str, droppable: str) -> int | None:
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return None
    try:
        lines = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        files = sum(int(value) for name, value in lines if name == droppable)
    except (OSError, ValueError):
        files = 0
    return max(0, most - max(0, now - files))
