"""What is shown while a sweep runs."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from prunetaylor.cli.terminal.live_table import LiveTable
from prunetaylor.core.results.sweep import Trial

_CODE = """
from pathlib import Path
from prunetaylor.cli.terminal.live_table import LiveTable
from prunetaylor.core.results.sweep import Trial

def trials(*states):
    causes = {"failed": "out of memory"}
    return [
        Trial(i, state, {"prune.sparsity": i / 10}, {"top1": 90.0} if state == "done" else {}, cause=causes.get(state))
        for i, state in enumerate(states, 1)
    ]

with LiveTable(Path("."), ["top1"], 0) as table:
    table.show(trials("running", "waiting", "waiting"))
    table.show(trials("done", "running", "waiting"))
    table.show(trials("done", "failed", "running"))
"""


def test_a_live_table_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR", "COLUMNS")}
    env["TERM"] = "xterm-256color"
    with subprocess.Popen(
        [sys.executable, "-c", _CODE], stdout=theirs, stderr=theirs, stdin=theirs, env=env
    ) as process:
        os.close(theirs)
        chunks = []
        with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
            while chunk := os.read(ours, 4096):
                chunks.append(chunk)
        os.close(ours)
    text = b"".join(chunks).decode()
    assert process.returncode == 0, text
    assert "0 done, 1 running, of 3" in text
    assert "1 done, 1 running, 1 failed, of 3" in text
    assert "> sparsity=0.1 starts" in text
    assert "trial 1 (sparsity=0.1): top-1 90.00 %" in text
    assert "trial 2 (sparsity=0.2) failed: out of memory" in text
    assert "\x1b[" in text


def test_one_line_a_trial_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Trial(1, "done", {"seed": 1}, {"top1": 91.0, "seconds": 2.0})
    stopped = Trial(2, "stopped", {"seed": 2}, progress=((1, -0.5), (3, -0.25)))
    before = [Trial(1, "done", {"seed": 1}, {"top1": 91.0}), Trial(2, "running", {}), Trial(3, "running", {})]
    with LiveTable(tmp_path, ["top1"], 0) as table:
        table.show(before)
        table.show([done, stopped, Trial(3, "failed", {"seed": 3}, cause="killed")])
        table.show([done, stopped, Trial(3, "failed", {"seed": 3}, cause="killed")])
    assert capsys.readouterr().err.splitlines() == [
        "note: 1 of 3 trials are already done",
        "trial 2 (seed=2) stopped early, at step 3 with 0.25",
        "trial 3 (seed=3) failed: killed",
    ]
    with LiveTable(tmp_path, ["top1"], -1) as table:
        table.show(before)
        table.show([done, stopped, Trial(3, "failed", {"seed": 3}, cause="killed")])
    assert capsys.readouterr().err == "trial 3 (seed=3) failed: killed\n"
