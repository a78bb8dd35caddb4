"""Several processes through the real command line: what is printed, what is written, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunetaylor import load
from prunetaylor.cli.main import run
from prunetaylor.cli.support.launch import environment_of
from prunetaylor.core.errors import DataError
from support.processes import free_port

_QUICK = ["calibration.samples=61", "prune.stages=1", "prune.method=obd", "prune.refine=none", "data.workers=0"]
_FILES = ["config.yaml", "log.jsonl", "model.safetensors", "report.html", "report.json"]

# Samples of which the second process cannot read one; MODE says how that ends.
_DATA = """
import os, signal, time, torch

class Samples(torch.utils.data.Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if os.environ.get("RANK") == "1" and os.environ["MODE"] == "error":
            raise ValueError("torn")
        if os.environ.get("RANK") == "1" and os.environ["MODE"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("RANK") == "1" and os.environ["MODE"] == "gone":
            os._exit(3)
        if os.environ["MODE"] == "slow":
            open(f"reached-{os.environ['RANK']}-{os.getpid()}", "w").close()
            time.sleep(60)
        return torch.zeros(1, 8, 8), index % 10

def datasets():
    return Samples(50), Samples(21)
"""


@pytest.fixture(scope="module")
def pruned(
    demo_model: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> tuple[Path, dict[str, object], dict[str, object]]:
    """The working directory of a run on two processes, its document, and that of a run on one."""
    here, words = tmp_path_factory.mktemp("nproc"), ["prune", str(demo_model), *_QUICK]
    command = [sys.executable, "-m", "prunetaylor.cli.main", *words, "--json", "--nproc", "2"]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("] calibrate") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert run([*words, "-q"]) == 0
    return here, json.loads(done.stdout), json.loads((here / "runs" / "model-2" / "report.json").read_text())


def test_two_processes_write_one_run_and_say_what_one_says(pruned) -> None:
    here, two, one = pruned
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["model-1", "model-2"]
    assert sorted(p.name for p in (here / "runs" / "model-1").iterdir()) == _FILES
    assert two["files"]["folder"] == str((here / "runs" / "model-1").resolve())
    for document in (one, two):
        assert len(document["hashes"].pop("model")) == 64  # their last bits may differ
    for key in ("sparsity", "layers", "hashes", "drop_pp"):
        assert two[key] == one[key]
    for side in ("dense", "pruned"):
        assert two[side]["metrics"] == pytest.approx(one[side]["metrics"], rel=1e-3)
        assert two[side]["nonzero"] == one[side]["nonzero"]
    assert "processes: 2, sharing the samples" in two["choices"]
    first, second = (load(here / "runs" / name).state_dict() for name in ("model-1", "model-2"))
    for name, tensor in first.items():
        assert (tensor == 0).equal(second[name] == 0), name


def test_eval_as_torchrun_starts_it(pruned, environment: dict[str, str]) -> None:
    """Two processes with the environment that torchrun gives them; test samples, 359, that two does not divide."""
    here, two, _ = pruned
    port = free_port()
    started = []
    for rank in range(2):
        place = environment_of(rank, 2, port, environment)
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "prunetaylor.cli.main", "eval", "runs/model-1", "--json"],
                cwd=here,
                env=environment | place,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert json.loads(said[0][0])["metrics"] == pytest.approx(two["pruned"]["metrics"], rel=1e-4)
    assert said[1] == ("", "")


def test_what_cannot_be_meant(inline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in environment_of(0, 2, 1, os.environ).items():
        monkeypatch.setenv(name, value)
    code, stdout, stderr = inline("prune", "m.pt", "--nproc", "4")
    assert (code, stdout) == (2, "")
    assert "torchrun has started as one of 2" in stderr
    monkeypatch.setenv("RANK", "1")
    assert inline("prune", "m.pt", "--nproc", "4") == (2, "", "")  # the first one says it
    assert inline("prune", "--sparcity") == (2, "", "")
    code, _, stderr = inline("prune", "m.pt", "--nproc", "1")
    assert code == 2
    assert "no such file" in stderr  # alone, with a voice of its own
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_wrong_starts_nothing(cli, tmp_path: Path) -> None:
    done = cli("prune", "m.pt", "--nproc", "2", "prune.sparcity=0.8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("error: ") == 1
    assert "did you mean 'prune.sparsity'" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_an_error_of_all_processes_is_said_once(cli, tmp_path: Path) -> None:
    done = cli("prune", "none.pt", "--nproc", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("error: ") == 1
    assert "no such file" in done.stderr
    assert list(tmp_path.iterdir()) == []


@contextmanager
def failing(model: Path, here: Path, environment: dict[str, str], mode: str) -> Iterator[subprocess.Popen[str]]:
    (here / "data.py").write_text(_DATA)
    words = ["prune", str(model), "--data", "data.py:datasets", "--nproc", "2", "-o", "r", *_QUICK]
    command = [sys.executable, "-m", "prunetaylor.cli.main", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=here, env=environment | {"MODE": mode}, **pipes) as process:
        yield process


@pytest.mark.parametrize(
    ("mode", "code", "message"),
    [
        ("error", DataError.exit_code, "process 1 of 2: sample "),
        pytest.param("gone", 3, "process 1 ended with exit code 3 and no message", marks=pytest.mark.long),
        pytest.param("killed", 137, "process 1 was ended by SIGKILL", marks=pytest.mark.long),
    ],
)
def test_a_failure_of_the_second_process_ends_both(
    demo_model: Path, tmp_path: Path, environment: dict[str, str], mode: str, code: int, message: str
) -> None:
    with failing(demo_model, tmp_path, environment, mode) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert stderr.count("error: ") == 1
    assert f"error: {message}" in stderr
    assert "Traceback" not in stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["data.py"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.long) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_signals_end_all_processes(demo_model: Path, tmp_path: Path, environment: dict[str, str], number: int) -> None:
    with failing(demo_model, tmp_path, environment, "slow") as process:
        deadline = time.monotonic() + 100
        while len(reached := list(tmp_path.glob("reached-*"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    children = [int(path.name.split("-")[2]) for path in reached]
    wanted = {signal.SIGTERM: (143, "ended by SIGTERM"), signal.SIGINT: (130, "interrupted")}
    if number in wanted:
        assert (process.returncode, stderr.splitlines()[-1]) == (wanted[number][0], f"error: {wanted[number][1]}")
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline + 30
        time.sleep(0.1)
    assert not (tmp_path / "r").exists()


@pytest.mark.long
def test_two_interrupted_processes_resume_with_the_same_bits(
    demo_model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    words = ["prune", str(demo_model), "--nproc", "2", "--epochs", "12", "prune.method=magnitude", *_QUICK[:2]]

    def start(folder: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "prunetaylor.cli.main", *words, "-o", folder, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)

    process, log = start("r", "checkpoint.every=1000"), tmp_path / "r" / ".partial" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and "epoch 2:" in log.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "--resume -o r" in errors
    assert (tmp_path / "r" / ".partial" / "state.pt").exists()
    for folder, more in (("r", ["--resume"]), ("whole", [])):
        again = start(folder, *more)
        _, errors = again.communicate(timeout=240)
        assert again.returncode == 0, errors
    one, other = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("r", "whole"))
    assert one == other
