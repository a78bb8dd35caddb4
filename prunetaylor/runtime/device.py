"""Choose the device of a run, and the GPU of each of its processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from prunetaylor.core.errors import UsageError
from prunetaylor.core.text import first_line
from prunetaylor.runtime.processes.group import gather_objects, place
from prunetaylor.runtime.processes.place import Place


def pick_device(asked: str | None) -> tuple[torch.device, str]:
    """Return the torch device and the reason; None asks for the best that there is.

    Several processes use a GPU each, or all of them the CPU.
    """
    here = place()
    device, reason = (own_gpu(asked, here) if here else None) or _pick(asked)
    if here:
        check_devices(gather_objects(_in_words(device)))
    return device, reason


def own_gpu(asked: str | None, here: Place) -> tuple[torch.device, str] | None:
    """Return the GPU of the process at ``here`` and why; None if every process computes on the requested device."""
    if not (asked == "cuda" or (asked is None and torch.cuda.is_available())):
        return None
    there = torch.cuda.device_count()
    # Slurm may show each task its own GPU only, which is then the first.
    index = 0 if here.by == "srun" and there == 1 else here.local_rank
    if index >= there:
        raise UsageError(
            f"{there} GPUs for {here.local_world} processes on this machine",
            "start one process a GPU, or use --device cpu",
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index), f"GPU {index} for process {here.rank} of {here.world}"


def _in_words(device: torch.device) -> str:
    """Return the device's type, with its identifier if processes cannot share it."""
    return f"cuda {torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else device.type


def check_devices(devices: Sequence[str]) -> None:
    """Raise UsageError unless all processes compute on one kind of device, and on a GPU each."""
    kinds = sorted({device.split()[0] for device in devices})
    if len(kinds) > 1 or kinds == ["mps"]:
        raise UsageError(f"the processes of this run compute on {' and '.join(kinds)}", "use --device cpu or cuda")
    if kinds == ["cuda"] and len(set(devices)) < len(devices):
        raise UsageError(
            f"{len(devices)} processes share {len(set(devices))} GPUs",
            "start one process a GPU, and leave --device at auto or cuda",
        )


def _remedy(asked: str) -> str:
    """Return the remedy for a device that this torch or this machine lacks."""
    if asked.startswith("cuda") and torch.version.cuda is None:
        return f"this torch ({torch.__version__}) has no CUDA: install a CUDA build of torch, or use --device cpu"
    if asked.startswith("cuda"):
        count = torch.cuda.device_count()
        last = f", of which the last is cuda:{count - 1}" if count else ""
        return f"torch finds {count} CUDA GPUs{last}; nvidia-smi shows what the driver sees, or use --device cpu"
    if asked.startswith("mps"):
        return "MPS needs a Mac with Apple silicon; use --device auto or cpu"
    return "use auto, cpu, cuda, cuda:1 or mps"


def _pick(asked: str | None) -> tuple[torch.device, str]:
    if asked is None:
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA GPU was found"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "no CUDA GPU, but an Apple GPU was found"
        return torch.device("cpu"), "no GPU found"
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {asked!r} cannot be used: {first_line(error)}", _remedy(asked)) from error
    return device, "as asked"


def half_precision(device: torch.device) -> Literal["bf16", "fp16"] | None:
    """Return the 16-bit type that a CUDA GPU multiplies matrices in; None where 32 bits are as fast."""
    if device.type != "cuda":
        return None
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
