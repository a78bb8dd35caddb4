"""The group of processes that one run consists of: coming together, agreeing, leaving.

Every process goes through the same code, with its own share of the samples, and comes to the same results; the first
one, the main process, prints and writes besides. Before anything is exchanged (``exchange.py``) the processes agree
that all of them got so far: an error of one of them ends all of them there, with its cause and remedy.
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
from prunetaylor.runtime.processes.place import LOST, Place

T = TypeVar("T")

JOIN = timedelta(minutes=5)
"""For all processes to come together."""
WAIT = timedelta(minutes=30)
"""For the slowest at any exchange."""
LEAVE = timedelta(seconds=20)
"""For the others to hear of an error; whoever does not hear of it finds out when the connection ends."""

_SMALL = 256
"""Bytes of what is exchanged at once, whatever there is to say."""


@dataclass(frozen=True)
class _Group:
    place: Place
    control: dist.ProcessGroup  # gloo, for what is no number of a GPU


_group: _Group | None = None


def rank() -> int:
    """Of this process, from 0."""
    return here.rank if (here := place()) else 0


def world() -> int:
    """The number of processes; 1 without a group."""
    return here.world if (here := place()) else 1


def local_world() -> int:
    """Those of them on this machine."""
    return here.local_world if (here := place()) else 1


def place() -> Place | None:
    """Where this process stands; None where it is alone."""
    return _group.place if _group else None


def main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def mine(count: int) -> range:
    """Of ``count`` things in order those that are this process's: consecutive, in the processes' order, one more for
    the first ones where they do not come out even."""
    each, more = divmod(count, world())
    start = rank() * each + min(rank(), more)
    return range(start, start + each + (rank() < more))


@contextmanager
def joined(here: Place | None) -> Iterator[None]:
    """Inside, this process is one of several; with None it is alone, and nothing happens. From Python:

        with joined(find(os.environ)):
            outcome = prunetaylor.prune(network, ...)  # in each process alike

    An error inside is told to the others, which leave too. PeerError where another process failed or is gone, or where
    they do not come together.
    """
    global _group
    if here is None:
        yield
        return
    _group = _Group(here, _meet(here))
    well = False
    try:
        yield
        agree()  # nobody leaves while another one still needs an answer, or may yet fail
        well = True
    except PeerError:
        raise
    except Exception as error:
        if _told(error) and not main_process():
            raise PeerError(str(error), exit_code=getattr(error, "exit_code", 1), silent=True) from error
        raise
    finally:
        _group = None
        with suppress(Exception):  # of connections that are broken already
            if not well and dist.group.WORLD is not None:
                dist.group.WORLD.abort()
            dist.destroy_process_group()


def _meet(here: Place) -> dist.ProcessGroup:
    """Connect all processes; the control group."""
    # Communicators are made when they are first used: without a GPU in use there will be none of NCCL's.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    members: dict[str, Any] = {"rank": here.rank, "world_size": here.world, "timeout": WAIT}
    try:
        if here.by == "torchrun":  # whose agent may be the one that listens
            members["init_method"] = "env://"
        else:
            listens: dict[str, Any] = {"is_master": here.rank == 0, "master_listen_fd": here.listen, "timeout": JOIN}
            members["store"] = dist.TCPStore(here.address, here.port, here.world, **listens)  # type: ignore[attr-defined]
        dist.init_process_group(backend, **members)
        gloo = dist.new_group(backend="gloo", timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        with suppress(Exception):
            dist.destroy_process_group()
        raise PeerError(
            f"process {here.rank} cannot join the other {here.world - 1} at {here.address}:{here.port}: "
            f"{first_line(error)}",
            "see that all of them run and can reach this address; MASTER_ADDR and MASTER_PORT name another one",
        ) from error
    assert isinstance(gloo, dist.ProcessGroup)
    return gloo


def agree() -> None:
    """Wait for all processes; PeerError where one of them has failed."""
    gather_objects(None)


def gather_objects(value: T) -> list[T]:
    """Each process's plain value, in their order. PeerError where one of them has failed.

    Values travel as pickles, as torch.distributed's own objects do: whoever joins the group is a process of this run.
    """
    if _group is None:
        return [value]
    with exchanging():
        return [pickle.loads(one) for one in _swapped(pickle.dumps(value), failed=False)]


def _told(error: Exception) -> bool:
    """Tell the others; whether they heard it."""
    if isinstance(error, PruneTaylorError):
        failure = error.cause, error.remedy, error.exit_code
    else:
        failure = error_line(error, 500), "", 1
    try:
        _swapped(pickle.dumps(failure), failed=True)
    except PeerError:
        return True
    except RuntimeError:  # they are gone, or busy for long
        return False
    return False


def _swapped(content: bytes, failed: bool) -> list[bytes]:
    """Every process's content, in their order. What a process that has failed says ends all: PeerError with it.

    One exchange of small buffers, and another one where something is larger. It is the one thing that all processes
    come to again and again, so that the news of a failure meets all others wherever they are.
    """
    limit = LEAVE if failed else WAIT
    head = torch.zeros(_SMALL, dtype=torch.uint8)
    head[:9] = torch.frombuffer(bytearray([failed, *len(content).to_bytes(8, "big")]), dtype=torch.uint8)
    room = _SMALL - 9
    head[9 : 9 + len(content[:room])] = _as_tensor(content[:room])
    heads = [bytes(one.numpy()) for one in _gathered(head, limit)]
    sizes = [int.from_bytes(one[1:9], "big") for one in heads]
    every = [one[9 : 9 + min(size, room)] for one, size in zip(heads, sizes, strict=True)]
    if max(sizes) > room:
        rest = torch.zeros(max(sizes) - room, dtype=torch.uint8)
        rest[: max(0, len(content) - room)] = _as_tensor(content[room:])
        more = [bytes(one.numpy()) for one in _gathered(rest, limit)]
        every = [a + b[: max(0, size - room)] for a, b, size in zip(every, more, sizes, strict=True)]
    for which, (one, said) in enumerate(zip(heads, every, strict=True)):
        if one[0]:
            cause, remedy, code = pickle.loads(said)
            cause = f"process {which} of {world()}: {cause}"
            raise PeerError(cause, remedy, exit_code=code, silent=not main_process())
    return every


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def _gathered(buffer: Tensor, limit: timedelta) -> list[Tensor]:
    assert _group is not None
    every = [torch.empty_like(buffer) for _ in range(_group.place.world)]
    work = dist.all_gather(every, buffer, group=_group.control, async_op=True)
    assert work is not None
    work.wait(limit)
    return every


@contextmanager
def exchanging() -> Iterator[None]:
    """PeerError in place of what the backends say when a connection breaks."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # Of processes that --nproc started, their parent sees which one ended, and says so.
        launched = _group is not None and _group.place.by == "--nproc"
        raise PeerError(
            f"the connection to the other processes of this run broke: {first_line(error)}",
            "see what they printed last, or the log of whatever started them",
            exit_code=LOST if launched else 1,
            silent=launched or not main_process(),
        ) from error
