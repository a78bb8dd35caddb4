"""The group of processes of one run: connect, agree, and leave.

Every process runs the same code on its own share of the samples, and gets the same results; the first one, the main
process, also prints and writes. Before anything is exchanged (``exchange.py``) the processes agree that all of them got
so far: an error in one of them ends all of them there, with its cause and remedy.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prunetaylor.core.errors import PeerError, PruneTaylorError
from prunetaylor.core.text import error_line, first_line
from prunetaylor.runtime import cores
from prunetaylor.runtime.processes.place import LOST_PEER, Place

T = TypeVar("T")

CONNECT_TIMEOUT = timedelta(minutes=5)
"""The time for all processes to connect."""
EXCHANGE_TIMEOUT = timedelta(minutes=30)
"""The time for the slowest process at any exchange."""
ERROR_TIMEOUT = timedelta(seconds=20)
"""The time to tell the others of an error; a process that misses it notices when the connection ends."""

_HEAD_BYTES = 256
"""Bytes of the first exchange, whatever is to be said."""


@dataclass(frozen=True)
class _Group:
    place: Place
    control: dist.ProcessGroup  # gloo, for everything but tensors on a GPU


_group: _Group | None = None


def rank() -> int:
    """Return this process's number, from 0."""
    return here.rank if (here := place()) else 0


def world() -> int:
    """Return the number of processes; 1 without a group."""
    return here.world if (here := place()) else 1


def local_world() -> int:
    """Return the number of processes on this machine."""
    return here.local_world if (here := place()) else 1


