"""A process that reads foreign files for the fuzz test, each in a child of its own.

It imports torch and the readers once, then takes lines ``KIND PATH`` on its standard input. For each it forks a child
that may take some seconds of CPU and a GiB of memory above the file's size, and answers one line of JSON: how the child
ended (signal), what came of the file (said), and the seconds of CPU.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import warnings
from pathlib import Path

import torch

from prunetaylor import load
from prunetaylor.cli.report import page, read_report, report_errors
from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import PruneTaylorError
from prunetaylor.data.sources import arrays
from prunetaylor.network.checkpoint.inspect import inspect_file
from prunetaylor.network.checkpoint.read import read
from prunetaylor.pipeline.files.resume import read_state
from prunetaylor.report.comparison import compare
from prunetaylor.report.html.comparison_page import compare_page
from prunetaylor.taylor.curvature.cache import Cache

CPU_SECONDS = 10
ROOM = 1 << 30
CACHE_KEY = "0" * 64


def _checkpoint(path: Path) -> None:
    inspect_file(path)
    read(path)


def _network(path: Path) -> None:
    _checkpoint(path)
    load(path)


def _run(path: Path) -> None:
    page(path, path)
    document = read_report(path)
    with report_errors(path):
        json.dumps(compare([path.name], [document]), allow_nan=False)
        compare_page([path.name], [document])


def _cache(path: Path) -> None:
    """Whatever the entry is, it is fitted anew or is what was kept."""
    fresh = {"gram": torch.eye(3)}
    found = Cache(path.parent, 10**9).get_or_fit(
        "fit", 1, CACHE_KEY, torch.device("cpu"), lambda: fresh, lambda _: None
    )
    assert all(torch.equal(found[name], one) for name, one in fresh.items())


READERS = {
    "checkpoint": _checkpoint,
    "network": _network,
    "run": _run,
    "state": read_state,
    "cache": _cache,
    "npz": lambda path: arrays.read(str(path), DataSection(), 0),
}


def _outcome(kind: str, path: Path) -> str:
    try:
        READERS[kind](path)
    except PruneTaylorError as error:
        if error.exit_code not in (2, 5):
            return f"exit code {error.exit_code}: {error}"
        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, MemoryError) or "allocate memory" in str(chain) or "not enough memory" in str(chain):
                return f"memory: {error}"
            chain = chain.__cause__
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "read"


def _child(kind: str, path: Path, out: int) -> None:
    size = path.stat().st_size
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM + size, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    sys.stdout = sys.stderr = io.StringIO()
    os.write(out, _outcome(kind, path).encode(errors="replace")[:2000])
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        kind, _, path = line.rstrip("\n").partition(" ")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _child(kind, Path(path), writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        _, status, used = os.wait4(child, 0)
        cpu = used.ru_utime + used.ru_stime
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        print(json.dumps({"signal": signal, "said": said, "cpu": round(cpu, 2)}), flush=True)


if __name__ == "__main__":
    main()
