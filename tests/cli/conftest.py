import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from prunetaylor.cli.main import run as run_command_line
from prunetaylor.core.progress import Silent
from prunetaylor.pipeline import demo
from support.commands import write_model

Inline = Callable[..., tuple[int, str, str]]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """This process's, without what would change a result; one thread, as the tests share two cores."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PRUNETAYLOR_", "CI"))}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture
def cli(tmp_path: Path, environment: dict[str, str]) -> Cli:
    """Runs the real command line in a process of its own, in tmp_path."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "prunetaylor.cli.main", *arguments],
            cwd=cwd,
            env=environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inline:
    """The same in this process, which has torch already: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for key in [key for key in os.environ if key.startswith(("PRUNETAYLOR_", "CI"))]:
        monkeypatch.delenv(key)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = run_command_line(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def small_model(conv: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that name model.pt of a small network, its code and its samples: a run takes a second."""
    return write_model(conv, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like that of `prunetaylor demo`, from training of a third as long."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    path = tmp_path_factory.mktemp("demo") / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "EPOCHS", 5)
        demo.make(path, seed=0, force=False, progress=Silent())
    return path


@pytest.fixture(scope="session")
def good_run(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.pt and runs/model-1, its network at 50 %, which lost next to nothing."""
    return _run_of(demo_model, tmp_path_factory.mktemp("good"), "50%")


@pytest.fixture(scope="session")
def magnitude_run(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same at 80 %, which lost several points."""
    return _run_of(demo_model, tmp_path_factory.mktemp("magnitude"), "80%")


def _run_of(model: Path, here: Path, sparsity: str) -> Path:
    shutil.copy(model, here / "model.pt")
    words = ["--sparsity", sparsity, "--epochs", "0", "prune.method=magnitude", "device=cpu", "-q"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert run_command_line(["prune", "model.pt", *words]) == 0
    return here