def own_cores() -> int:
    """Return the cores of this process, which shares the machine's with the other processes of its run."""
    return max(1, cores.available() // local_world())


def place() -> Place | None:
    """Return this process's place in the group; None for a single process."""
    return _group.place if _group else None


def main_process() -> bool:
    """Return True in the process that prints and writes."""
    return rank() == 0


def own_range(count: int) -> range:
    """Return this process's share of ``count`` things: consecutive ones, with one more for the first processes."""
    each, more = divmod(count, world())
    start = rank() * each + min(rank(), more)
    return range(start, start + each + (rank() < more))


@contextmanager
def joined(here: Place | None) -> Iterator[None]:
    """Make this process one of several; with None nothing happens. From Python:

        with joined(find(os.environ)):
            outcome = prunetaylor.prune(network, ...)  # in each process alike

    An error inside ends the other processes too. Raises PeerError: another process failed or is gone, or they cannot
    connect.
    """
    global _group
    if here is None:
        yield
        return
    _group = _Group(here, _meet(here))
    well = False
    try:
        yield
        agree()  # no process leaves while another one still waits for it, or may yet fail
        well = True
    except PeerError:
        raise
    except Exception as error:
        if _tell_others(error) and not main_process():
            raise PeerError(str(error), exit_code=getattr(error, "exit_code", 1), silent=True) from error
        raise
    finally:
        _group = None
        with suppress(Exception):  # the connections may be broken already
            if not well and dist.group.WORLD is not None:
                dist.group.WORLD.abort()
            dist.destroy_process_group()


def _meet(here: Place) -> dist.ProcessGroup:
    """Connect all processes and return the control group."""
    # Communicators are made when they are first used: without a GPU in use there will be none of NCCL's.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    members: dict[str, Any] = {"rank": here.rank, "world_size": here.world, "timeout": EXCHANGE_TIMEOUT}
    try:
        if here.by == "torchrun":  # whose agent may be the one that listens
            members["init_method"] = "env://"
        else:
            listens: dict[str, Any] = {
                "is_master": here.rank == 0,
                "master_listen_fd": here.listen,
                "timeout": CONNECT_TIMEOUT,
            }
            members["store"] = dist.TCPStore(here.address, here.port, here.world, **listens)  # type: ignore[attr-defined]
        dist.init_process_group(backend, **members)
        gloo = dist.new_group(backend="gloo", timeout=EXCHANGE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        with suppress(Exception):
            dist.destroy_process_group()
        raise PeerError(
            f"process {here.rank} cannot join the other {here.world - 1} at {here.address}:{here.port}: "
            f"{first_line(error)}",
            "check that all of them run and can reach this address; MASTER_ADDR and MASTER_PORT set another one",
        ) from error
    assert isinstance(gloo, dist.ProcessGroup)
    return gloo


def agree() -> None:
    """Wait for all processes. Raises PeerError: one of them has failed."""
    gather_objects(None)


def gather_objects(value: T) -> list[T]:
    """Return each process's plain value, in their order. Raises PeerError: one of them has failed.

    Values travel as pickles, as torch.distributed's own objects do: whoever joins the group is a process of this run.
    """
    if _group is None:
        return [value]
    with exchanging():
        return [pickle.loads(one) for one in _exchange_bytes(pickle.dumps(value), failed=False)]


def _tell_others(error: Exception) -> bool:
    """Tell the others of an error; return True if they heard it."""
    if isinstance(error, PruneTaylorError):
        failure = error.cause, error.remedy, error.exit_code
    else:
        failure = error_line(error, 500), "", 1
    try:
        _exchange_bytes(pickle.dumps(failure), failed=True)
    except PeerError:
        return True
    except RuntimeError:  # they are gone, or busy for long
        return False
    return False


def _exchange_bytes(content: bytes, failed: bool) -> list[bytes]:
    """Return every process's content, in their order. Raises PeerError: a process has failed; it has that cause.

    Small buffers are exchanged first, and the rest in a second exchange if something is larger. Every process calls
    this again and again, so that the news of a failure reaches all of them wherever they are.
    """
    limit = ERROR_TIMEOUT if failed else EXCHANGE_TIMEOUT
    head = torch.zeros(_HEAD_BYTES, dtype=torch.uint8)
    head[:9] = torch.frombuffer(bytearray([failed, *len(content).to_bytes(8, "big")]), dtype=torch.uint8)
    room = _HEAD_BYTES - 9
    head[9 : 9 + len(content[:room])] = _as_tensor(content[:room])
    heads = [bytes(one.numpy()) for one in _gather(head, limit)]
    sizes = [int.from_bytes(one[1:9], "big") for one in heads]
    every = [one[9 : 9 + min(size, room)] for one, size in zip(heads, sizes, strict=True)]
    if max(sizes) > room:
        rest = torch.zeros(max(sizes) - room, dtype=torch.uint8)
        rest[: max(0, len(content) - room)] = _as_tensor(content[room:])
        more = [bytes(one.numpy()) for one in _gather(rest, limit)]
        every = [a + b[: max(0, size - room)] for a, b, size in zip(every, more, sizes, strict=True)]
    for which, (one, message) in enumerate(zip(heads, every, strict=True)):
        if one[0]:
            cause, remedy, code = pickle.loads(message)
            cause = f"process {which} of {world()}: {cause}"
            raise PeerError(cause, remedy, exit_code=code, silent=not main_process())
    return every


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def _gather(buffer: Tensor, limit: timedelta) -> list[Tensor]:
    assert _group is not None
    every = [torch.empty_like(buffer) for _ in range(_group.place.world)]
    work = dist.all_gather(every, buffer, group=_group.control, async_op=True)
    assert work is not None
    work.wait(limit)
    return every


@contextmanager
def exchanging() -> Iterator[None]:
    """Raise PeerError in place of the backends' errors when a connection breaks."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # The parent of processes that --nproc started sees which one ended, and reports it.
        launched = _group is not None and _group.place.by == "--nproc"
        raise PeerError(
            f"the connection to the other processes of this run broke: {first_line(error)}",
            "read what they printed last, or the log of the program that started them",
            exit_code=LOST_PEER if launched else 1,
            silent=launched or not main_process(),
        ) from error
