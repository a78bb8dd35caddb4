"""Several processes of one run on this machine; each calls a function of a test's own file."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def run_in_processes(function: str, folder: Path, world: int = 2) -> list[Any]:
    """Return what ``module:function`` returns in each of ``world`` joined processes, none of which may fail."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # a free port that stays reserved
        started = []
        for rank in range(world):
            fd = listening.fileno() if rank == 0 else -1
            words = [function, str(folder), str(rank), str(world), str(listening.getsockname()[1]), str(fd)]
            paths = [str(TESTS), str(TESTS / "runtime" / "processes"), os.environ.get("PYTHONPATH", "")]
            started.append(
                subprocess.Popen(
                    [sys.executable, __file__, *words],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GLOO_SOCKET_IFNAME": "lo"},
                    pass_fds=[fd] if fd >= 0 else [],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * world, "\n".join(outputs)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(world)]


def free_port() -> int:
    """Return a port that nobody listens on, below the range from which the system hands out ports to others."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def main(function: str, folder: str, *numbers: str) -> None:
    import torch

    from prunetaylor.runtime.processes.group import joined
    from prunetaylor.runtime.processes.place import Place

    rank, world, port, fd = map(int, numbers)
    torch.set_num_threads(1)
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    place = Place(rank, world, rank, world, "127.0.0.1", port, "srun", fd if fd >= 0 else None)
    with joined(place):
        result = work()
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
