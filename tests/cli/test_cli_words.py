"""Words that look like something else: files with = in their names, names of files that YAML would read, near names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prunetaylor.core.errors import close_match, closest
from support.sweeps import write_task

_NETWORK = ["--arch", "net.py:make", "--data", "arrays:data.npz", "device=cpu"]
_NAMES = [
    "epoch=3-val_acc=0.93.ckpt",
    "seed=1",
    "[best].pt",
    "{a}.pt",
    "null",
    "1e-3",
    "~",
    "a b.pt",
    "'q'.pt",
    "-x.pt",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", _NAMES)
def test_what_exists_as_a_file_is_the_model(here: Path, inline, name: str) -> None:
    shutil.copy("net.pt", name)
    words = [name] if not name.startswith("-") else [f"./{name}"]
    assert inline("inspect", *words)[0] == 0
    assert inline("eval", *words, *_NETWORK)[0] == 0
    assert inline("eval", *_NETWORK, "--", name)[0] == 0
    assert inline("check", *words, *_NETWORK, "--baseline", name, "--max-drop", "90")[0] in (0, 4)
    assert inline("prune", *words, *_NETWORK, "prune.method=magnitude", "--dry-run")[0] == 0


def test_what_follows_two_dashes_is_the_model_though_it_is_not_there(here: Path, inline) -> None:
    code, _, stderr = inline("eval", *_NETWORK, "--", "prune.sparsity=0.5")
    assert code == 2
    assert "no such file: prune.sparsity=0.5" in stderr
    code, _, stderr = inline("eval", "net.pt", *_NETWORK, "--", "seed=1")
    assert code == 2
    assert "MODEL is already 'net.pt'" in stderr


def test_near_names_ignore_case_and_are_never_the_name_itself(inline) -> None:
    assert closest("Resnet18", ["resnet18", "resnet34"]) == "resnet18"
    assert closest("RESNET_18", ["ResNet_18"]) == "ResNet_18"
    assert closest("top1", ["top1"]) is None
    assert closest("top1", ["top1", "top2"]) == "top2"
    assert close_match("nothing", ["like", "it"]) == ""
    assert "did you mean 'prune.sparsity'" in inline("prune", "m.pt", "prune.Sparsity=0.5")[2]
    assert "did you mean 'prune.sparsity'" in inline("prune", "m.pt", "SPARSITY=0.5")[2]
