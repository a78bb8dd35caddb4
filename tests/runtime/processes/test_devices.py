"""Which device each of several processes takes, and its share of the machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from prunetaylor.core.errors import UsageError
from prunetaylor.runtime import device
from prunetaylor.runtime.processes import group
from prunetaylor.runtime.processes.place import Place


def process(local_rank: int, by: str = "torchrun") -> Place:
    """One of eight processes on two machines."""
    return Place(4 + local_rank, 8, local_rank, 4, "", 0, by)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def put(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)

    return put


def test_each_process_has_the_gpu_of_its_number(gpus: Callable[[int], None]) -> None:
    gpus(4)
    assert device.own_gpu(None, process(3)) == (torch.device("cuda", 3), "GPU 3 for process 7 of 8")
    assert device.own_gpu("cuda", process(3))[0] == torch.device("cuda", 3)
    assert device.own_gpu("cpu", process(3)) is None
    assert device.own_gpu("cuda:1", process(3)) is None  # an error later, if two processes ask for it


def test_slurm_may_show_a_task_only_its_own_gpu(gpus: Callable[[int], None]) -> None:
    gpus(1)
    assert device.own_gpu(None, process(3, "srun"))[0] == torch.device("cuda", 0)
    with pytest.raises(UsageError, match="1 GPUs for 4 processes"):
        device.own_gpu(None, process(3))


def test_without_gpus_all_processes_use_the_cpu(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    monkeypatch.setattr(device, "place", lambda: process(0))
    monkeypatch.setattr(device, "gather_objects", lambda value: [value] * 8)
    assert device.pick_device(None) == (torch.device("cpu"), "no GPU found")


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (["cpu", "cuda a"], "compute on cpu and cuda"),
        (["cuda a", "cuda b", "cuda a"], "3 processes share 2 GPUs"),
        (["mps", "mps"], "compute on mps"),
    ],
)
def test_devices_that_do_not_go_together(devices: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        device.check_devices(devices)
    device.check_devices(["cpu", "cpu"])
    device.check_devices(["cuda a", "cuda b"])


def test_the_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunetaylor.runtime.cores.available", lambda: 12)
    assert group.own_cores() == 12
    monkeypatch.setattr(group, "place", lambda: process(0))
    assert group.own_cores() == 3
