"""A sweep's folder from somebody else may hold links: nothing that they lead to is changed or claimed away."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from prunetaylor.cli.main import run as run_command_line
from prunetaylor.core.errors import OutputError
from prunetaylor.sweep.file import read
from prunetaylor.sweep.folder import DIGEST, lead_lock, prepare_folder, stored_digest
from prunetaylor.sweep.heartbeat import Heartbeat, live_workers
from prunetaylor.sweep.study.journal import open_journal
from prunetaylor.sweep.study.study import JOURNAL
from prunetaylor.sweep.trial.files import (
    ERROR,
    SAMPLES,
    copy_log,
    current_phase,
    make_folder,
    trial_folder,
    write_description,
    write_error,
)
from support.sweeps import Inline

WORDS = ["net.pt", "model.arch=net.py:make", "data.source=none", "prune.method=magnitude", "device=cpu", "-o", "out"]


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    (folder / "0001" / ".partial").mkdir(parents=True)
    (folder / "file").write_text("precious")
    (folder / "0001" / "error.txt").write_text("precious")
    (folder / "0001" / ".partial" / "log.jsonl").write_text("precious")
    return folder


@pytest.mark.parametrize("name", ["trials", "trials/0001", "trials/0001/error.txt", "trials/0001/.partial"])
def test_errors_and_trials_stay_inside(name: str, outside: Path, tmp_path: Path) -> None:
    path = trial_folder(tmp_path / "sweep", 1)
    link = tmp_path / "sweep" / name
    link.parent.mkdir(parents=True)
    targets = {
        "trials": outside,
        "trials/0001": outside / "0001",
        "trials/0001/.partial": outside / "0001" / ".partial",
    }
    link.symlink_to(targets.get(name, outside / "file"))
    before = tree(outside)
    write_error(path, "killed", "why")
    copy_log(path)
    assert tree(outside) == before
    if name in ("trials", "trials/0001"):
        with pytest.raises(OutputError, match="symbolic link"):
            make_folder(path)
    else:
        assert (path / ERROR).read_text().startswith("killed")


def test_workers_the_leader_and_the_journal_follow_no_link(outside: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    for name in ("workers", ".leader", JOURNAL, SAMPLES):
        (folder / name).symlink_to(outside if name == "workers" else outside / "file")
    before = tree(outside)
    with pytest.raises(OutputError), Heartbeat(folder, "host-1-x"):
        pass
    with pytest.raises(OutputError), lead_lock(folder):
        pass
    with pytest.raises(OutputError, match="symbolic link"):
        open_journal(folder / JOURNAL)
    (outside / "file").write_text("{}")
    write_description(folder, "halves")
    assert (outside / "file").read_text() == "{}"
    assert not (folder / SAMPLES).is_symlink()
    (outside / "file").write_text("precious")
    assert tree(outside) == before


def test_a_worker_that_is_a_link_is_dead_and_its_link_goes(outside: Path, tmp_path: Path) -> None:
    room = tmp_path / "sweep" / "workers"
    room.mkdir(parents=True)
    (room / "host-1-x").symlink_to(outside / "file")
    before = tree(outside)
    assert live_workers(tmp_path / "sweep") == []
    assert not (room / "host-1-x").is_symlink()
    assert tree(outside) == before


def test_results_take_the_place_of_links(inline: Inline, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file of a finished sweep in turn lies elsewhere, with a link in its place, as the sweep is shown again."""
    inline(*WORDS, "-m", "prune.sparsity=0.5")
    names = sorted(path.name for path in (task / "out").iterdir())
    assert {"best.yaml", "report.html", "trials", JOURNAL} <= set(names)
    for name in names:
        folder, outside = task / f"with-{name}", task / f"outside-{name}"
        shutil.copytree(task / "out", folder)
        outside.mkdir()
        shutil.move(folder / name, outside / "target")
        (folder / name).symlink_to(outside / "target")
        before = tree(outside)
        for command in (["sweep", "--show", str(folder)], ["report", str(folder)], ["sweep", str(folder)]):
            assert run_command_line(command) in (0, 1, 2, 5), (name, command)
            assert tree(outside) == before, (name, command)
    told = capsys.readouterr().err
    assert "should not have happened" not in told


@pytest.mark.long
def test_no_link_is_followed_as_a_sweep_runs(inline: Inline, task: Path) -> None:
    """Each file in turn lies elsewhere as the last trial of a sweep runs."""
    inline(*WORDS, "-m", "prune.sparsity=0.5")
    names = sorted(str(path.relative_to(task / "out")) for path in (task / "out").rglob("*"))
    more = ["workers", "trials/0001/.partial", "trials/0001/error.txt", ".leader", "samples.json"]
    for i, name in enumerate(dict.fromkeys([*names, *more])):
        folder, outside = task / f"with-{i}", task / f"outside-{i}"
        shutil.copytree(task / "out", folder)
        if name != JOURNAL:
            (folder / JOURNAL).unlink()  # all trials are waiting again
        if not name.startswith("trials/0001"):
            shutil.rmtree(folder / "trials" / "0001")
        outside.mkdir()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (folder / name).exists():
            shutil.move(folder / name, outside / "target")
        else:
            (outside / "target").write_text("precious")
        (folder / name).symlink_to(outside / "target")
        before = tree(outside)
        run_command_line(["sweep", *WORDS[:-1], str(folder), "-m", "prune.sparsity=0.5"])
        assert tree(outside) == before, name


def test_a_full_disk_leaves_the_results_of_before(
    inline: Inline, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    inline(*WORDS, "-m", "prune.sparsity=0.5")
    before = tree(task / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        assert run_command_line(["sweep", "--show", "out"]) == 1
        assert run_command_line(["report", "out"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("File too large") == 2
    assert tree(task / "out") == before


def test_pipes_in_a_sweeps_folder_are_not_waited_for(tmp_path: Path) -> None:
    staging = trial_folder(tmp_path, 1) / ".partial"
    staging.mkdir(parents=True)
    for path in (tmp_path / DIGEST, staging / "log.jsonl", tmp_path / SAMPLES):
        os.mkfifo(path)
    with pytest.raises(OutputError, match="no regular file"):
        stored_digest(tmp_path)
    assert current_phase(tmp_path, 1) == ""
    copy_log(trial_folder(tmp_path, 1))
    write_description(tmp_path, "said")
    assert "said" in (tmp_path / SAMPLES).read_text()


def test_a_digest_of_any_bytes_is_no_sweeps(tmp_path: Path) -> None:
    (tmp_path / DIGEST).write_bytes(b"\xff\xfe\x80")
    assert stored_digest(tmp_path) != "0" * 64


def test_a_pipe_in_place_of_the_journal_is_refused(
    task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(task)
    prepare_folder(read(task / "sweep.yaml"), task / "out", resume=False)
    os.mkfifo(task / "out" / JOURNAL)
    for command in (["sweep", "--show", "out"], ["sweep", "sweep.yaml", "-o", "out"]):
        assert run_command_line(command) == 5
        assert "is no regular file\n  remove it" in capsys.readouterr().err
