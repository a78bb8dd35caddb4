"""The README and the pages of docs/ are followed from top to bottom: their commands, their Python, their files.

A page starts in a folder with what ``prunetaylor demo`` and a first run make, and with a network and samples of a
user's own. Settings from the environment make runs quick; the commands stay as they are.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import prunetaylor
from prunetaylor.cli.main import group, run
from prunetaylor.core.config.keys import env_name, leaves
from support.pages import PAGES, ROOT, Block, blocks, prose, read, spans, words

KEYS = dict(leaves())
TOOLS = {
    "bash",
    "chmod",
    "cd",
    "curl",
    "eval",
    "git",
    "mkdocs",
    "pip",
    "printf",
    "python",
    "source",
    "srun",
    "torchrun",
}
"""The first words of other commands in the pages; nobody runs them here."""
QUICK = {"calibration.samples": 100, "prune.stages": 1, "prune.refine_steps": 50, "device": "cpu"}
DATA = """
import torch

def datasets():
    return [(torch.rand(n, 3, 32, 32), torch.arange(n) % 10) for n in (200, 20)]
"""
RUN = [page for page in PAGES if any(b.lines or b.language == "python" for b in blocks(page))]
UNTRAINED = ["docs/tutorial/your-network.md"]
"""Pages whose network is not trained, which magnitude alone ruins."""
LONG = [page for page in RUN if any(block.mark == "long" for block in blocks(page))]


DONE: dict[str, str] = {}
"""The output of the commands that every reader has run before."""


def quick(patch: pytest.MonkeyPatch) -> None:
    for key, value in {**QUICK, "memory": "1TiB"}.items():  # what is free here is no matter
        patch.setenv(env_name(key), str(value))


def done(line: str) -> None:
    """Run a command that every reader has behind them."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(words(line)) == 0
    DONE[line] = printed.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a reader has: the demo's network and runs of it, a network, samples and code of their own."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    here = tmp_path_factory.mktemp("world")
    shutil.copytree(ROOT / "configs", here / "configs")
    (here / "net.py").write_text(
        (ROOT / "configs" / "resnet20_cifar.py").read_text() + "\n\ndef make(depth):\n    return resnet20()\n"
    )
    (here / "data.py").write_text(DATA)
    random = np.random.default_rng(0)
    sizes = {"train": 200, "test": 20}
    x = {f"x_{part}": random.integers(0, 256, (n, 32, 32, 3), np.uint8) for part, n in sizes.items()}
    np.savez(here / "cifar.npz", **x, **{f"y_{part}": np.arange(n) % 10 for part, n in sizes.items()})
    for part, label, size in ((p, n, s) for p in ("train", "val") for n in range(3) for s in (90, 120)):
        folder = here / "imagenet" / part / f"n{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, 100), (80 * label, size, 0)).save(folder / f"{size}.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        quick(patch)
        done("prunetaylor demo")
        patch.setenv(env_name("calibration.samples"), "500")
        patch.delenv(env_name("prune.stages"))
        done("prunetaylor prune model.pt --sparsity 90%")
        space: dict[str, Callable[[], nn.Module]] = {}
        exec((here / "net.py").read_text(), space)
        torch.save(space["resnet20"]().state_dict(), here / "net.pt")
    shutil.copytree(here / "runs" / "model-1", here / "runs" / "model-2")
    return here


