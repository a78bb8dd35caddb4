"""A run's folder: all of it or nothing, and nobody else's files touched."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from prunetaylor.core.errors import OutputError, OutputPlaceError
from prunetaylor.pipeline.files import run_folder
from prunetaylor.pipeline.files.run_folder import FolderInUse, RunFolder


def _finish(path: Path | None, name: str = "m", *, force: bool = False, text: str = "new") -> RunFolder:
    with RunFolder.create(path, name, force=force) as folder:
        folder.stage("model.safetensors").write_text(text)
        folder.write_text("report.json", json.dumps({"schema_version": 1}))
        folder.log("done", drop=1.5)
        folder.commit()
    return folder


def _fail(path: Path | None, error: type[BaseException], *, force: bool = False) -> None:
    with RunFolder.create(path, "net", force=force) as folder:
        folder.stage("model.safetensors").write_text("half")
        raise error("stop")


def test_a_finished_run(tmp_path: Path) -> None:
    _finish(tmp_path / "a" / "b")
    assert sorted(file.name for file in (tmp_path / "a" / "b").iterdir()) == [
        "log.jsonl",
        "model.safetensors",
        "report.json",
    ]
    line = json.loads((tmp_path / "a" / "b" / "log.jsonl").read_text())
    assert line["event"] == "done"
    assert line["drop"] == 1.5
    assert line["time"] > 1.7e9


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", "m") as folder:
        folder.write_text("report.json", "{}")
        assert [entry.name for entry in (tmp_path / "r").iterdir()] == [".partial"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ends_while_another_opens_its_folder_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    path, locked = tmp_path / "r", run_folder.try_lock

    def late(log: IO[str]) -> bool:
        monkeypatch.setattr(run_folder, "try_lock", locked)
        _finish(path)
        return locked(log)

    monkeypatch.setattr(run_folder, "try_lock", late)
    if resume:
        with RunFolder.create(path, "m", resume=True) as folder:
            assert folder.finished
    else:
        with pytest.raises(OutputPlaceError, match="run already"):
            RunFolder.create(path, "m")
    assert sorted(file.name for file in path.iterdir()) == ["log.jsonl", "model.safetensors", "report.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="stop"):
        _fail(tmp_path / "new" / "r", error)
    assert list(tmp_path.iterdir()) == []


def test_names_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _finish(None, "net").path == Path("runs/net-1")
    assert _finish(None, "net").path == Path("runs/net-2")
    assert _finish(None, "other").path == Path("runs/other-1")
    Path("runs/net-10").mkdir()
    assert _finish(None, "net").path == Path("runs/net-11")
    assert _finish(None, "../a b/c").path == Path("runs/_a_b_c-1")
    with pytest.raises(ValueError, match="stop"):
        _fail(None, ValueError)
    assert _finish(None, "net").path == Path("runs/net-12")


def test_a_run_is_replaced_only_with_force_and_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "r"
    _finish(path, text="old")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds a run already(.|\n)*--force"):
        RunFolder.create(path, "m")
    with pytest.raises(ValueError, match="stop"):
        _fail(path, ValueError, force=True)
    assert (path / "model.safetensors").read_text() == "old"
    assert (path / "report.json").exists()
    _finish(path, force=True)
    assert (path / "model.safetensors").read_text() == "new"
    assert (path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_files_of_others_are_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "model.safetensors").write_text("a dense network")
    with pytest.raises(OutputError, match=r"holds files that do not belong to a run \(model.safetensors\)"):
        RunFolder.create(tmp_path, "m", force=force)
    assert (tmp_path / "model.safetensors").read_text() == "a dense network"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    _finish(tmp_path)
    assert (tmp_path / "report.json").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        RunFolder.create(tmp_path / "f", "m")
    with pytest.raises(OutputError, match="cannot write"):
        RunFolder.create(tmp_path / "f" / "deeper", "m")


def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="cannot write /proc/nowhere"):
        RunFolder.create(Path("/proc/nowhere"), "m")


def test_room_is_asked_for_before_the_work(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", "m") as folder:
        folder.require(1)
        with pytest.raises(OutputError, match="MB left, and the run needs"):
            folder.require(2**62)


def test_two_runs_do_not_share_a_folder_and_a_killed_one_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "r"
    code = f"""
import os, time
from pathlib import Path
from prunetaylor.pipeline.files.run_folder import FolderInUse, RunFolder
folder = RunFolder.create(Path({str(path)!r}), "m")
if not os.fork():  # a child, such as one that decodes data, outlives the run that is killed
    print("ready", flush=True)
time.sleep(20)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(FolderInUse, match="another run is writing"):
            RunFolder.create(path, "m")
        other.kill()
    assert (path / ".partial").exists()
    _finish(path)
    assert not (path / ".partial").exists()


def test_an_interrupt_waits_until_the_run_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            _finish(tmp_path / "r")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(file.name for file in (tmp_path / "r").iterdir()) == ["log.jsonl", "model.safetensors", "report.json"]


def _keep(folder: RunFolder, text: str) -> None:
    folder.save_state(lambda file: file.write(text.encode()))


def _interrupted(path: Path | None, *states: str, name: str = "m") -> None:
    with RunFolder.create(path, name) as folder:
        for text in states:
            _keep(folder, text)
        folder.stage("model.safetensors").write_text("half")
        raise ValueError("stop")


def test_a_state_outlives_a_run_that_failed_and_goes_with_one_that_did_not(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with pytest.raises(ValueError, match="stop"):
        _interrupted(path, "first", "second")
    assert sorted(file.name for file in (path / ".partial").iterdir()) == ["log.jsonl", "state.pt"]
    with pytest.raises(OutputError, match=r"interrupted(.|\n)*--resume(.|\n)*--force"):
        RunFolder.create(path, "m")
    with RunFolder.create(path, "m", resume=True) as folder:
        assert folder.state is not None
        assert folder.state.read_text() == "second"
        assert not folder.finished
        folder.write_text("report.json", '{"schema_version": 1}')
        folder.commit()
    assert sorted(file.name for file in path.iterdir()) == ["log.jsonl", "report.json"]
    with RunFolder.create(path, "m", resume=True) as folder:
        assert folder.finished
        assert folder.report() == {"schema_version": 1}
    assert (path / "report.json").exists()


def test_a_state_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    def full(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with RunFolder.create(tmp_path / "r", "m") as folder:
        _keep(folder, "good")
        with pytest.raises(OutputError, match=r"No space left on device\n.*--resume"):
            folder.save_state(full)
    assert (tmp_path / "r" / ".partial" / "state.pt").read_text() == "good"
    assert not (tmp_path / "r" / ".partial" / "state.pt.new").exists()


def test_resume_without_a_state_starts_anew_and_force_drops_the_state(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", "m", resume=True) as folder:
        assert folder.state is None
        assert not folder.finished
    with pytest.raises(ValueError, match="stop"):
        _interrupted(tmp_path / "r", "old")
    with RunFolder.create(tmp_path / "r", "m", force=True) as folder:
        assert folder.state is None


def test_resume_without_a_path_takes_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _finish(None, "net")
    with pytest.raises(ValueError, match="stop"):
        _interrupted(None, "state", name="net")
    with RunFolder.create(None, "net", resume=True) as folder:
        assert folder.path == Path("runs/net-2")
        assert folder.state is not None
    with RunFolder.create(None, "other", resume=True) as folder:
        assert folder.path == Path("runs/other-1")
