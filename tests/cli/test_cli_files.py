"""demo and inspect: files made and files looked at."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from prunetaylor import load
from prunetaylor.pipeline.demo import check_path


def test_the_demo_makes_a_good_network_and_replaces_only_its_own_file(inline, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"mine")
    code, _, stderr = inline("demo")
    assert code == 2
    assert "was not made by" in stderr
    assert "--force" in stderr
    assert path.read_bytes() == b"mine"
    code, stdout, stderr = inline("demo", "--force", "--seed", "1")
    assert code == 0, stderr
    assert stdout.splitlines()[-1] == "next: prunetaylor prune model.pt"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt"]
    check_path(path, force=False)  # the demo's own file now
    assert torch.load(path, weights_only=True)["format"] == "prunetaylor"
    document = json.loads(inline("inspect", "model.pt", "--json")[1])
    assert document["said"]["arch"] == "builtin:digits"
    assert document["said"]["data"]["source"] == "digits"
    assert document["said"]["extra"]["top1"] > 97
    assert document["sparsity"] < 0.01
    assert document["tensors"][0]["name"] == "conv1.weight"
    assert document["tensors"][0]["shape"] == [32, 1, 3, 3]
    assert len(document["sha256"]) == 64
    assert isinstance(load(path), nn.Module)


def test_the_demo_wants_a_file_in_a_folder_that_is_there(inline, tmp_path: Path) -> None:
    for where in (".", "none/model.pt"):
        code, _, stderr = inline("demo", "-o", where)
        assert code == 2
        assert "folder" in stderr
    assert list(tmp_path.iterdir()) == []


def test_inspect_prints_a_table_in_80_columns(demo_model: Path, inline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_model.parent)
    code, stdout, stderr = inline("inspect", demo_model.name)
    assert code == 0, stderr
    assert max(map(len, stdout.splitlines())) <= 80
    rows = [line.split() for line in stdout.splitlines()]
    assert ["network", "builtin:digits"] in rows
    assert ["conv2.weight", "64x32x3x3", "float32", "18,432", "0.00", "%"] in rows
    assert "\x1b" not in stdout


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_inspect_runs_nothing_and_refuses_pickled_code(inline, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(_Bomb()))
    (tmp_path / "text.pt").write_text("hello")
    for name in ("module.pt", "bomb.pkl", "text.pt"):
        code, stdout, stderr = inline("inspect", name)
        assert code == 5, stderr
        assert stdout == ""
        assert "error: " in stderr
        assert "Traceback" not in stderr
    assert not (tmp_path / "exploded").exists()


def test_inspect_names_a_file_that_is_not_there(inline) -> None:
    code, _, stderr = inline("inspect", "none.pt")
    assert code == 2
    assert "no such file: none.pt" in stderr


def test_inspect_counts_what_is_not_finite(inline, tmp_path: Path) -> None:
    torch.save({"a.weight": torch.tensor([[0.0, float("nan"), 1.0]])}, tmp_path / "n.pt")
    code, stdout, stderr = inline("inspect", "n.pt")
    assert code == 0, stderr
    assert "a.weight: 1 values are NaN or infinite" in stdout
    assert json.loads(inline("inspect", "n.pt", "--json")[1])["tensors"][0]["nonfinite"] == 1
