"""Read from the environment alone this process's place among those that were started together. No torch here.

A process joins others when torchrun started it (or whatever else sets RANK and WORLD_SIZE), or when it is one of
several tasks of an ``srun`` step. A plain command inside an allocation (in a batch script, at the prompt of ``salloc``
or of ``srun --pty``) sees the allocation's variables too, but is a single process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from prunetaylor.core.errors import UsageError

LISTEN_SOCKET = "_PRUNETAYLOR_LISTEN"
"""Set in the first process of ``--nproc``: the descriptor of a socket that listens already, on a port that is free."""
PARENT_PIPE = "_PRUNETAYLOR_PARENT_PIPE"
"""Set in every process of ``--nproc``: the descriptor of a pipe that is closed when their parent ends."""

LOST_PEER = 113
"""The exit code of a process of ``--nproc`` that has only lost another one; their parent sees and reports which."""

_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm's step numbers from here on do not belong to srun: batch scripts, interactive shells, and the like."""


@dataclass(frozen=True)
class Place:
    """This process is ``rank`` of ``world``, and ``local_rank`` of ``local_world`` on its machine; all count from 0.

    The first one listens at ``address``:``port``.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str
    port: int
    by: str  # "torchrun", "srun" or "--nproc"
    listen: int | None = None  # the descriptor of the socket that does, where it is there already


def find(environment: Mapping[str, str]) -> Place | None:
    """Return the place that ``environment`` gives this process; None for a single process.

    Raises UsageError: the variables are incomplete or not numbers.
    """
    if "RANK" in environment and _number(environment, "WORLD_SIZE", 1) > 1:
        return _torchrun(environment)
    if _is_task(environment) and _tasks(environment) > 1:
        return _srun(environment)
    return None


def _torchrun(environment: Mapping[str, str]) -> Place:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise UsageError(
            f"RANK and WORLD_SIZE say that this is one of several processes, but {' and '.join(missing)} is not set",
            "start them with torchrun, or with --nproc on one machine; --nproc 1 is for this process alone",
        )
    return _checked(
        Place(
            rank=_number(environment, "RANK"),
            world=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK", 0),
            local_world=_number(environment, "LOCAL_WORLD_SIZE", 1),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT"),
            by="--nproc" if PARENT_PIPE in environment else "torchrun",
            listen=_number(environment, LISTEN_SOCKET) if LISTEN_SOCKET in environment else None,
        )
    )


def _is_task(environment: Mapping[str, str]) -> bool:
    """Return True if srun started this process as a task of a step."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    real = step.isdigit() and int(step) < _SPECIAL_STEP
    # With a terminal of its own it is somebody's shell, whatever the number of tasks.
    return real and "SLURM_PROCID" in environment and "SLURM_PTY_PORT" not in environment


def _tasks(environment: Mapping[str, str]) -> int:
    return _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS", 1))


def _srun(environment: Mapping[str, str]) -> Place:
    job = _number(environment, "SLURM_JOB_ID", 0)
    step = _number(environment, "SLURM_STEP_ID", _number(environment, "SLURM_STEPID", 0))
    counts = _tasks_by_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environment, "SLURM_NODEID", 0)
    place = Place(
        rank=_number(environment, "SLURM_PROCID"),
        world=_tasks(environment),
        local_rank=_number(environment, "SLURM_LOCALID", 0),
        local_world=counts[node] if node < len(counts) else 1,
        address=environment.get("MASTER_ADDR") or _first_node(environment),
        # Below the ports that systems hand out by themselves; neighbouring steps and jobs get others.
        port=_number(environment, "MASTER_PORT", 12_000 + (97 * job + step) % 20_000),
        by="srun",
    )
    return _checked(place)


def _first_node(environment: Mapping[str, str]) -> str:
    """Return the node of the step's first task: the head of its list of nodes, not the node where srun was called."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    if _number(environment, "SLURM_STEP_NUM_NODES", 0) == 1:
        return "127.0.0.1"
    name = first_of_nodes(nodes) or environment.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not name:
        raise UsageError(
            "this is one of several tasks of an srun step, but SLURM_STEP_NODELIST does not name the first node",
            "set MASTER_ADDR to that machine; --nproc 1 is for this process alone",
        )
    return name


def first_of_nodes(nodes: str) -> str:
    """Return the first name in Slurm's short form of a list: ``gpu[007-012,20],cpu1`` -> ``gpu007``."""
    head = ""
    for part in re.findall(r"[^\[\],]+|\[[^\]]*\]|,", nodes):
        if part == ",":
            break
        head += re.split(r"[-,]", part[1:-1])[0] if part.startswith("[") else part
    return head


def _tasks_by_node(text: str) -> list[int]:
    """Parse ``4(x2),3`` as [4, 4, 3]; return an empty list for anything else."""
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return []
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdigit():
        raise UsageError(
            f"{name}={text!r} in the environment is not a whole number",
            "whatever started this process sets it; --nproc 1 is for this process alone",
        )
    return int(text)


def _checked(place: Place) -> Place:
    if place.rank >= place.world:
        raise UsageError(
            f"the environment says that this is process {place.rank} of {place.world}, counted from 0",
            "start all of them with one torchrun or srun; --nproc 1 is for this process alone",
        )
    return place
