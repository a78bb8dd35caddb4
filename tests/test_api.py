"""What Python callers get: arguments named as the command line's, a result that shows itself and can be saved."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import prunetaylor
from prunetaylor.cli.main import group, run
from prunetaylor.core.errors import OutputPlaceError, UsageError
from support.samples import rand

X, Y = rand(60, 5), torch.arange(60) % 3
NET = """
from torch import nn
def make(width=7):
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))
"""


def network(width: int = 7) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture
def result() -> prunetaylor.Result:
    return prunetaylor.prune(network(), (X, Y), method="magnitude", epochs=0, device="cpu", sparsity=0.6)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    np.savez(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_arguments_are_named_as_the_options_of_the_command_line() -> None:
    taken = inspect.signature(prunetaylor.prune).parameters
    files = {"config", "output", "dry_run", "json", "force", "resume", "quiet", "verbose", "nproc", "help"}
    options = {o.lstrip("-").replace("-", "_") for p in group.commands["prune"].params for o in p.opts if "--" in o}
    assert options - files <= set(taken)
    for name, parameter in taken.items():
        assert name in inspect.getdoc(prunetaylor.prune)
        assert parameter.kind is parameter.KEYWORD_ONLY or name in ("model", "train", "test")


def test_arguments_and_settings_are_the_same_thing(result: prunetaylor.Result) -> None:
    settings = {"prune.method": "magnitude", "finetune.epochs": 0, "device": "cpu", "prune.sparsity": 0.6, "seed": 3}
    other = prunetaylor.prune(network(), (X, Y), settings=settings)
    assert result.resolved.config == other.resolved.config.model_copy(update={"seed": 0})
    with pytest.raises(UsageError, match="contradict"):
        prunetaylor.prune(network(), (X, Y), method="obs", settings={"prune.method": "obd"})
    with pytest.raises(UsageError, match="did you mean 'obs'"):
        prunetaylor.score(network(), (X, Y), method="obz")


def test_it_shows_itself_in_a_few_lines(result: prunetaylor.Result) -> None:
    lines = repr(result).splitlines()
    assert 4 <= len(lines) <= 8
    assert result.verdict is not None
    assert result.verdict.text in lines[0]
    for words in ("top1", "loss", "60.71 %", "outcome.save(folder)"):
        assert words in repr(result)


def test_the_notebook_s_piece_is_escaped_and_needs_nothing_else(result: prunetaylor.Result) -> None:
    from dataclasses import replace

    from prunetaylor.core.results.outcome import Alert, Judgement

    evil = "<script>alert(1)</script>"
    shown = replace(result, verdict=Judgement("bad", evil), warnings=[Alert("key", evil)])._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    for outside in ("http:", "https:", "src=", "@import", "url("):
        assert outside not in shown


def test_what_is_saved_is_a_run_for_every_command(here: Path, result: prunetaylor.Result, capsys) -> None:
    folder = result.save("runs/x", arch="net.py:make", data="arrays:d.npz")
    assert {file.name for file in folder.iterdir()} == {
        "model.safetensors",
        "report.json",
        "report.html",
        "config.yaml",
        "log.jsonl",
    }
    assert str(folder) in repr(result)
    again = prunetaylor.load(folder, arch="net.py:make")
    torch.testing.assert_close(again(X), result.module(X))
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events[-1] == "done"
    assert "note" in events
    torch.save(network().state_dict(), "dense.pt")
    known = ["--arch", "net.py:make", "--data", "arrays:d.npz"]
    result.save("runs/y")
    for words in (
        ["eval", "runs/x", *known],
        ["eval", "runs/x", "--trust-code"],
        ["check", "runs/x", *known, "--baseline", "dense.pt", "--min-sparsity", "50%"],
        ["compare", "runs/x", "runs/y"],
        ["report", "runs/x"],
        ["inspect", "runs/x"],
    ):
        capsys.readouterr()
        assert run([*words, "-q"] if words[0] == "eval" else words) == 0, (words, capsys.readouterr().err)


def test_without_names_what_is_missing_is_said(here: Path, result: prunetaylor.Result, capsys) -> None:
    folder = result.save("x")
    with pytest.raises(UsageError, match=r"Sequential(.|\n)*arch="):
        prunetaylor.load(folder)
    torch.testing.assert_close(prunetaylor.load(folder, arch="net.py:make")(X), result.module(X))
    assert run(["eval", "x", "--arch", "net.py:make"]) == 2
    assert "got its samples from Python" in capsys.readouterr().err
    assert run(["check", "x", "--arch", "net.py:make", "--data", "arrays:d.npz", "--min-sparsity", "50%"]) == 2
    assert "--baseline" in capsys.readouterr().err
    assert "prunetaylor.prune(model, train, test, settings={" in (folder / "report.html").read_text()


def test_a_wrong_name_writes_nothing(here: Path, result: prunetaylor.Result) -> None:
    with pytest.raises(prunetaylor.PruneTaylorError):
        result.save("x", arch="net.py:make", args={"width": 3})
    with pytest.raises(UsageError, match="factory"):
        result.save("x", args={"width": 3})
    assert not (here / "x").exists()
    folder = result.save("x")
    with pytest.raises(OutputPlaceError, match="run already"):
        result.save("x")
    assert result.save("x", force=True) == folder


def test_transforms_of_ones_own_do_not_keep_a_run_from_being_saved(here: Path) -> None:
    images = torch.rand(20, 3, 8, 8)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    options = {"method": "magnitude", "epochs": 0, "augment": lambda x: x}
    assert prunetaylor.prune(module, (images, torch.arange(20) % 3), **options).save("x").is_dir()


def test_a_checkpoint_s_path_is_opened_as_on_the_command_line(here: Path) -> None:
    torch.save(network().state_dict(), "net.pt")
    options = {"method": "magnitude", "epochs": 0, "arch": "net.py:make", "data": "arrays:d.npz"}
    result = prunetaylor.prune("net.pt", **options)
    folder = result.save("x")
    assert run(["check", "x", "--trust-code", "--min-sparsity", "50%"]) == 0
    assert json.loads((folder / "report.json").read_text())["hashes"]["checkpoint"]
    with pytest.raises(UsageError, match="data="):
        prunetaylor.prune("net.pt", (X, Y))
    with pytest.raises(UsageError, match="model is a network"):
        prunetaylor.prune(network(), (X, Y), arch="net.py:make")


def test_the_public_names_are_there_and_typed() -> None:
    for name in prunetaylor.__all__:
        assert getattr(prunetaylor, name).__doc__ or name == "__version__"
    assert sorted(dir(prunetaylor)) == sorted(prunetaylor.__all__)
    assert (Path(prunetaylor.__file__).parent / "py.typed").exists()
    code = "import sys, prunetaylor; prunetaylor.PruneTaylorError; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
