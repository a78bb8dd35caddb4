import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    """This process's, without what would change a result; one thread, as the tests share two cores."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PRUNETAYLOR_", "CI"))}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs the real command line in a process of its own, in tmp_path."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "prunetaylor.cli.main", *arguments],
            cwd=cwd,
            env=environment() | (env or {}),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `prunetaylor demo` makes."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    path = tmp_path_factory.mktemp("demo") / "model.pt"
    done = subprocess.run(
        [sys.executable, "-m", "prunetaylor.cli.main", "demo", "-o", str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path
