"""The example configurations are valid, and the embedded one runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prunetaylor.cli.main import run

from prunetaylor.config.resolve import DEFAULT, resolve
from prunetaylor.demo import make
from prunetaylor.network.code import load_object
from prunetaylor.progress import Silent

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_some() -> None:
    assert {path.name for path in CONFIGS} >= {"digits.yaml", "cifar10_resnet20.yaml", "mnist_lenet.yaml"}


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


def test_digits_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.setattr("prunetaylor.demo.EPOCHS", 4)
    monkeypatch.chdir(tmp_path)
    demo = make(Path("model.pt"), seed=0, force=False, progress=Silent())
    assert demo.top1 > 90
    words = ["prune", "model.pt", "-c", str(ROOT / "configs" / "digits.yaml"), "--json", "calibration.samples=120"]
    assert run(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sparsity"]["asked"] == 0.8
    assert report["sparsity"]["removed"] == round(0.8 * report["sparsity"]["prunable"])
    stages = [stage for stage in report["stages"] if stage["accepted"]]  # how many is the trust region's to say
    assert len(stages) >= 2
    assert stages[-1]["sparsity"] == pytest.approx(0.8)
    assert report["epochs"] == []
    assert report["dense"]["metrics"]["top1"] == pytest.approx(demo.top1)
    assert report["drop_pp"]["value"] < 5