class Reader:
    """Somebody who does what a page says, in a folder of their own."""

    def __init__(self, page: str, here: Path, capfd: pytest.CaptureFixture[str], *, long: bool) -> None:
        self.page, self.here, self.capfd, self.long = page, here, capfd, long
        self.space: dict[str, Any] = {}

    def follow(self) -> None:
        for block in blocks(self.page):
            if block.title is not None:
                file = self.here / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text)
            elif block.mark == "not run":
                continue
            elif block.language == "python":
                self.execute(block)
            elif block.mark is None or (block.mark == "long" and self.long):
                self.type_in(block)

    def execute(self, block: Block) -> None:
        for statement in ast.parse(block.text).body:
            exec(compile(ast.Module([statement], []), self.page, "exec"), self.space)

    def type_in(self, block: Block) -> None:
        printed = dict(block.sessions)
        for line in block.lines:
            if not (said := words(line)):
                continue
            if line in DONE:
                self.compare(line, printed.get(line, []), DONE[line])
                continue
            self.capfd.readouterr()
            code = run(said)
            captured = self.capfd.readouterr()
            # limits in the pages are of whole runs: quick ones may miss them
            judged = said[0] == "check" or "-c gate.yaml" in line
            assert code in ((0, 3, 4) if judged else (0,)), f"{line}\n{captured.err}"
            assert captured.out, line
            self.compare(line, printed.get(line, []), captured.out)

    def compare(self, line: str, printed: list[str], out: str) -> None:
        """Assert that a command prints the output that the page shows, numbers aside."""
        for one in printed:
            shown = one == "..." or masked(one) in masked(out)
            assert shown, f"{line} prints nothing like\n{one}\n{masked(one)}\nbut\n{out}\n{masked(out)}"


def masked(text: str) -> str:
    """Return printed text without its numbers, as one line, whatever the width of the terminal."""
    text = text.replace("within noise, ", "")
    return " ".join(re.sub(r"[-+]?\d[\d,.]*(e[-+]\d+)?( [kM]?B?(?=\s|$))?", " # ", text).split())


@pytest.fixture
def reader(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Reader]:
    here = tmp_path / "reader"
    shutil.copytree(world, here)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    before = set(sys.modules)
    quick(monkeypatch)
    monkeypatch.setenv(env_name("prune.method"), "magnitude")
    prune = prunetaylor.prune

    def quick_prune(*arguments: Any, method: str = "magnitude", settings: Any = None, **named: Any) -> Any:
        return prune(*arguments, method=method, settings=QUICK | (settings or {}), **named)

    monkeypatch.setattr(prunetaylor, "prune", quick_prune)
    yield lambda page, long=False: Reader(page, here, capfd, long=long)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(here)):
            del sys.modules[name]


@pytest.mark.parametrize("page", RUN)
def test_a_page_can_be_followed(page: str, reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch) -> None:
    one = reader(page)
    if page in UNTRAINED:
        monkeypatch.setenv(env_name("prune.repair"), "least-squares")
    if page == "README.md":
        x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 10
        one.space |= {"network": prunetaylor.load("model.pt"), "x": x, "y": y, "x_test": x, "y_test": y}
    one.follow()


@pytest.mark.long
@pytest.mark.parametrize("page", LONG)
def test_all_of_a_page_can_be_followed(page: str, reader: Callable[..., Reader]) -> None:
    reader(page, long=True).follow()


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    """Every command parses, its options and settings exist, also those in the text and those that are not run."""
    for line in (line for block in blocks(page) for line in block.lines):
        assert line.split()[0].rpartition("/")[2] in TOOLS | {"prunetaylor"}, line
        if said := words(line):
            group.commands[said[0]].make_context(said[0], said[1:], parent=click.Context(group))
            known(said)
    for span in spans(page):
        if re.match(r"prunetaylor [a-z]", span):
            known(words(span))


def known(said: list[str]) -> None:
    """The command exists, and so do its options and settings."""
    command = group.commands[said[0]]
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in said[1:]:
        assert word in options or not re.match(r"-[a-z-]", word), f"{said[0]} {word}"
        if found := re.match(r"([a-z_]+(?:\.[a-z_]+)*)=", word):
            assert found[1] in KEYS or found[1].startswith("model.args."), word


@pytest.mark.parametrize("page", PAGES)
def test_settings_exist(page: str) -> None:
    text = read(page).replace("\n", " ")
    for key in re.findall(r"(?<![\w.\"'-])([a-z_]+(?:\.[a-z_0-9]+)+)=", prose(page)):
        assert key in KEYS or key.startswith("model.args."), key
    for key in re.findall(r"(?<![\w_])PRUNETAYLOR_[A-Z_]+", text):
        assert key in {env_name(one) for one in KEYS} | {"PRUNETAYLOR_"}, key


def test_the_pages_show_every_command() -> None:
    shown = {words(line)[0] for page in RUN for block in blocks(page) for line in block.lines if words(line)}
    assert shown == set(group.commands)
