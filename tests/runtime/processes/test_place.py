"""Who joins whom, by the environment alone."""

from __future__ import annotations

import pytest

from prunetaylor.core.errors import UsageError
from prunetaylor.runtime.processes.place import LISTEN_SOCKET, PARENT_PIPE, Place, find, first_of_nodes

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node3",
    "MASTER_PORT": "29500",
}
ALLOCATION = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu[07-08]", "SLURM_NNODES": "2"}
BATCH = {**ALLOCATION, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {
    **ALLOCATION,
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "5,3",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "4"},  # whatever else sets it
        ALLOCATION,  # at the prompt of salloc
        BATCH,
        {**BATCH, "SLURM_STEP_ID": str(0xFFFFFFFB)},  # a batch script, as some versions number it
        {**STEP, "SLURM_STEP_ID": str(0xFFFFFFFA)},  # salloc's shell on the first node
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "SLURM_PTY_PORT": "36000"},  # srun --pty bash
        without(STEP, "SLURM_STEP_ID"),
        without(STEP, "SLURM_PROCID"),
    ],
    ids=range(11),
)
def test_a_plain_command_is_alone(environment: dict[str, str]) -> None:
    assert find(environment) is None


def test_torchrun() -> None:
    assert find(TORCHRUN) == Place(5, 8, 1, 4, "node3", 29500, "torchrun")
    assert find({**STEP, **TORCHRUN}).by == "torchrun"  # one torchrun a node, started by srun
    few = find(without(TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    assert (few.local_rank, few.local_world) == (0, 1)


def test_nproc() -> None:
    found = find({**TORCHRUN, PARENT_PIPE: "7", LISTEN_SOCKET: "8"})
    assert (found.by, found.listen) == ("--nproc", 8)


def test_a_task_of_srun() -> None:
    found = find(STEP)
    assert found == Place(6, 8, 1, 3, "gpu07", 12_000 + (97 * 4711 + 2) % 20_000, "srun")
    assert find({**STEP, "SLURM_NODEID": "0"}).local_world == 5
    assert find({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}).local_world == 4
    assert find({**STEP, "SLURM_STEP_NUM_NODES": "1"}).address == "127.0.0.1"
    assert find({**STEP, "MASTER_ADDR": "other", "MASTER_PORT": "1234"}).address == "other"
    assert find({**STEP, "MASTER_ADDR": "other", "MASTER_PORT": "1234"}).port == 1234
    assert find(without(STEP, "SLURM_STEP_NODELIST", "SLURM_NODELIST")).address == "10.0.0.1"
    # Steps that run side by side do not meet.
    ports = {find({**STEP, "SLURM_STEP_ID": str(step)}).port for step in range(20)}
    assert len(ports) == 20


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[007-012,20],cpu1", "gpu007"),
        ("gpu[3,5-9]", "gpu3"),
        ("a1,b2", "a1"),
        ("rack[2-3]-node[04-05]", "rack2-node04"),
        ("my-host-1,my-host-2", "my-host-1"),
        ("", ""),
    ],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_of_nodes(nodes) == first


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR is not set"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE='many'"),
        ({**TORCHRUN, "RANK": "8"}, "process 8 of 8"),
        ({**STEP, "SLURM_PROCID": "x"}, "SLURM_PROCID='x'"),
        (
            without(STEP, "SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_LAUNCH_NODE_IPADDR"),
            "does not name the first node",
        ),
    ],
)
def test_what_cannot_be_meant(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        find(environment)
    assert "--nproc 1" in caught.value.remedy
