"""Stdout is for the result: one JSON object, rows of CSV or a path, whatever user code and its children print."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.sweeps import write_task

LOUD = """
import atexit, os, subprocess, sys, threading, time
import torch
from torch import nn

print("imported")
subprocess.run(["echo", "ninja: no work to do."])
atexit.register(print, "at exit")
atexit.register(os.write, 1, b"at exit, by descriptor\\n")
atexit.register(subprocess.run, ["echo", "a child at exit"])
sys.__stdout__.write("the first stdout\\n")

def chat():
    while True:
        print("from a thread", flush=True)
        time.sleep(0.01)

threading.Thread(target=chat, daemon=True).start()

class Loud(nn.Sequential):
    def forward(self, x):
        print("forward")
        os.write(1, b"forward, by descriptor\\n")
        return super().forward(x)

def make(**_):
    return Loud(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
"""
_MODEL = ["net.pt", "--arch", "loud.py:make", "--data", "arrays:data.npz", "--device", "cpu"]
_QUICK = ["calibration.samples=40", "prune.method=magnitude", "prune.refine=none", "finetune.epochs=0"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    write_task(tmp_path)
    (tmp_path / "loud.py").write_text(LOUD)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["eval", *_MODEL],
        ["eval", *_MODEL, "--nproc", "2"],
        pytest.param(["prune", *_MODEL, *_QUICK, "-o", "out"], marks=pytest.mark.long),
        pytest.param(["check", *_MODEL, "--baseline", "net.pt", "--max-drop", "90"], marks=pytest.mark.long),
        pytest.param(["prune", *_MODEL, *_QUICK, "--dry-run"], marks=pytest.mark.long),
        pytest.param(["score", *_MODEL, *_QUICK], marks=pytest.mark.long),
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_json_is_one_object(here: Path, cli, words: list[str]) -> None:
    done = cli(*words, "--json")
    assert done.returncode in (0, 4), done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stdout.count("\n") == 1
    for said in ("ninja: no work to do.", "at exit", "a child at exit", "from a thread", "forward, by descriptor"):
        assert said in done.stderr


def test_a_quiet_run_prints_its_path(here: Path, cli) -> None:
    done = cli("prune", *_MODEL, *_QUICK, "-o", "out", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{here / 'out'}\n"


@pytest.mark.long
def test_rows_of_a_sweep(here: Path, cli) -> None:
    text = (here / "sweep.yaml").read_text().replace("net.py:make", "loud.py:make").replace("[0.2, 0.5, 0.8]", "[0.5]")
    (here / "sweep.yaml").write_text(text.replace("[magnitude, random]", "[magnitude]"))
    done = cli("sweep", "sweep.yaml", "-o", "out", "--csv")
    assert done.returncode == 0, done.stderr
    assert len(list(csv.DictReader(done.stdout.splitlines()))) == 1


def test_a_reader_that_is_gone_is_no_error(here: Path, environment: dict[str, str]) -> None:
    words = [sys.executable, "-P", "-m", "prunetaylor.cli.main", "config"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=here)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_help_and_errors_are_where_they_belong(cli) -> None:
    done = cli("eval", "--help")
    assert done.stdout.startswith("Usage:")
    assert done.stderr == ""
    done = cli("eval", "nothing.pt", "--json")
    assert done.stdout == ""
    assert "error: " in done.stderr
