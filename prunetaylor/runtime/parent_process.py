"""End a process with its parent, however the parent ended: a pipe that only the parent holds open shows it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable


def end_with_parent(pipe: int, *, exit_code: int, grace: float = 0.0, notify: Callable[[], None] | None = None) -> None:
    """Start a thread that ends this process as soon as the other end of ``pipe`` is closed.

    With a ``grace`` (seconds) the process gets SIGTERM first, and ``exit_code`` ends it after the grace: a signal does
    not interrupt every wait, such as that for a process which is gone too. ``notify`` is called before.
    """

    def wait() -> None:
        while os.read(pipe, 1024):  # the parent writes nothing, or nothing more
            pass
        if notify is not None:
            notify()
        if grace:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace)
        os._exit(exit_code)

    threading.Thread(target=wait, daemon=True).start()
