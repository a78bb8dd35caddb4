"""The real command line on a small task, in a process of its own or in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prunetaylor.cli.main import run as run_command_line
from support.sweeps import Inline, Run, Start, write_task


@pytest.fixture
def task(tmp_path: Path) -> Path:
    write_task(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PRUNETAYLOR_", "CI"))}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def sweep(task: Path, environment: dict[str, str]) -> Run:
    """`prunetaylor sweep` in the task's folder, in a process of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prunetaylor.cli.main", "sweep", *arguments]
        return subprocess.run(
            command, cwd=task, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    return run


@pytest.fixture
def start(task: Path, environment: dict[str, str]) -> Start:
    """The same, not waited for."""

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "prunetaylor.cli.main", "sweep", *arguments]
        return subprocess.Popen(
            command,
            cwd=task,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return run


@pytest.fixture
def inline(task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inline:
    """`prunetaylor sweep` in the task's folder and in this process; stdout, where it went well."""
    monkeypatch.chdir(task)
    for key in [key for key in os.environ if key.startswith(("PRUNETAYLOR_", "CI"))]:
        monkeypatch.delenv(key)

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert run_command_line(["sweep", *arguments]) == 0
        return capsys.readouterr().out

    return run
