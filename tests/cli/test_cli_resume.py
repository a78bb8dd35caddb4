"""The real command, killed at random moments and resumed."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from prunetaylor.cli.main import run
from prunetaylor.core.errors import NumericsError
from prunetaylor.core.progress import Progress
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.pipeline import run as pipeline
from prunetaylor.pipeline.job import Job

_RUN = ["--sparsity", "90%", "--epochs", "2", "calibration.samples=200", "prune.schedule=cubic", "prune.stages=4"]
# The default's first stage takes ten times as long here as that of obs.
_RUN += ["prune.method=obs", "prune.refine=stages", "prune.refine_steps=4"]
_EVERY = ["checkpoint.every=0"]


@pytest.fixture(scope="module")
def command(small_model: list[str], environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    def start(folder: Path, *more: str, every: int = 0) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "prunetaylor.cli.main", "prune", *small_model, "-o", str(folder)]
        return subprocess.Popen(
            [*words, *_RUN, f"checkpoint.every={every}", *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = command(folder)
    _, errors = done.communicate(timeout=240)
    assert done.returncode == 0, errors
    return folder


def events(folder: Path) -> int:
    """Lines of the log of a run at work."""
    log = folder / ".partial" / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def kill(process: subprocess.Popen[str], folder: Path, after: int, kind: signal.Signals, wait: float = 0.0) -> int:
    """Send a signal once the log has grown by so many lines, and a little later; the exit code."""
    before, end = events(folder), time.monotonic() + 200
    while process.poll() is None and events(folder) < before + after and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(kind)
    process.communicate(timeout=60)
    return process.returncode


def assert_same(folder: Path, whole: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (folder / ".partial").exists()
    one, other = (json.loads((path / "report.json").read_text()) for path in (folder, whole))
    for key in ("dense", "pruned", "drop_pp", "sparsity", "layers", "skipped"):
        assert one[key] == other[key], key
    assert [epoch["validation"] for epoch in one["epochs"]] == [epoch["validation"] for epoch in other["epochs"]]


def test_kill_9_changes_nothing(command, whole: Path, tmp_path: Path) -> None:
    """Once, in the midst of a stage; a stop at every single moment is what tests/pipeline/files/test_resume.py has."""
    folder = tmp_path / "run"
    process, end = command(folder), time.monotonic() + 200
    while process.poll() is None and not (folder / ".partial" / "state.pt").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert kill(process, folder, 4, signal.SIGKILL) == -signal.SIGKILL
    done = command(folder, "--resume")
    _, errors = done.communicate(timeout=240)
    assert done.returncode == 0, errors
    assert "measure the dense network" not in errors  # its measures are part of the state that it goes on from
    assert_same(folder, whole)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("schedule", ["cubic", "one-shot"])
def test_kill_9_twenty_times_changes_nothing(command, tmp_path: Path, schedule: str) -> None:
    more, whole = (f"prune.schedule={schedule}", "--resume"), tmp_path / "whole"
    _, errors = command(whole, *more).communicate(timeout=240)
    assert (whole / "report.json").exists(), errors
    for turn in range(5):
        folder, chance = tmp_path / f"run-{turn}", random.Random(turn)
        for _ in range(4):
            kill(command(folder, *more), folder, chance.randint(0, 30), signal.SIGKILL, 3 * chance.random())
        done = command(folder, *more)
        _, errors = done.communicate(timeout=240)
        assert done.returncode == 0, errors
        assert_same(folder, whole)


def test_sigterm_keeps_the_state_and_says_how_to_go_on(
    command, inline, small_model: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = command(folder, every=1000)
    log, deadline = folder / ".partial" / "log.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and '"measured"' in log.read_text():  # a stage is done
            break
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "ended by SIGTERM" in errors
    assert f"--resume -o {folder}" in errors
    assert sorted(file.name for file in (folder / ".partial").iterdir()) == ["log.jsonl", "state.pt"]

    state = folder / ".partial" / "state.pt"
    kept = state.read_bytes()
    two = torch.load(state, weights_only=True)
    two["inputs"]["processes"] = 2  # as if it had been started with --nproc 2
    two["inputs"]["version of torch"] = "1.0"
    two["inputs"]["form of the state"] = 1
    torch.save(two, state)
    words = ["prune", *small_model, "-o", str(folder), *_RUN, *_EVERY]
    code, _, errors = inline(*words, "--resume", "finetune.lr=0.01", "seed=3")
    state.write_bytes(kept)
    assert code == 2
    assert "finetune.lr was auto and is 0.01" in errors
    assert "seed was 0 and is 3" in errors
    assert "processes was 2 and is 1" in errors
    assert "version of torch was 1.0 and is" in errors
    assert "form of the state was 1 and is" in errors
    assert "continue with the same command" not in errors  # which is the one that was refused
    code, _, errors = inline(*words)
    assert code == 2
    assert "holds a run that was interrupted" in errors
    assert "--resume" in errors

    done = command(folder, "--resume")
    _, errors = done.communicate(timeout=240)
    assert done.returncode == 0, errors
    assert_same(folder, whole)


def test_sigterm_after_the_last_moment_leaves_a_finished_run(
    small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = pipeline.evaluate_on_test

    def late(job: Job, module: nn.Module, progress: Progress, phase: str, *dense: nn.Module) -> Evaluation | None:
        if phase == "measure the pruned network":
            signal.raise_signal(signal.SIGTERM)
        return measure(job, module, progress, phase, *dense)

    monkeypatch.setattr(pipeline, "evaluate_on_test", late)
    words = [*small_model, "--sparsity", "50%", "--epochs", "0", "calibration.samples=100", "prune.refine=none"]
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(["prune", *words, "-q", "-o", str(tmp_path / "run")]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "run" / "report.json").exists()
    assert not (tmp_path / "run" / ".partial").exists()


def test_a_finished_run_is_left_as_it_is(inline, small_model: list[str], whole: Path) -> None:
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in whole.iterdir()}
    words = ["prune", *small_model, "-o", str(whole), *_RUN, *_EVERY, "--resume"]
    code, out, errors = inline(*words, "--json")
    assert code == 0, errors
    assert json.loads(out) == json.loads((whole / "report.json").read_text())
    code, _, errors = inline(*words, "--seed", "1")
    assert code == 2
    assert "seed was 0 and is 1" in errors
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in whole.iterdir()} == before


def test_a_full_disk_is_said_and_the_last_state_stays(tmp_path: Path, demo_model: Path, environment) -> None:
    """The limit on a file's size stands for the disk: a state before training is smaller than one with its momentum."""
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "prunetaylor.cli.main", "prune", str(demo_model), "-o", str(folder)]
    words += ["--sparsity", "50%", "--epochs", "1", "calibration.samples=60", "prune.method=magnitude"]
    code = (
        "import resource, signal, sys, os\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000))\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words, *_EVERY, "cache.enabled=false"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert f"cannot write {folder}/.partial/state.pt" in done.stderr
    assert "free some space, then continue from the last state with --resume" in done.stderr
    assert not (folder / "report.json").exists()
    assert sorted(file.name for file in (folder / ".partial").iterdir()) == ["log.jsonl", "state.pt"]
    assert torch.load(folder / ".partial" / "state.pt", weights_only=True)["run"]["finetuning"] is None


def test_force_and_resume_are_one_or_the_other(inline, small_model: list[str]) -> None:
    code, _, errors = inline("prune", *small_model, "--force", "--resume")
    assert code == 2
    assert "give one of them" in errors


def test_resume_without_a_folder_takes_the_last_run(inline, small_model: list[str]) -> None:
    words = ["prune", *small_model, "calibration.samples=60", "prune.stages=1", "prune.refine=none", "--resume"]
    assert inline(*words)[0] == 0
    folder = Path("runs/model-1")
    before = (folder / "report.json").read_text()
    code, out, _ = inline(*words)
    assert code == 0
    assert "is already finished; nothing was changed" in out
    assert (folder / "report.json").read_text() == before
    assert [path.name for path in Path("runs").iterdir()] == ["model-1"]


def test_a_run_short_of_its_sparsity_is_kept_and_fails_each_time(inline, small_model: list[str]) -> None:
    words = ["prune", *small_model, "-o", "mine", "--epochs", "1", "calibration.samples=60"]
    words += ["prune.method=magnitude"]
    words += ["prune.schedule=linear", "prune.stages=2", "finetune.lr=1e6"]  # diverges before the second stage
    for more in ([], ["--resume"]):
        code, out, errors = inline(*words, "--json", *more)
        assert code == 1
        assert "25.00% are removed where 50.00% were asked for, as the training loss is" in errors
        assert "finetune.lr" in errors
        report = json.loads(out)
        assert report["sparsity"]["obtained"] == pytest.approx(0.25, abs=1e-3)
        assert report["unfinished"]["cause"] in errors
        assert Path("mine/model.safetensors").exists()
        assert not Path("mine/.partial").exists()


def test_a_run_that_ends_the_same_way_each_time_is_not_to_be_gone_on_with(
    inline, small_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = pipeline.evaluate_on_test

    def broken(job: Job, module: nn.Module, progress: Progress, phase: str, *dense: nn.Module) -> Evaluation | None:
        if phase == "measure the pruned network":
            raise NumericsError("the loss is nan", "try something else")
        return measure(job, module, progress, phase, *dense)

    words = ["calibration.samples=60", "prune.method=magnitude", "--epochs", "1", "-o", "mine", *_EVERY]
    monkeypatch.setattr(pipeline, "evaluate_on_test", broken)
    code, _, errors = inline("prune", *small_model, *words)
    monkeypatch.setattr(pipeline, "evaluate_on_test", measure)
    assert code == 1
    assert "the loss is nan" in errors
    assert "--force" in errors
    assert "another folder than mine" in errors
    assert "go on with" not in errors
    assert Path("mine/.partial/state.pt").exists()
    code, _, errors = inline("prune", *small_model, *words, "--force")
    assert code == 0, errors
    assert not Path("mine/.partial").exists()


def test_code_that_has_changed_is_another_run(inline, tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text("from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), tmp_path / "net.pt")
    words = [
        "prune",
        str(tmp_path / "net.pt"),
        "--arch",
        f"{code}:net",
        "--data",
        "digits",
        "-o",
        str(tmp_path / "run"),
    ]
    words += ["calibration.samples=60", "prune.method=magnitude"]
    assert inline(*words)[0] == 0
    hashes = json.loads((tmp_path / "run" / "report.json").read_text())["hashes"]
    assert hashes["code of the network"] == hashlib.sha256(code.read_bytes()).hexdigest()
    assert inline(*words, "--resume")[0] == 0
    code.write_text(code.read_text().replace("10))", "10), nn.ReLU())"))
    status, _, errors = inline(*words, "--resume")
    assert status == 2
    assert "hash of the code of the network was" in errors
