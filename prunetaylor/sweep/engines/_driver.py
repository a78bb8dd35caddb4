"""A cluster's engine in a process of its own, whose libraries print to a log in the sweep's folder.

The leading process stays unharmed whatever happens to the cluster: Ray, for instance, ends its driver when the head is
lost, and prints pages before it does. ``run`` starts the driver and reads its messages; the engine's ``drive`` runs in
the driver. The driver gets the context as a line of JSON on stdin, which stays open as long as its parent lives, and
answers in lines of JSON.
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
from typing import IO, Any

from prunetaylor.core import registry
from prunetaylor.core.errors import PruneTaylorError, UsageError
from prunetaylor.core.files import open_own
from prunetaylor.core.text import error_line
from prunetaylor.pipeline.files.signals import Terminated, first_signal_terminates
from prunetaylor.runtime.parent_process import end_with_parent
from prunetaylor.runtime.python_process import python
from prunetaylor.sweep.engine_context import EngineContext, EngineFailed, EngineMonitor
from prunetaylor.sweep.engines import ClusterEngine

_PAUSE = 0.2  # seconds between two readings of the driver's messages
_GRACE = 60.0  # seconds that a driver has to stop the jobs that it started
_READING_TIME = 5.0  # seconds to read its last messages
_ERRORS = {kind.__name__: kind for kind in (PruneTaylorError, UsageError, EngineFailed)}


def run(name: str, context: EngineContext, monitor: EngineMonitor) -> None:
    """Drive the engine ``name`` until no trial waits. An error of the driver is raised here."""
    log = context.folder / f"{name}.log"
    with open_own(log, "a") as out, _started(name, context, out) as (process, messages):
        failure: PruneTaylorError | None = None
        while True:
            over = process.poll() is not None
            monitor()
            failure = _relay(messages, monitor) or failure
            if over and not messages.more_expected():
                break
            time.sleep(_PAUSE)
    if failure is None and process.returncode:
        code = process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        failure = EngineFailed(
            f"the engine {name} ended unexpectedly ({how}); the cluster may be lost", f"see its output in {log}"
        )
    if failure is not None:
        raise failure


def main() -> int:
    """Run the driver, and return its exit code: 1 after an error, which it has reported."""
    request = json.loads(sys.stdin.readline())
    parent, stream = os.dup(0), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # everything that prints, in Python or below it, prints to the log
    # Jobs of a batch system continue without their driver; the next leader of the sweep finds their results.
    end_with_parent(parent, exit_code=1)
    reporter = _MessageWriter(stream)
    context = EngineContext.from_plain(request["context"])
    try:
        with first_signal_terminates((signal.SIGTERM,)):
            registry.load(registry.ENGINES, ClusterEngine, request["engine"]).drive(context, reporter)
    except Terminated:
        return 0
    except PruneTaylorError as err:
        reporter.fail(type(err).__name__, err.cause, err.remedy)
        return 1
    except Exception as err:
        traceback.print_exc()
        text = error_line(err)
        reporter.fail("EngineFailed", f"the engine {request['engine']} failed: {text}", "its log has the details")
        return 1
    return 0


class _MessageWriter:
    """Sends notes and errors to the leading process."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __call__(self) -> None:
        pass

    def note(self, text: str) -> None:
        self._write({"note": text})

    def fail(self, kind: str, cause: str, remedy: str) -> None:
        self._write({"kind": kind if kind in _ERRORS else "EngineFailed", "cause": cause, "remedy": remedy})

    def _write(self, message: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()


class _MessageReader:
    """The lines that the driver has written; a thread of their own reads them."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.lines.put(line)

    def close(self) -> None:
        """Wait for the last lines; the driver has ended, and its end of the pipe is closed."""
        self._thread.join(_READING_TIME)

    def more_expected(self) -> bool:
        """Return whether more lines may come. A process that the driver started may hold the pipe open for a while."""
        self._thread.join(0.5)
        return not self.lines.empty()


def _relay(messages: _MessageReader, monitor: EngineMonitor) -> PruneTaylorError | None:
    failure = None
    while not messages.lines.empty():
        message: dict[str, Any] = json.loads(messages.lines.get())
        if "note" in message:
            monitor.note(message["note"])
        else:
            failure = _ERRORS[message["kind"]](message["cause"], message["remedy"])
    return failure


@contextlib.contextmanager
def _started(name: str, context: EngineContext, log: IO[str]) -> Iterator[tuple[subprocess.Popen[str], _MessageReader]]:
    """Start the driver, and at the end let it stop the jobs that it started."""
    process = subprocess.Popen(
        python("-m", "prunetaylor.sweep.engines._driver"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,  # this process passes Ctrl-C on
    )
    assert process.stdin is not None
    assert process.stdout is not None
    messages = _MessageReader(process.stdout)
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"engine": name, "context": context.plain()}) + "\n")
            process.stdin.flush()
        yield process, messages
    finally:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        messages.close()


if __name__ == "__main__":
    sys.exit(main())
