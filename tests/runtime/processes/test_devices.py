"""Which device each of several processes takes, and its share of the machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import UsageError
from prunetaylor.data.load import workers
from prunetaylor.runtime import device
from prunetaylor.runtime.processes import group
from prunetaylor.runtime.processes.place import Place

Here = Callable[..., None]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Makes this process one of eight on two machines, with so many GPUs here."""

    def put(local_rank: int, gpus: int, by: str = "torchrun") -> None:
        monkeypatch.setattr(group, "_group", group._Group(Place(4 + local_rank, 8, local_rank, 4, "", 0, by), None))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)

    return put


def test_each_process_has_the_gpu_of_its_number(here: Here) -> None:
    here(3, 4)
    assert device._own_gpu("auto") == (torch.device("cuda", 3), "GPU 3 for process 7 of 8")
    assert device._own_gpu("cuda")[0] == torch.device("cuda", 3)
    assert device._own_gpu("cpu") is None
    assert device._own_gpu("cuda:1") is None  # as asked, and refused where others ask for it too


def test_slurm_may_show_a_task_its_own_gpu_only(here: Here) -> None:
    here(3, 1, "srun")
    assert device._own_gpu("auto")[0] == torch.device("cuda", 0)
    here(3, 1)
    with pytest.raises(UsageError, match="1 GPUs for 4 processes on this machine"):
        device._own_gpu("auto")


def test_without_gpus_all_take_the_processor(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here(0, 0)
    assert device._own_gpu("auto") is None
    monkeypatch.setattr(device, "gather_objects", lambda value: [value] * 8)
    assert device.pick_device("auto") == (torch.device("cpu"), "no GPU found")


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
        device._check_together(devices)
    device._check_together(["cpu", "cpu"])
    device._check_together(["cuda a", "cuda b"])


def test_the_cores_are_shared_out(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunetaylor.runtime.cores.available", lambda: 12)
    assert workers(DataSection()) == 8
    here(0, 0)
    assert workers(DataSection()) == 3
    assert workers(DataSection(workers=5)) == 5
