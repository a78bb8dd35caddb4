"""The README and the pages of docs/ are run: their commands, their Python, their settings and their links."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prunetaylor import load
from prunetaylor.cli.main import run
from prunetaylor.core.config.keys import env_name, leaves
from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.data.load import load_samples
from prunetaylor.runtime.torchvision_import import import_torchvision

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
KEYS = dict(leaves())


def blocks(*languages: str, page: str = "README.md") -> list[str]:
    """The contents of fenced blocks."""
    text = (ROOT / page).read_text()
    return [block for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if language in languages]


def commands() -> list[str]:
    """Every `prunetaylor ...` of the bash and console blocks of all pages, then those in the README's text."""
    fenced = [block for page in PAGES for block in blocks("bash", "console", page=page)]
    lines = [line.removeprefix("$ ") for block in fenced for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return list(dict.fromkeys(text for text in [*lines, *spans] if text.startswith("prunetaylor ")))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's first two commands make, as they stand but for fewer samples and stages."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    first, second = (shlex.split(line)[1:] for line in commands()[:2])
    assert [first[0], second[0]] == ["demo", "prune"]
    here = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        quick(patch)
        assert run(first) == 0
        assert run(second) == 0
    return here


def quick(patch: pytest.MonkeyPatch) -> None:
    """The commands stay as they are: what makes them quick comes from the environment."""
    patch.setenv(env_name("calibration.samples"), "100")
    patch.setenv(env_name("prune.stages"), "1")
    patch.setenv(env_name("device"), "cpu")
    patch.setenv(env_name("memory"), "1TiB")  # what is free here is no matter


def resnet20() -> nn.Module:
    space: dict[str, Callable[[], nn.Module]] = {}
    exec((ROOT / "configs" / "resnet20_cifar.py").read_text(), space)
    return space["resnet20"]()


NET = """
from resnet20_cifar import resnet20

def make(depth: int):
    assert depth == 20
    return resnet20()
"""

DATA = """
import torch

def datasets():
    return [(torch.rand(n, 3, 32, 32), torch.arange(n) % 10) for n in (200, 20)]
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    """A folder with what the README's first run of a user's own network makes, as the command stands there."""
    here = tmp_path_factory.mktemp("own")
    [command] = [line for line in commands() if line.startswith("prunetaylor prune net.pt --arch net.py:resnet20")]
    equip(command, here, demo, here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        quick(patch)
        patch.setenv(env_name("prune.method"), "magnitude")
        assert run(shlex.split(command)[1:]) == 0
    return here


def equip(command: str, here: Path, demo: Path, own: Path) -> None:
    """Put into ``here`` what a command names."""
    if "runs/net-1" in command:
        shutil.copytree(own, here, dirs_exist_ok=True)
        return
    if "runs/" in command:
        shutil.copytree(demo, here, dirs_exist_ok=True)
    if "runs/model-2" in command:
        shutil.copytree(demo / "runs" / "model-1", here / "runs" / "model-2")
    if "model.pt" in command:
        shutil.copy(demo / "model.pt", here)
    if "configs/" in command:
        shutil.copytree(ROOT / "configs", here / "configs")
    if "net.pt" in command:
        large = "resnet50" in command
        module = import_torchvision().models.resnet50() if large else resnet20()
        torch.save(module.state_dict(), here / "net.pt")
    if "net.py" in command:
        (here / "net.py").write_text((ROOT / "configs" / "resnet20_cifar.py").read_text() + NET.partition("\n\n")[2])
    if "cifar.npz" in command:
        random = np.random.default_rng(0)
        x = {
            f"x_{part}": random.integers(0, 256, (n, 32, 32, 3), np.uint8) for part, n in (("train", 200), ("test", 20))
        }
        y = {f"y_{part}": np.arange(n) % 10 for part, n in (("train", 200), ("test", 20))}
        np.savez(here / "cifar.npz", **x, **y)
    if "data.py" in command:
        (here / "data.py").write_text(DATA)
    if "folder:imagenet" in command:
        for part in ("train", "val"):
            for label in range(3):
                folder = here / "imagenet" / part / f"n{label}"
                folder.mkdir(parents=True)
                for size in (90, 120):
                    Image.new("RGB", (size, 100), (80 * label, size, 0)).save(folder / f"{size}.jpg")


@pytest.mark.parametrize("command", commands())
def test_a_command(
    command: str,
    demo: Path,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(command)[1:]
    if words in (["demo"], ["prune", "model.pt", "--sparsity", "80%"]):
        report = demo / "runs" / "model-1" / "report.json"
        assert report.is_file()
        return
    equip(command, tmp_path, demo, own)
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    long = words[0] == "prune" and "model.pt" not in words
    code = run([*words, *(["--dry-run"] if long else [])])
    captured = capsys.readouterr()
    # the README's limits are of the README's run: that of one stage and 100 samples may miss them
    assert code in ((0, 3, 4) if words[0] == "check" else (0,)), captured.err
    assert captured.out
    dry = long or "--dry-run" in words or words[0] != "prune"
    assert (tmp_path / "runs").exists() == (not dry or "runs/" in command)


def test_the_commands_are_found() -> None:
    """What the blocks show today; fewer would mean that they are no longer looked at."""
    found = commands()
    assert len(found) >= 8
    assert {shlex.split(line)[1] for line in found} == {
        "demo",
        "prune",
        "check",
        "compare",
        "report",
        "eval",
        "inspect",
        "config",
        "score",
        "sweep",
    }


def test_the_scripts_are_there() -> None:
    scripts = re.findall(r"^bash (\S+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert set(scripts) == {"scripts/quickstart.sh", "scripts/test.sh"}
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_python(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    samples = load_samples(DataSection(source="digits"), seed=0)
    assert samples is not None
    x, y = samples.train.fetch(range(60))
    x_test, y_test = samples.test.fetch(range(100))
    space: dict[str, object] = {"x": x, "y": y, "x_test": x_test, "y_test": y_test, "train": step}
    code = blocks("python")[0]
    for statement in ast.parse(code).body:
        exec(compile(ast.Module([statement], []), "README.md", "exec"), space)
        if "network" in space and "optimizer" not in space:  # an optimizer of the network that the block loads
            space["optimizer"] = torch.optim.SGD(space["network"].parameters(), lr=0.001, momentum=0.9)
            before = zeros(space["network"])
    assert before > 0
    assert zeros(space["network"]) == before
    outcome = space["outcome"]
    assert outcome.sparsity.removed == round(0.9 * outcome.sparsity.prunable)


def test_the_python_for_a_network_of_ones_own(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    [_, code] = blocks("python")
    space: dict[str, object] = {}
    exec(code, space)
    assert isinstance(space["network"], nn.Module)
    assert zeros(space["network"]) > 0
    with pytest.raises(CheckpointRefused, match=r"trust_code=True.*--arch "):
        load("runs/net-1")
    assert zeros(load("runs/net-1", trust_code=True)) == zeros(space["network"])


def test_what_is_installed_exists() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = [extra for text in re.findall(r"(?:\.|prunetaylor)\[([\w,]+)\]", README) for extra in text.split(",")]
    assert {"demo", "timm", "ray"} <= set(named) <= set(setup["options.extras_require"])


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What the README calls ``train``."""
    for seed in range(3):
        optimizer.zero_grad()
        x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        network(x).square().mean().backward()
        optimizer.step()


def zeros(network: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in network.parameters() if p.dim() > 1)


def test_every_setting_exists() -> None:
    text = README.replace("\n", " ")
    named = re.findall(r"(?<![\w.-])([a-z_]+(?:\.[a-z_0-9]+)+)=", text)
    assert len(named) >= 5
    for key in named:
        assert key in KEYS or key.startswith("model.args."), key
    variables = re.findall(r"(?<!_)PRUNETAYLOR_\w+", text)
    assert variables
    assert set(variables) <= {env_name(key) for key in KEYS}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    assert targets or page != "README.md"
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target
