"""``--nproc N``: the same command line in N processes of this machine; and what each process does to be one of several.

The first process has this one's stdout and stderr; what the others print is kept, and shown only where one of them
fails by itself. Signals are passed on, whoever fails takes the others along, and all end when this process does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any, TypeVar, cast

import click

from prunetaylor.distributed.place import ALIVE, LISTEN, Place, find
from prunetaylor.errors import PeerError, PruneTaylorError, UsageError

from .options import State, read_configuration

F = TypeVar("F", bound=Callable[..., Any])

GRACE = 30.0
"""Seconds to end in, after a signal or another process's failure."""
_POLL = 0.05

nproc_option = click.option(
    "--nproc",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes on this machine that share the work, one a GPU; 1: this process alone.  "
    "[default: those that torchrun or srun has started, else 1]",
)


def together(command: F) -> F:
    """A command that several processes can share; it takes ``nproc`` from its command line.

    In each of them the command runs as it would alone, with its share of the samples; ``State.main`` says who prints.
    """

    @functools.wraps(command)
    def run(state: State, *args: Any, nproc: int | None, **options: Any) -> Any:
        place = None if nproc == 1 else find(os.environ)
        state.main = place is None or place.rank == 0
        if place is None:
            count = nproc or 1
            if count == 1:
                return command(state, *args, **options)
            read_configuration(options["words"], options["file"], {})  # what is wrong with it is said at once
            return launch(state.arguments, count)
        if nproc is not None and place.by != "--nproc":
            raise _said_once(
                state,
                f"--nproc {nproc} inside of a process that {place.by} has started as one of {place.world}",
                "leave --nproc out to join them; --nproc 1 is for this process alone",
            )
        with _ending_with_parent(), _joined(place):
            return command(state, *args, **options)

    return cast(F, run)


def _said_once(state: State, cause: str, remedy: str) -> PruneTaylorError:
    """What is wrong with the command line of all processes alike, from the one that speaks for them."""
    if state.main:
        return UsageError(cause, remedy)
    return PeerError(cause, remedy, exit_code=UsageError.exit_code, silent=True)


@contextmanager
def _joined(place: Place) -> Iterator[None]:
    from prunetaylor.distributed.group import joined  # torch

    with joined(place):
        yield


@contextmanager
def _ending_with_parent() -> Iterator[None]:
    """Of a process of --nproc: it ends when its parent is gone, however that ended."""
    if ALIVE in os.environ:
        threading.Thread(target=_wait_for_end, args=(int(os.environ[ALIVE]),), daemon=True).start()
    yield


def _wait_for_end(pipe: int) -> None:
    os.read(pipe, 1)  # nobody writes: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)  # for what the signal cannot interrupt, such as waiting for a process that is gone too
    os._exit(143)


def launch(arguments: Sequence[str], count: int) -> int:
    """Run the command line in ``count`` processes; the exit code of the one that failed first, else 0."""
    if os.name != "posix":
        raise UsageError("--nproc needs Linux or macOS", "start the processes with torchrun")
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    ends_with_us, ours = os.pipe()
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=count) as listening, contextlib.ExitStack() as stack:
            kept = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
            processes = [_start(arguments, rank, count, listening, ends_with_us, kept[rank]) for rank in range(count)]
            listening.close()
            first = _wait(processes, signals)
            if first is not None and not signals:
                _say_why(first, processes[first], kept[first])
            # Asked to end, the first one says how it did; the others lose it.
            return 0 if first is None else _exit_code(processes[0 if signals else first])
    finally:
        os.close(ends_with_us)
        os.close(ours)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    arguments: Sequence[str], rank: int, count: int, listening: socket.socket, pipe: int, kept: IO[bytes]
) -> subprocess.Popen[bytes]:
    more = environment_of(rank, count, listening.getsockname()[1], os.environ)
    inherited = [pipe]
    if rank == 0:
        # The socket itself, for a port that is only known to be free may be taken a moment later.
        more[LISTEN] = str(listening.fileno())
        inherited.append(listening.fileno())
    # As this process was started: with or without the working directory among the places to import from.
    safe = [] if sys.path[0] in ("", os.getcwd()) else ["-P"]
    return subprocess.Popen(
        [sys.executable, *safe, "-m", "prunetaylor.cli.main", *arguments],
        env={**os.environ, **more, ALIVE: str(pipe)},
        pass_fds=inherited,
        stdout=None if rank == 0 else kept,
        stderr=None if rank == 0 else kept,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which passes it on once
    )


def environment_of(rank: int, count: int, port: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What a process gets besides ``environment``: torchrun's variables, and, where nothing else is said, its share of
    the cores and connections within the machine."""
    found = {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usual = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    if sys.platform == "linux":
        usual["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the machine's own name resolves to
    return found | {name: value for name, value in usual.items() if name not in environment}


def _wait(processes: Sequence[subprocess.Popen[bytes]], signals: list[int]) -> int | None:
    """Wait for all; which one failed first. A failure ends the others, a signal is passed on to all of them."""
    first, deadline, ending = None, float("inf"), signal.SIGTERM
    while any(process.poll() is None for process in processes):
        if first is None:
            first = next((i for i, process in enumerate(processes) if process.poll()), None)
            if first is not None:
                deadline = min(deadline, time.monotonic() + GRACE)  # they hear of it from each other
        if len(signals) == 1:
            _send(processes, signals[0])
            signals.append(0)  # passed on, once
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            _send(processes, ending)
            deadline, ending = time.monotonic() + GRACE / 3, signal.SIGKILL
        time.sleep(_POLL)
    return first if first is not None else next((i for i, process in enumerate(processes) if process.poll()), None)


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        process.send_signal(number)


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _say_why(which: int, process: subprocess.Popen[bytes], kept: IO[bytes]) -> None:
    """What the first process has not said: why another one, or a signal, ended the run."""
    code = _exit_code(process)
    if process.returncode < 0 or code in (130, 143):
        name = signal.Signals(code - 128).name
        remedy = "the system does so when memory is short: see --memory, or take fewer processes"
        raise PeerError(f"process {which} was ended by {name}", remedy if name == "SIGKILL" else "", exit_code=code)
    kept.seek(0)
    said = kept.read().decode(errors="replace").splitlines()
    start = next((i for i, line in enumerate(said) if line.startswith("error: ")), None)
    if start is not None:
        raise PeerError(
            f"process {which}: {said[start].removeprefix('error: ')}",
            "\n".join(line.strip() for line in said[start + 1 :]),
            exit_code=code,
        )
