"""A folder that came from somebody else may hold links: nothing that they lead to is changed or taken away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prunetaylor.core.errors import OutputError
from prunetaylor.pipeline.files.run_folder import (
    CONFIG_FILE,
    HTML_FILE,
    LOG,
    MODEL_FILE,
    REPORT,
    STAGING,
    STATE,
    RunFolder,
)

FINISHED = [REPORT, LOG, MODEL_FILE, CONFIG_FILE, HTML_FILE, "tensorboard"]
BEGUN = [STAGING, *(f"{STAGING}/{name}" for name in (STATE, f"{STATE}.new", *FINISHED))]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def fill(folder: Path) -> None:
    """What a run leaves in its folder, or has in the one that it stages in."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (LOG, MODEL_FILE, CONFIG_FILE, HTML_FILE):
        (folder / name).write_text("{}\n")
    (folder / REPORT).write_text(json.dumps({"schema_version": 1}))
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").write_text("numbers")


def put_elsewhere(path: Path, outside: Path, link: Callable[[Path, Path], None]) -> None:
    """What lies at ``path`` lies ``outside`` now, and a link in its place."""
    outside.mkdir()
    (outside / "more").write_text("precious")
    target = outside / "target"
    if path.exists():
        shutil.move(path, target)
    else:
        target.write_text("precious")
    link(target, path)


def symbolic(target: Path, path: Path) -> None:
    path.symlink_to(target)


def hard(target: Path, path: Path) -> None:
    if target.is_dir():
        pytest.skip("folders have no hard links")
    os.link(target, path)


def whole_run(path: Path, *, force: bool, resume: bool) -> None:
    """All that a run does to its folder."""
    with RunFolder.create(path, "m", force=force, resume=resume) as folder:
        if folder.finished:
            return
        folder.log("phase", name="x")
        folder.save_state(lambda file: file.write(b"state"))
        folder.save_state(lambda file: file.write(b"a later state"))
        folder.stage(MODEL_FILE).write_bytes(b"weights")
        board = folder.stage("tensorboard")
        board.mkdir(exist_ok=True)
        (board / "new").write_text("numbers")
        for name in (CONFIG_FILE, HTML_FILE):
            folder.write_text(name, "x")
        folder.write_text(REPORT, json.dumps({"schema_version": 1}))
        folder.commit()


def failed_run(path: Path, *, force: bool, resume: bool) -> None:
    with RunFolder.create(path, "m", force=force, resume=resume) as folder:
        if not folder.finished:
            folder.log("phase", name="x")
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", [{"force": True, "resume": False}, {"force": False, "resume": True}], ids=str)
@pytest.mark.parametrize("run", [whole_run, failed_run])
@pytest.mark.parametrize("link", [symbolic, hard])
@pytest.mark.parametrize("name", [*FINISHED, *BEGUN])
def test_no_link_in_a_runs_folder_is_followed(
    name: str, link: Callable[[Path, Path], None], run: Callable[..., None], how: dict[str, bool], tmp_path: Path
) -> None:
    path, outside = tmp_path / "run", tmp_path / "outside"
    if name in FINISHED:
        fill(path)
    else:
        fill(path / STAGING)
        (path / STAGING / STATE).write_text("state")
    put_elsewhere(path / name, outside, link)
    before = tree(outside)
    try:
        run(path, **how)
    except (OutputError, KeyboardInterrupt) as err:
        assert isinstance(err, KeyboardInterrupt) or err.remedy  # noqa: PT017
    assert tree(outside) == before


def test_a_link_that_the_user_names_as_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    whole_run(tmp_path / "run", force=False, resume=False)
    assert REPORT in tree(tmp_path / "disk")


def test_what_is_refused_says_which_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STAGING).symlink_to(tmp_path / "outside")
    with pytest.raises(OutputError, match=r"run/\.partial is a symbolic link") as caught:
        whole_run(tmp_path / "run", force=True, resume=False)
    assert "remove it" in caught.value.remedy
