"""Who leads a sweep, when it stops, and which folder it gets."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.schema import Section
from prunetaylor.core.errors import OutputError, PruneTaylorError, UsageError
from prunetaylor.core.results.sweep import Trial
from prunetaylor.sweep import leader
from prunetaylor.sweep.engine_context import EngineContext, EngineMonitor
from prunetaylor.sweep.engines import local
from prunetaylor.sweep.file import read
from prunetaylor.sweep.folder import lead_lock, open_study, prepare_folder, read_stored
from prunetaylor.sweep.leader import make_context, run_leader, run_worker

FILE = """
method: grid
metric: {name: top1}
parameters: {seed: {values: [1, 2, 3, 4, 5, 6]}}
base: {model: {checkpoint: net.pt}}
"""
TRUST = Trust()


class Seen:
    """Keeps what was shown last, and all notes."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.notes: list[str] = []

    def show(self, trials: list[Trial]) -> None:
        self.trials = trials

    def note(self, text: str) -> None:
        self.notes.append(text)


Nobody = Seen


class NoMonitor:
    def __call__(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def engine_that_fails(bad: set[int]) -> SimpleNamespace:
    """Takes trials in this process, some of which fail."""

    def run(context: EngineContext, monitor: EngineMonitor) -> None:
        study = open_study(context.folder, context.storage)
        while (claimed := study.claim("me")) is not None:
            if claimed.number in bad:
                study.fail(claimed, f"trial {claimed.number} is bad")
            else:
                study.complete(claimed, {"metrics": {"top1": float(claimed.number)}})
            monitor()

    return SimpleNamespace(Options=Section, run=run)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt").write_bytes(b"x")
    (tmp_path / "s.yaml").write_text(FILE)
    return tmp_path


def states(folder: Path, monkeypatch: pytest.MonkeyPatch, bad: set[int], limit: int | None) -> list[str]:
    sweep = read(folder / "s.yaml")
    home = prepare_folder(sweep, Path("out"), resume=False)
    seen = Seen()
    monkeypatch.setattr(leader, "load_engine", lambda name: engine_that_fails(bad))
    trials = run_leader(sweep, make_context(sweep, home, None, TRUST), seen, max_failures=limit)
    assert seen.trials == trials
    return [trial.state for trial in trials]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, "done failed done failed done done"),
        (1, "done failed" + 4 * " waiting"),
        (2, "done failed done failed" + 2 * " waiting"),
    ],
)
def test_it_stops_after_so_many_failures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: str
) -> None:
    assert states(folder, monkeypatch, {2, 4}, limit) == expected.split()
    assert states(folder, monkeypatch, set(), limit) == ["done"] * 6


