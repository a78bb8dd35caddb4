"""Every remedy that is printed works as it is printed: pasted into a shell, or into Python where it says so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from prunetaylor.network.checkpoint.write import write_model
from prunetaylor.sweep import leader
from prunetaylor.sweep.file import read
from prunetaylor.sweep.folder import prepare_folder
from support.sweeps import write_task

DATA = """
import numpy as np, torch
def data():
    d = np.load({file!r})
    train, test = ((torch.tensor(d[f"x_{{k}}"]), torch.tensor(d[f"y_{{k}}"]).long()) for k in ("train", "test"))
    return train, test
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task whose network and data are code in a folder with a blank and a quote in its name."""
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path)
    mine = tmp_path / "it's mine"
    mine.mkdir()
    (mine / "net.py").write_text((tmp_path / "net.py").read_text())
    (mine / "data.py").write_text(DATA.format(file=str(tmp_path / "data.npz")))
    return tmp_path


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))


def of_code(here: Path) -> list[str]:
    write_model("f.safetensors", network(), arch=f"{here}/it's mine/net.py:make", args={}, data={})
    return ["eval", "f.safetensors", "--data", "arrays:data.npz"]


def of_data(here: Path) -> list[str]:
    write_model("f.safetensors", network(), arch=None, args={}, data={"source": f"{here}/it's mine/data.py:data"})
    return ["eval", "f.safetensors", "--arch", "net.py:make"]


def of_a_moved_file(here: Path) -> list[str]:
    write_model("f.safetensors", network(5), arch="gone/net.py:make", args={"width": 5, "fail": "no"}, data={})
    return ["eval", "f.safetensors", "--arch", "net.py:make", "--data", "arrays:data.npz"]


def of_an_argument(here: Path) -> list[str]:
    write_model("f.safetensors", network(), arch="net.py:make", args={"fail": "it's; $HOME/no"}, data={})
    return ["eval", "f.safetensors", "--arch", "net.py:make", "--data", "arrays:data.npz"]


def of_a_sweep(here: Path) -> list[str]:
    text = (here / "sweep.yaml").read_text().replace('"net.py:make"', '"it\'s mine/net.py:make"')
    (here / "sweep.yaml").write_text(text)
    prepare_folder(read(here / "sweep.yaml"), here / "a sweep", resume=False)
    return ["sweep", "a sweep"]


def of_a_check(here: Path) -> list[str]:
    write_model("f.safetensors", network(), arch=f"{here}/it's mine/net.py:make", args={}, data={})
    return ["check", "f.safetensors", "--data", "arrays:data.npz", "--baseline", "net.pt", "--max-drop", "99"]


@pytest.mark.parametrize("refused", [of_code, of_data, of_a_moved_file, of_an_argument, of_a_sweep, of_a_check])
def test_what_a_refusal_ends_with_can_be_added_to_the_command(
    here: Path, inline, monkeypatch: pytest.MonkeyPatch, refused: Callable[[Path], list[str]]
) -> None:
    monkeypatch.setattr(leader, "run_leader", lambda *_, **__: [])  # a sweep that may run is not run here
    command = refused(here)
    code, _, stderr = inline(*command)
    assert code == 5, stderr
    words = re.split(r": (?=--|['\w.]+=)| add ", stderr.splitlines()[-1].strip())[-1]
    assert len(shlex.split(words)) >= 1
    code, _, stderr = inline(*command, *shlex.split(words))
    assert code in (0, 4) or (code == 6 and command[0] == "sweep"), (words, stderr)  # 6: its trials did not run here


@pytest.mark.parametrize("form", ["alone", "in a dict", "as an average"])
def test_the_lines_for_a_pickled_module_save_its_weights(here: Path, inline, form: str) -> None:
    net = network()
    net.load_state_dict(torch.load("net.pt", weights_only=True))
    held = {
        "alone": net,
        "in a dict": {"epoch": 3, "model": net, "ema": None},
        "as an average": {"model": None, "ema": net},
    }
    (here / "it's mine" / "deep").mkdir()
    torch.save(held[form], "it's mine/deep/y.pt")
    words = ["--arch", "net.py:make", "--data", "arrays:data.npz"]
    code, _, stderr = inline("eval", "it's mine/deep/y.pt", *words)
    assert code == 5
    exec(stderr[stderr.index("import torch") :].strip())
    assert inline("eval", "weights.pt", *words)[0] == 0


@pytest.mark.parametrize("word", ["Sparsity=0.6", "prune.sparsty=0.6", "PRUNE.SPARSITY=0.6"])
def test_the_key_that_was_meant_is_one(here: Path, inline, word: str) -> None:
    command = ["prune", "net.pt", "--arch", "net.py:make", "--data", "arrays:data.npz", "device=cpu", "--dry-run"]
    code, _, stderr = inline(*command, word)
    assert code == 2
    meant = re.search(r"did you mean '([\w.]+)'", stderr)
    assert meant is not None
    code, _, stderr = inline(*command, f"{meant[1]}=0.6")
    assert code == 0, stderr
