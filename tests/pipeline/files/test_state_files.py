"""The state in a run's folder: what is damaged is found, and what is being written is written to its end."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from prunetaylor.core.errors import OutputError
from prunetaylor.pipeline.files.resume import FolderStateStore, UnreadableState, restoring
from prunetaylor.pipeline.files.run_folder import FolderInUse, RunFolder
from prunetaylor.pipeline.files.signals import Terminated, stop_at_checkpoints

IDENTITY = {"seed": 0}
STATE = {"weights": torch.arange(20_000.0)}


def keep(path: Path, before: Callable[[FolderStateStore], None]) -> None:
    """What a command does that keeps a state."""
    with RunFolder.create(path, "m") as folder:
        keeper = FolderStateStore(folder, 0, IDENTITY)
        with stop_at_checkpoints(keeper):
            before(keeper)
            keeper.save(STATE)


def kept(path: Path) -> Path:
    """The file of a state of a run that was stopped."""
    with pytest.raises(KeyboardInterrupt):
        keep(path, lambda keeper: setattr(keeper, "stop", KeyboardInterrupt))
    return path / ".partial" / "state.pt"


def left(path: Path) -> Any:
    with RunFolder.create(path, "m", resume=True) as folder:
        return FolderStateStore(folder, 0, IDENTITY).load()


def flipped(content: bytes) -> bytes:
    """A bit of the weights is another one."""
    at = content.index(STATE["weights"].numpy().tobytes()) + random.Random(3).randrange(80_000)
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_what_a_state_does_not_hold_is_refused_as_the_states_fault() -> None:
    for wrong in (lambda: {}["chunks"], lambda: torch.zeros(2).copy_(torch.zeros(3)), lambda: [None][0] + 1):
        with (
            pytest.raises(UnreadableState, match=r"does not belong to this run: \w+Error: [^\n]*\n.*--force") as caught,
            restoring(),
        ):
            wrong()
        assert caught.value.exit_code == 5


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "another file": lambda content: b"hello\n",
    "a pickle": lambda content: pickle.dumps({"run": 1}),
    "a bit": flipped,
    "something else": lambda content: saved([1, 2]),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_state_is_refused_and_left_as_it_is(what: str, tmp_path: Path) -> None:
    file = kept(tmp_path / "run")
    assert torch.equal(left(tmp_path / "run")["weights"], STATE["weights"])
    damaged = DAMAGE[what](file.read_bytes())
    file.write_bytes(damaged)
    with pytest.raises(UnreadableState, match=r"the state in .*\.partial cannot be read: .+\n.*--force"):
        left(tmp_path / "run")
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
def test_a_state_that_is_being_written_is_written_to_its_end(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second SIGTERM, or the end of the time to the next moment, comes in the middle of it."""
    save = torch.save

    def interrupted(value: object, file: IO[bytes]) -> None:
        signal.raise_signal(number)
        save(value, file)

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(Terminated):
        keep(tmp_path / "run", lambda keeper: signal.raise_signal(signal.SIGTERM))
    assert torch.equal(left(tmp_path / "run")["weights"], STATE["weights"])


def test_who_comes_second_never_takes_the_folder_away(tmp_path: Path) -> None:
    """Remains of a killed run are there, and two runs start over them."""
    remains = tmp_path / "run" / ".partial"
    remains.mkdir(parents=True)
    (remains / "log.jsonl").write_text("{}\n")
    waiting = (remains / "log.jsonl").open("a")  # the second has opened the log, and not locked it yet
    with RunFolder.create(tmp_path / "run", "m") as folder:
        assert os.path.samestat(os.fstat(waiting.fileno()), (remains / "log.jsonl").stat())
        assert (remains / "log.jsonl").read_text() == ""
        with pytest.raises(FolderInUse):
            RunFolder.create(tmp_path / "run", "m", force=True)
        folder.log("still here")
        assert "still here" in (remains / "log.jsonl").read_text()
    waiting.close()


def test_a_run_that_was_killed_while_its_files_were_moved_up_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    (path / ".partial").mkdir(parents=True)
    (path / ".partial" / "log.jsonl").write_text("{}\n")
    (path / ".partial" / "report.json").write_text('{"schema_version": 1}')
    (path / "model.safetensors").write_text("new")
    with pytest.raises(OutputError, match="not belong to a run"):
        RunFolder.create(path, "m")
    with RunFolder.create(path, "m", resume=True) as folder:
        assert not folder.finished
        folder.write_text("report.json", '{"schema_version": 1}')
        folder.commit()
    assert sorted(file.name for file in path.iterdir()) == ["log.jsonl", "model.safetensors", "report.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_a_full_disk_is_called_so_whatever_was_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system does not say of which file."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def state(folder: RunFolder) -> None:
        FolderStateStore(folder, 0, IDENTITY).save({"weights": torch.zeros(3_000_000)})

    def text(folder: RunFolder) -> None:
        folder.write_text("config.yaml", "seed: 0")

    def log(folder: RunFolder) -> None:
        folder.log("phase", name="x" * 100_000)

    for name, write in {"state.pt.new": state, "config.yaml": text, "log.jsonl": log}.items():
        with RunFolder.create(tmp_path / name, "m") as folder:
            if write is log:
                assert folder._log is not None
                folder._log.close()
                folder._log = Path("/dev/full").open("w")  # noqa: SIM115
            else:
                monkeypatch.setattr(os, "fsync", full)
            with pytest.raises(OutputError, match=r"writ.*\.partial.*: No space left on device\n.*(room|space)"):
                write(folder)
