"""A cluster's engine in a process of its own. All that its libraries print goes to a log in the sweep's folder.

The process that leads stays what it is whatever happens to the cluster: Ray ends its driver where the head is lost, and
prints pages on the way. Here ``run`` starts the driver and listens to it; the engine's ``drive`` runs in it. It is told
the crew in a line of JSON on stdin, which stays open as long as its starter lives, and answers in lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import IO, Any

from prunetaylor.core import registry
from prunetaylor.core.errors import PruneTaylorError, UsageError
from prunetaylor.core.files import open_own
from prunetaylor.pipeline.files.signals import Terminated
from prunetaylor.runtime.python_process import python
from prunetaylor.sweep.engine_context import EngineContext, EngineFailed, Watch
from prunetaylor.sweep.engines import ClusterEngine

_PAUSE = 0.2  # seconds between two looks at the driver
_GRACE = 60.0  # seconds that a driver has to take back what it started
_LAST = 5.0  # seconds for its last words
_KINDS = {kind.__name__: kind for kind in (PruneTaylorError, UsageError, EngineFailed)}


def run(name: str, crew: EngineContext, watch: Watch) -> None:
    """Drive the engine ``name`` until no trial waits. What it raises is raised here."""
    log = crew.folder / f"{name}.log"
    with open_own(log, "a") as out, _started(name, crew, out) as (process, told):
        failure: PruneTaylorError | None = None
        while True:
            over = process.poll() is not None
            watch()
            failure = _pass_on(told, watch) or failure
            if over and not told.alive():
                break
            time.sleep(_PAUSE)
    if failure is None and process.returncode:
        code = process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        failure = EngineFailed(f"the engine {name} died ({how}): its cluster is lost, perhaps", f"{log} has its output")
    if failure is not None:
        raise failure


def main() -> int:
    """The driver: the exit code, 1 where it says what went wrong."""
    told = json.loads(sys.stdin.readline())
    starter, answers = os.dup(0), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # whatever prints, in Python or below it
    threading.Thread(target=_end_with_starter, args=(starter,), daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    watch = _Answers(answers)
    crew = EngineContext.from_plain(told["crew"])
    try:
        registry.load(registry.ENGINES, ClusterEngine, told["engine"]).drive(crew, watch)
    except Terminated:
        return 0
    except PruneTaylorError as err:
        watch.failed(type(err).__name__, err.cause, err.remedy)
        return 1
    except Exception as err:
        traceback.print_exc()
        text = f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"
        watch.failed("EngineFailed", f"the engine {told['engine']} failed: {text}", "its log has the rest")
        return 1
    return 0


class _Answers:
    """Passes on what the user should know."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __call__(self) -> None:
        pass

    def note(self, text: str) -> None:
        self._say({"note": text})

    def failed(self, kind: str, cause: str, remedy: str) -> None:
        self._say({"kind": kind if kind in _KINDS else "EngineFailed", "cause": cause, "remedy": remedy})

    def _say(self, said: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(json.dumps(said) + "\n")
            self._stream.flush()


class _Heard:
    """The lines that the driver has said, read by a thread of their own."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.lines.put(line)

    def close(self) -> None:
        """The driver has ended, and with it its end of the pipe."""
        self._thread.join(_LAST)

    def alive(self) -> bool:
        """Return whether there may be more to come. What the driver started must not hold its end of the pipe long."""
        self._thread.join(0.5)
        return not self.lines.empty()


def _pass_on(heard: _Heard, watch: Watch) -> PruneTaylorError | None:
    failure = None
    while not heard.lines.empty():
        said: dict[str, Any] = json.loads(heard.lines.get())
        if "note" in said:
            watch.note(said["note"])
        else:
            failure = _KINDS[said["kind"]](said["cause"], said["remedy"])
    return failure


@contextlib.contextmanager
def _started(name: str, crew: EngineContext, log: IO[str]) -> Iterator[tuple[subprocess.Popen[str], _Heard]]:
    """The driver and what it says; it takes back what it started where this process leaves it."""
    process = subprocess.Popen(
        python("-m", "prunetaylor.sweep.engines._driver"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process to pass on
    )
    assert process.stdin is not None
    assert process.stdout is not None
    told = _Heard(process.stdout)
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"engine": name, "crew": crew.plain()}) + "\n")
            process.stdin.flush()
        yield process, told
    finally:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        told.close()


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the jobs and tasks are being taken back already
    raise Terminated


def _end_with_starter(starter: int) -> None:
    """The pipe ends when the starter does. Jobs of a batch system go on; whoever resumes the sweep finds them."""
    while os.read(starter, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
