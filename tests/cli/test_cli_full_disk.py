"""Where the disk is full, every command leaves the files that were there as they were, and nothing half-written."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")

SMALL = 300  # bytes that a file may have: fewer than any of ours
CHECK = ["check", "runs/model-1", "--max-drop", "50pp", "device=cpu"]
COMMANDS = [
    ["report", "runs/model-1"],
    ["report", "runs/model-1", "-o", "page.html"],
    ["compare", "runs/model-1", "runs/model-2", "--html", "two.html"],
    [*CHECK, "--junit", "verdict.xml"],
    [*CHECK, "--markdown", "verdict.md"],
    ["prune", "model.pt", "prune.method=magnitude", "--epochs", "0", "device=cpu", "-o", "runs/model-2", "--force"],
    ["demo", "-o", "model.pt"],
]


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond SMALL bytes: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:1] + words[-2:]))
def test_the_old_files_are_whole(command: list[str], good_run: Path, tmp_path: Path, inline) -> None:
    shutil.copytree(good_run, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "runs" / "model-1", tmp_path / "runs" / "model-2")
    for name in ("page.html", "two.html", "verdict.xml", "verdict.md"):
        (tmp_path / name).write_text(f"the old {name}" * 100)
    before = tree(tmp_path)
    with full_disk():
        code, _, stderr = inline(*command)
    assert code == 1, stderr
    assert "cannot write" in stderr
    assert "File too large" in stderr
    assert "should not have happened" not in stderr
    assert tree(tmp_path) == before
    if command[0] != "demo":  # which trains for seconds
        code, _, stderr = inline(*command)  # there is room again
        assert code == 0, stderr
