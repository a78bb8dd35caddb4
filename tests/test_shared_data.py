"""A real network on real images: a few hundred of them in the short tier, the promised numbers in the long one.

PRUNING_TEST_DATA names a folder with cifar10-jpeg.zip, resnet20-cifar10-jpeg.pt and mnist.tar.xz.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from prunetaylor import load
from prunetaylor.cli.main import run
from support.verdicts import assert_valid_json, assert_valid_junit

ROOT = Path(__file__).parents[1]
ARCH = f"{ROOT / 'configs' / 'resnet20_cifar.py'}:resnet20"
FIELDS = {
    "": "schema_version metric dense pruned sparsity drop_pp stages first_order layers skipped seconds files seed "
    "device versions hashes",
    "metric": "name goal",
    "dense": "metrics parameters nonzero flops flops_nonzero bytes",
    "pruned": "metrics parameters nonzero flops flops_nonzero bytes",
    "sparsity": "asked obtained prunable removed",
    "drop_pp": "value low high",
    "stages.0": "sparsity predicted_change measured_change gain_ratio seconds",
    "first_order": "share gradient_norm noise_norm kept labels",
    "layers.0": "name shape removed sparsity",
    "versions": "prunetaylor python torch torchvision",
    "hashes": "checkpoint data",
    "files": "folder model report config log",
}
pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def shared() -> Path:
    named = os.environ.get("PRUNING_TEST_DATA")
    if not named:
        pytest.skip("PRUNING_TEST_DATA does not name the folder of the shared CIFAR-10 and MNIST files")
    return Path(named).resolve()


def unzipped(shared: Path, into: Path, train: int | None = None, test: int | None = None) -> Path:
    """The images, or the first so many of each class, by name."""
    left: dict[str, int | None] = {"train": train, "test": test}
    counts: dict[str, int] = {}
    with zipfile.ZipFile(shared / "cifar10-jpeg.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                folder = name.rpartition("/")[0]
                counts[folder] = counts.get(folder, 0) + 1
                most = left[name.partition("/")[0]]
                if most is None or counts[folder] <= most:
                    archive.extract(name, into)
    return into


@pytest.fixture(scope="module")
def few(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unzipped(shared, tmp_path_factory.mktemp("few"), train=20, test=30)


def test_resnet20_on_a_few_images(
    shared: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = str(shared / "resnet20-cifar10-jpeg.pt")
    source = ["--arch", ARCH, "--data", f"folder:{few}", "data.normalize=imagenet", "data.workers=0", "--device", "cpu"]
    how = ["--sparsity", "50%", "--epochs", "0", "calibration.samples=60", "prune.stages=1", "prune.refine_steps=10"]
    how += ["-o", "run", "--json"]
    assert run(["prune", checkpoint, *source, *how]) == 0
    report = json.loads(capsys.readouterr().out)
    for path, names in FIELDS.items():
        assert set(names.split()) <= set(at(report, path)), path
    assert report["metric"] == {"name": "top1", "goal": "max", "unit": "%"}
    cut = report["sparsity"]
    # every weight of the convolutions and the head: He et al. 2016, section 4.2
    assert cut["prunable"] == 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2) + 640
    assert cut["removed"] == round(0.5 * cut["prunable"])
    assert report["dense"]["metrics"]["top1"] == pytest.approx(88, abs=6)
    assert report["drop_pp"]["low"] <= report["drop_pp"]["value"] <= report["drop_pp"]["high"]
    assert report["drop_pp"]["value"] < 6
    assert report["dense"]["flops"] == pytest.approx(81.1e6, rel=0.02)  # 40.6 M multiply-adds (He et al. 2016)
    assert 0.2 < report["pruned"]["flops_nonzero"] / report["pruned"]["flops"] < 0.9
    assert [stage["sparsity"] for stage in report["stages"]] == pytest.approx([0.5], abs=1e-4)
    assert all(stage["predicted_change"] > 0 and stage["seconds"] > 0 for stage in report["stages"])
    assert sum(stage["measured_change"] for stage in report["stages"]) > 0
    assert len(report["layers"]) == 20
    assert report["skipped"] == []
    network = load("run", arch=ARCH)
    zeros = sum(int((dict(network.named_parameters())[f"{la['name']}.weight"] == 0).sum()) for la in report["layers"])
    assert zeros >= cut["removed"]
    assert run(["eval", "run", *source, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["metrics"]["top1"] == pytest.approx(report["pruned"]["metrics"]["top1"], abs=0.4)


def at(document: Any, path: str) -> Any:
    for part in path.split(".") if path else []:
        document = document[int(part)] if part.isdigit() else document[part]
    return document


@pytest.fixture(scope="module")
def cifar(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unzipped(shared, tmp_path_factory.mktemp("cifar"))


@pytest.fixture(scope="module")
def mnist(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MNIST/raw and lenet.pt, trained by the benchmark's script."""
    root = tmp_path_factory.mktemp("mnist")
    with tarfile.open(shared / "mnist.tar.xz") as archive:
        # Python 3.11.0 to 3.11.3 know no filters; the archive is the project's own.
        archive.extractall(root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    command = [sys.executable, str(ROOT / "benchmarks" / "train_mnist.py"), str(root), str(root / "lenet.pt")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=1800)
    return root


@pytest.fixture(scope="module")
def mnist_run(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet at 90 %, without fine-tuning."""
    here = tmp_path_factory.mktemp("mnist_run")
    source = ["--data", "torchvision:MNIST", f"data.root={mnist}"]
    pruned(here, str(mnist / "lenet.pt"), *source, "--sparsity", "90%", "--epochs", "0", "-o", str(here / "run"))
    return here / "run"


def pruned(here: Path, *words: str) -> tuple[dict[str, Any], float]:
    """The report of the real command line, and its peak memory in GiB."""
    with (here / "out").open("w") as out, (here / "err").open("w") as err:
        command = [sys.executable, "-m", "prunetaylor.cli.main", "prune", *words, "--json"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (here / "err").read_text()
    return json.loads((here / "out").read_text()), usage.ru_maxrss / 2**20


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("sparsity", "most"), [("70%", 2.0), ("80%", 4.0), ("90%", 18.0)])
def test_resnet20_one_shot(shared: Path, cifar: Path, tmp_path: Path, sparsity: str, most: float) -> None:
    report, memory = pruned(
        tmp_path,
        str(shared / "resnet20-cifar10-jpeg.pt"),
        *("--arch", ARCH, "--data", f"folder:{cifar}", "data.normalize=imagenet", "--device", "cpu"),
        *("--sparsity", sparsity, "--epochs", "0", "calibration.labels=false", "-o", str(tmp_path / "run")),
    )
    assert report["configuration"]["calibration"]["samples"] == 1000
    assert report["dense"]["metrics"]["top1"] == pytest.approx(88.29, abs=0.03)
    assert report["drop_pp"]["value"] <= most
    assert memory <= 3
    assert report["seconds"]["total"] < 2 * 300  # five minutes on two cores; here another test may have one of them


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_resnet20_fine_tuned(shared: Path, cifar: Path, tmp_path: Path) -> None:
    report, _ = pruned(
        tmp_path,
        str(shared / "resnet20-cifar10-jpeg.pt"),
        *("-c", str(ROOT / "configs" / "cifar10_resnet20.yaml"), "--data", f"folder:{cifar}"),
        *("-o", str(tmp_path / "run")),
    )
    assert report["sparsity"]["asked"] == 0.9
    assert len(report["epochs"]) == 2
    assert report["drop_pp"]["value"] <= 4


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("epochs", "most"), [("0", 1.0), ("3", 0.3)])
def test_lenet(mnist: Path, tmp_path: Path, epochs: str, most: float) -> None:
    report, _ = pruned(
        tmp_path,
        str(mnist / "lenet.pt"),
        *("-c", str(ROOT / "configs" / "mnist_lenet.yaml"), f"data.root={mnist}", "--epochs", epochs),
        *("-o", str(tmp_path / "run")),
    )
    assert report["sparsity"]["asked"] == 0.95
    assert report["dense"]["parameters"] == 431_080
    assert report["dense"]["metrics"]["top1"] > 98.5
    assert report["drop_pp"]["value"] <= most


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        (["--max-drop", "1pp", "--min-sparsity", "90%", "--max-flops", "95%"], "pass", 0),
        (["--max-drop", "1pp", "--max-size", "1MB"], "fail", 3),
        (["--max-drop", "itself"], "inconclusive", 4),
    ],
)
def test_the_gate_on_mnist(
    mnist: Path, mnist_run: Path, tmp_path: Path, limits: list[str], status: str, code: int
) -> None:
    """LeNet at 90 % loses a tenth of a point: 10,000 samples tell that this is less than one point, and little more."""
    source = ["--data", "torchvision:MNIST", f"data.root={mnist}"]
    drop = max(0.0, json.loads((mnist_run / "report.json").read_text())["drop_pp"]["value"])
    limits = [f"{drop:g}pp" if word == "itself" else word for word in limits]
    command = [sys.executable, "-m", "prunetaylor.cli.main", "check", str(mnist_run), *source, *limits, "--json"]
    done = subprocess.run([*command, "--junit", str(tmp_path / "gate.xml")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == status
    assert found["samples"] == 10_000
    assert_valid_json(found)
    assert_valid_junit((tmp_path / "gate.xml").read_text())


def test_the_checkpoint_is_what_it_was(shared: Path) -> None:
    """The numbers above are of this file."""
    content = torch.load(shared / "resnet20-cifar10-jpeg.pt", weights_only=True)
    assert content["top1"] == pytest.approx(88.29)
