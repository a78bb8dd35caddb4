"""The example configurations are valid, and the embedded one runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prunetaylor.cli.main import run
from prunetaylor.core.config.keys import leaves
from prunetaylor.core.config.resolve import DEFAULT, resolve
from prunetaylor.core.progress import Silent
from prunetaylor.pipeline.demo import make
from prunetaylor.runtime.user_code import load_object
from prunetaylor.sweep.file import read

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "configs").glob("sweep_*.yaml"))
CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - set(SWEEPS))


def test_there_are_some() -> None:
    names = {
        "digits.yaml",
        "cifar10_resnet20.yaml",
        "mnist_lenet.yaml",
        "imagenet_resnet50.yaml",
        "one_shot.yaml",
        "gradual.yaml",
    }
    assert {path.name for path in CONFIGS} >= names
    assert {read(path).engine["name"] for path in SWEEPS} == {"local", "ray", "slurm"}
    assert {read(path).method for path in SWEEPS} == {"grid", "random", "bayes"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_is_valid_and_says_something(path: Path) -> None:
    found = resolve(path, {}, [], {})
    said = [key for key, origin in found.origins.items() if origin != DEFAULT]
    assert said
    assert all(found.origins[key].startswith(f"{path}:") for key in said)
    assert found.config.model_dump() != resolve(None, {}, [], {}).config.model_dump()
    arch = found.config.model.arch
    if arch is not None and ".py:" in arch:  # from the top of the repository, as the file says
        assert callable(load_object(str(ROOT / arch)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_names_how_it_is_used(path: Path) -> None:
    comment = path.read_text().split("\n\n")[0]
    assert f"-c configs/{path.name}" in comment


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_a_sweep_is_valid_and_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # files of code are named from the top of the repository
    found = read(path)
    assert found.size >= 10
    assert not found.ignored
    arch = found.base.config.model.arch
    if arch is not None and ".py:" in arch:
        assert callable(load_object(str(ROOT / arch)))
    comment = path.read_text().split("\nmethod")[0]
    assert f"prunetaylor sweep configs/{path.name}" in comment
    words = re.findall(r"[a-z_]+\.[a-z_]+=", comment)
    assert all(word[:-1] in dict(leaves()) for word in words)


def make_demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """The demo network after a few epochs, as model.pt in the working directory; its top-1."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.setattr("prunetaylor.pipeline.demo.EPOCHS", 4)
    monkeypatch.chdir(folder)
    demo = make(Path("model.pt"), seed=0, force=False, progress=Silent())
    assert demo.top1 > 90
    return demo.top1


@pytest.mark.long
@pytest.mark.parametrize("name", ["sweep_digits.yaml", "sweep_digits_bayes.yaml"])
def test_the_sweeps_of_the_digits_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_demo(tmp_path, monkeypatch)
    words = [str(ROOT / "configs" / name), "calibration.samples=120", "prune.stages=1", "prune.refine=none"]
    assert run(["sweep", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["done"] == read(ROOT / "configs" / name).size
    assert found["best"]["reported"]["top1"] > 80
    assert run(["prune", "model.pt", "-c", f"{found['folder']}/best.yaml", "-q"]) == 0


def test_digits_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    top1 = make_demo(tmp_path, monkeypatch)
    words = ["prune", "model.pt", "-c", str(ROOT / "configs" / "digits.yaml"), "--json", "calibration.samples=120"]
    assert run(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sparsity"]["asked"] == 0.8
    assert report["sparsity"]["removed"] == round(0.8 * report["sparsity"]["prunable"])
    stages = [stage for stage in report["stages"] if stage["accepted"]]  # how many is the trust region's to say
    assert len(stages) >= 2
    assert stages[-1]["sparsity"] == pytest.approx(0.8)
    assert report["epochs"] == []
    assert report["dense"]["metrics"]["top1"] == pytest.approx(top1)
    assert report["drop_pp"]["value"] < 5