def test_one_leads_and_others_join(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = read(folder / "s.yaml")
    home = prepare_folder(sweep, Path("out"), resume=False)
    context = make_context(sweep, home, None, TRUST)
    open_study(home, None).enqueue_missing()
    monkeypatch.setattr(leader, "load_engine", lambda name: engine_that_fails(set()))
    with lead_lock(home):
        with pytest.raises(UsageError, match="out is running"):
            run_leader(sweep, context, Nobody())
        assert {trial.state for trial in run_worker(sweep, context, Nobody())} == {"done"}


def test_the_same_file_gets_the_same_folder(folder: Path) -> None:
    sweep = read(folder / "s.yaml")
    assert prepare_folder(sweep, None, resume=False) == Path("sweeps/s-1")
    assert prepare_folder(sweep, None, resume=True) == Path("sweeps/s-1")
    assert read_stored(Path("sweeps/s-1")).plain() == sweep.plain()
    (folder / "s.yaml").write_text(FILE.replace("[1, ", "["))
    other = read(folder / "s.yaml")
    assert prepare_folder(other, None, resume=False) == Path("sweeps/s-2")
    assert prepare_folder(sweep, None, resume=False) == Path("sweeps/s-1")
    with pytest.raises(OutputError, match="holds another sweep"):
        prepare_folder(other, Path("sweeps/s-1"), resume=False)
    (folder / "net.pt").write_bytes(b"y")
    with pytest.raises(OutputError, match="the checkpoint has changed"):
        prepare_folder(sweep, Path("sweeps/s-1"), resume=False)


def test_a_folder_that_is_not_of_a_sweep_is_refused(folder: Path) -> None:
    sweep = read(folder / "s.yaml")
    with pytest.raises(OutputError, match="is not empty, and holds no sweep"):
        prepare_folder(sweep, folder, resume=False)
    with pytest.raises(OutputError, match="new does not hold this sweep"):
        prepare_folder(sweep, Path("new"), resume=True)
    assert not Path("new").exists()
    with pytest.raises(PruneTaylorError, match="holds no sweep"):
        read_stored(folder)
    (folder / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write file/inner"):
        prepare_folder(sweep, Path("file") / "inner", resume=False)


def test_a_sweep_in_a_database_is_not_looked_for_in_a_file(folder: Path) -> None:
    home = prepare_folder(read(folder / "s.yaml"), Path("out"), resume=False)
    url = f"sqlite:///{folder}/state.db"
    assert open_study(home, url).enqueue_missing() == 6
    assert open_study(home, url).waiting == 6
    with pytest.raises(UsageError, match=r"in a database \(sqlite\)"):
        open_study(home, None)
    assert not (home / "journal.log").exists()


def test_a_sweep_in_a_file_is_not_begun_again_in_a_database(folder: Path) -> None:
    home = prepare_folder(read(folder / "s.yaml"), Path("out"), resume=False)
    with pytest.raises(UsageError, match="cannot open the storage"):
        open_study(home, "nonsense://x")
    assert open_study(home, None).enqueue_missing() == 6  # a database that was never opened holds nothing
    with pytest.raises(UsageError, match=r"is in journal\.log"):
        open_study(home, f"sqlite:///{folder}/state.db")


def test_a_start_that_was_killed_is_begun_again(folder: Path) -> None:
    sweep = read(folder / "s.yaml")
    home = prepare_folder(sweep, Path("out"), resume=False)
    (home / "sweep.yaml").unlink()  # the last that a start writes
    assert prepare_folder(sweep, Path("out"), resume=False) == home
    assert read_stored(home).plain() == sweep.plain()


WORKER = """
import json, os, signal, sys
from pathlib import Path
from prunetaylor.sweep.folder import open_study
if not Path("healthy").exists():
    os.kill(os.getpid(), signal.SIGKILL)
settings = json.loads(sys.stdin.readline())
study = open_study(Path(settings["folder"]), None)
while (claimed := study.claim(settings["worker"])) is not None:
    study.complete(claimed, {"metrics": {"top1": 1.0}})
"""


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_worker_that_dies_before_it_has_a_trial_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """After three deaths in a row the sweep ends with an error."""
    sweep = read(folder / "s.yaml")
    home = prepare_folder(sweep, Path("out"), resume=False)
    started: list[tuple[str, ...]] = []

    def python(*words: str) -> list[str]:
        started.append(words)
        if len(started) > deaths:
            Path("healthy").touch()
        return [sys.executable, "-c", WORKER]

    monkeypatch.setattr(local, "python", python)
    if deaths == 3:
        with pytest.raises(PruneTaylorError, match="before they run a trial"):
            run_leader(sweep, make_context(sweep, home, None, TRUST), Nobody())
    else:
        trials = run_leader(sweep, make_context(sweep, home, None, TRUST), Nobody())
        assert {trial.state for trial in trials} == {"done"}
    assert len(started) == 3


@pytest.mark.parametrize(
    ("device", "jobs", "expected"),
    [("auto", None, ["3", "5"]), ("auto", 3, ["3", "5", "3"]), ("cuda", 1, ["3"]), ("cpu", None, [None])],
)
def test_gpus_are_handed_out_one_a_worker(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, jobs: int | None, expected: list[str | None]
) -> None:
    sweep = read(folder / "s.yaml")
    home = prepare_folder(sweep, Path("out"), resume=False)
    open_study(home, None).enqueue_missing()
    seen: list[str | None] = []

    class Process(subprocess.Popen[str]):
        def __init__(self, command: list[str], *, env: dict[str, str], **others: Any) -> None:
            seen.append(env["CUDA_VISIBLE_DEVICES"] if env["CUDA_VISIBLE_DEVICES"] != "3,5" else None)
            if len(seen) == len(expected):
                open_study(home, None).stop("enough")
            super().__init__([sys.executable, "-c", "import sys; sys.stdin.readline()"], env=env, **others)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(local.shutil, "which", lambda name: f"/usr/bin/{name}")  # nvidia-smi: there may be a GPU
    monkeypatch.setattr(local.subprocess, "Popen", Process)
    context = replace(make_context(sweep, home, None, TRUST), device=device, options={"jobs": jobs})
    local.run(context, NoMonitor())
    assert seen == expected
