"""Python that lies in the working directory is data like anything else there: no process of ours runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.sweeps import write_task

_PLANTED = (
    *("click", "cloudpickle", "json", "numpy", "optuna", "pickle", "prunetaylor", "pydantic", "random", "ray"),
    *("rich", "shlex", "sitecustomize", "sqlalchemy", "submitit", "tempfile", "torch", "torchvision", "typing", "yaml"),
)
_ENGINES = {
    "local": "{name: local, jobs: 1}",
    "slurm": "{name: slurm, cluster: local, jobs: 1}",
    "ray": "{name: ray, jobs: 1}",
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A task whose network is the user's own file, which imports torchvision and a neighbour, in a folder of traps."""
    write_task(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "neighbour.py").write_text((tmp_path / "net.py").read_text())
    (tmp_path / "net.py").unlink()
    (tmp_path / "mine" / "net.py").write_text("import torchvision\nfrom neighbour import make\n")
    text = (tmp_path / "sweep.yaml").read_text().replace('"net.py:make"', '"mine/net.py:make"')
    text = text.replace("[0.2, 0.5, 0.8]", "[0.5]").replace("[magnitude, random]", "[magnitude]")
    (tmp_path / "sweep.yaml").write_text(text)
    for name in _PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name + chr(10)!r})\n")
    return tmp_path


_INSTALLED = ("-P", "-m", "prunetaylor.cli.main")


def run(here: Path, environment: dict[str, str], *words: str, start: tuple[str, ...] = _INSTALLED) -> None:
    """The command, by default as it is installed: its own script lies elsewhere."""
    command = [sys.executable, *start, *words]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert not (here / "ran").exists(), (here / "ran").read_text()


@pytest.mark.parametrize(
    "engine", ["local", *(pytest.param(name, marks=pytest.mark.long) for name in ("ray", "slurm"))]
)
def test_a_sweep_runs_nothing_that_lies_about(here: Path, environment: dict[str, str], engine: str) -> None:
    if engine != "local":
        pytest.importorskip({"slurm": "submitit"}.get(engine, engine), reason="an extra")
    with (here / "sweep.yaml").open("a") as file:
        file.write(f"engine: {_ENGINES[engine]}\n")
    run(here, environment, "sweep", "sweep.yaml", "-o", "out", "-q")
    assert (here / "out" / "best.yaml").exists()


def test_processes_that_share_a_command_run_nothing_either(here: Path, environment: dict[str, str]) -> None:
    words = ["net.pt", "--arch", "mine/net.py:make", "--data", "arrays:data.npz", "--device", "cpu"]
    run(here, environment, "eval", *words, "--nproc", "2")


def test_python_dash_m_forgets_where_it_was_started(here: Path, environment: dict[str, str]) -> None:
    """What Python imports to find the package is its own affair; all that the package imports is ours."""
    for name in ("sitecustomize", "prunetaylor"):
        (here / f"{name}.py").unlink()
    run(here, environment, "inspect", "net.pt", start=("-m", "prunetaylor"))
