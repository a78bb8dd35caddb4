"""``--nproc N`` runs the same command line in N processes of this machine.

The first process has this one's stdout and stderr. The output of the others is stored, and shown only where one of them
fails by itself. Signals are passed on; a failure ends all processes, and so does the end of this one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import IO

from prunetaylor.core.errors import PeerError, UsageError
from prunetaylor.runtime import cores
from prunetaylor.runtime.processes.place import LISTEN_SOCKET, LOST_PEER, PARENT_PIPE
from prunetaylor.runtime.python_process import python

from ..terminal.console import result_descriptor

GRACE = 30.0
"""Seconds that a process has to end in after a signal or another process's failure."""
_POLL = 0.05


def launch(arguments: Sequence[str], count: int) -> int:
    """Run the command line in ``count`` processes. Return the exit code of the first that failed, else 0."""
    if os.name != "posix":
        raise UsageError("--nproc needs Linux or macOS", "start the processes with torchrun")
    signals: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    before = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    child_end, our_end = os.pipe()
    try:
        with socket.create_server(("127.0.0.1", 0), backlog=count) as listening, contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
            processes = [_start(arguments, rank, count, listening, child_end, outputs[rank]) for rank in range(count)]
            listening.close()
            first = _wait(processes, signals)
            if first is not None and not signals:
                _raise_failure(first, processes, outputs[first])
            # After a signal the first process reports how it ended; the others only lose it.
            return 0 if first is None else _exit_code(processes[0 if signals else first])
    finally:
        os.close(child_end)
        os.close(our_end)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    arguments: Sequence[str], rank: int, count: int, listening: socket.socket, pipe: int, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    more = environment_of(rank, count, listening.getsockname()[1], os.environ)
    inherited = [pipe]
    if rank == 0:
        # The socket itself: another process could take a port that was merely found to be free.
        more[LISTEN_SOCKET] = str(listening.fileno())
        inherited.append(listening.fileno())
    return subprocess.Popen(
        python("-m", "prunetaylor.cli.main", *arguments),
        env={**os.environ, **more, PARENT_PIPE: str(pipe)},
        pass_fds=inherited,
        stdout=result_descriptor() if rank == 0 else output,
        stderr=None if rank == 0 else output,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
    )


def environment_of(rank: int, count: int, port: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process gets besides ``environment``: torchrun's, and its share of the cores, or as
    many as the user set. Connections stay within the machine unless ``environment`` says otherwise."""
    variables = {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in environment:
        variables["GLOO_SOCKET_IFNAME"] = "lo"  # the machine's own name may resolve to another interface
    return variables | cores.environment(cores.asked(environment) or max(1, cores.available() // count))


def _wait(processes: Sequence[subprocess.Popen[bytes]], signals: list[int]) -> int | None:
    """Wait for all processes and return which failed first. A failure ends the others; all get a signal passed on."""
    first, deadline, ending = None, float("inf"), signal.SIGTERM
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):  # the others notice by themselves
            deadline = min(deadline, time.monotonic() + GRACE)
            first = _failed(processes, first)
        if len(signals) == 1:
            _send(processes, signals[0])
            signals.append(0)  # passed on, once
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            _send(processes, ending)
            deadline, ending = time.monotonic() + GRACE / 3, signal.SIGKILL
        time.sleep(_POLL)
    return _failed(processes, first)


def _failed(processes: Sequence[subprocess.Popen[bytes]], before: int | None) -> int | None:
    """Return the process that failed first, preferably by itself rather than because it lost another process."""
    failed = [i for i, process in enumerate(processes) if process.poll()]
    return min(failed, key=lambda i: (processes[i].returncode == LOST_PEER, i != before, i), default=None)


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        process.send_signal(number)


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _raise_failure(which: int, processes: Sequence[subprocess.Popen[bytes]], output: IO[bytes]) -> None:
    """Raise PeerError with the reason that ended the run, where the first process has not printed it."""
    process, code = processes[which], _exit_code(processes[which])
    if process.returncode < 0 or code in (130, 143):
        name = signal.Signals(code - 128).name
        remedy = "the system does that when memory runs out: set --memory, or use fewer processes"
        raise PeerError(f"process {which} was ended by {name}", remedy if name == "SIGKILL" else "", exit_code=code)
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
    if start is not None:
        raise PeerError(
            f"process {which}: {lines[start].removeprefix('error: ')}",
            "\n".join(line.strip() for line in lines[start + 1 :]),
            exit_code=code,
        )
    if processes[0].returncode == LOST_PEER:
        raise PeerError(f"process {which} ended with exit code {code} and no message", exit_code=code)
