"""A sweep over a network that learns in no time: a trial is a matter of tenths of a second."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

NET = '''
import os, signal, sys, time
from torch import nn

def make(fail="no", pause=0.0, width=8):
    """A small network; some of its arguments are accidents."""
    time.sleep(pause)
    if fail == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fail == "leaves":
        os._exit(0)
    if fail == "exits":
        sys.exit(0)
    if fail == "reads":
        sys.stdin.read()
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
Start = Callable[..., subprocess.Popen[str]]


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
