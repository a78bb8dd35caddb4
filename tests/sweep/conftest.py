"""Sweeps over a network that learns nothing: small enough that a trial is a matter of tenths of a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from prunetaylor.cli.main import run as run_command_line
from torch import nn

NET = '''
import os, signal, time
from torch import nn

def make(fail="no", pause=0.0, width=8):
    """A small network; some of its arguments are accidents."""
    time.sleep(pause)
    if fail == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fail == "memory":
        raise MemoryError("no room")
    if fail == "bug":
        raise ZeroDivisionError("a bug of somebody's")
    if fail == "twice" and not os.path.exists("once"):
        open("once", "w").close()
        os._exit(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))
'''

SWEEP = """
method: grid
metric: {name: top1, goal: maximize}
parameters:
  prune.sparsity: {values: [0.2, 0.5, 0.8]}
  prune.method: {values: [magnitude, random]}
base:
  model: {checkpoint: net.pt, arch: "net.py:make"}
  data: {source: "arrays:data.npz", normalize: none}
  calibration: {samples: 40}
  prune: {repair: none, stages: 1, refine: none}
  finetune: {epochs: 0}
  device: cpu
"""

Inline = Callable[..., str]
Run = Callable[..., subprocess.CompletedProcess[str]]


def write_task(here: Path) -> None:
    """A checkpoint, its network's file, samples of three classes and a sweep in ``here``."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=generator)
    y = torch.arange(240) % 3
    x = centres[y] + 0.7 * torch.randn(240, 16, generator=generator)
    (here / "net.py").write_text(NET)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:120]), y[:120]).backward()
        optimizer.step()
    torch.save(net.state_dict(), here / "net.pt")
    x, y = x.reshape(-1, 1, 4, 4).numpy(), y.numpy()
    np.savez(here / "data.npz", x_train=x[:120], y_train=y[:120], x_test=x[120:], y_test=y[120:])
    (here / "sweep.yaml").write_text(SWEEP)


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
def start(task: Path, environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
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
