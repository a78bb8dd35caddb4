"""What scripts/test.sh checks depends on nothing that a user's work leaves in the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.fresh import clone, is_clone, stranger, tracked

pytestmark = pytest.mark.skipif(not is_clone(), reason="needs a git clone")


def work(clone: Path) -> None:
    """Leave in a clone what users leave: results, data, scripts of their own, names that are also packages'."""
    helpers = [path.stem for path in (clone / "tests" / "support").glob("*.py")]
    for name in ("runs/model-1", "sweeps/digits-1", "data", "support", "torchvision", "prune", *helpers):
        (clone / name).mkdir(parents=True, exist_ok=True)
    ugly = "import os, sys\nimport torch\nfrom runs import *\nx=undefined"
    for name in ("net.py", "tests.py", "test_mine.py", "configs/mine.py", "runs/model-1/net.py"):
        (clone / name).write_text(ugly)
    for name in ("conftest.py", "click.py", "optuna.py", "support/__init__.py"):
        (clone / name).write_text("raise RuntimeError('a file of the user')\n")
    (clone / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")


def ruff(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("ruff")
    words = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--config", "ruff.toml", "."]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_linter_looks_at_the_projects_own_files_and_at_all_of_them(tmp_path: Path) -> None:
    work(clone(tmp_path))
    for check in (["check"], ["format", "--check"]):
        done = ruff(tmp_path, *check)
        assert done.returncode == 0, done.stdout
    seen = {str(Path(line).relative_to(tmp_path)) for line in ruff(tmp_path, "check", "--show-files").stdout.split()}
    assert seen == set(tracked("*.py")), "ruff.toml includes what ruff is to look at"


def test_no_helper_of_the_tests_is_named_like_a_folder_of_results() -> None:
    results = {"runs", "sweeps", "data", "gate"}
    assert not results & {Path(name).stem for name in tracked("tests/*.py") if Path(name).parent == Path("tests")}


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_the_readmes_two_commands_one_after_the_other_twice(tmp_path: Path) -> None:
    """The linter and the types are whole; of the tests a few run, without this one."""
    here = clone(tmp_path / "clone")
    some = ["-k", "test_arrows or test_the_pages_show_every_command or test_the_linter"]
    for round in (1, 2):
        for words in (["scripts/quickstart.sh"], ["scripts/test.sh", *some]):
            done = subprocess.run(
                ["bash", *words],
                cwd=here,
                env=stranger(tmp_path / "home") | {"PRUNETAYLOR_PRUNE_SPARSITY": "60%"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        assert (here / "runs" / f"model-{round}" / "report.html").is_file()
        work(here)
