"""The last lines of a run: commands that work as they are printed."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

NET = """
from torch import nn
def make():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
"""
PRUNE = ["prune", "my net.pt", "--arch", "my net.py:make", "--data", "arrays:d d.npz", "--epochs", "0", "--method"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    x = torch.randn(300, 5)
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        y = module(x).argmax(1)
    torch.save(module.state_dict(), tmp_path / "my net.pt")
    np.savez(tmp_path / "d d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "my net.py").write_text(NET)
    return tmp_path


def steps(stdout: str) -> dict[str, str]:
    """What each of the last lines is for, and its command."""
    lines = stdout.partition("\nnext steps\n")[2].splitlines()
    return {what.strip(): command.strip() for what, _, command in (line.partition(": ") for line in lines)}


def test_every_command_that_a_run_ends_with_works(inline, here: Path) -> None:
    code, out, _ = inline(*PRUNE, "magnitude", "prune.sparsity=20%", "-o", "runs/a b")
    assert code == 0
    found = steps(out)
    assert set(found) >= {"fine-tune", "check", "in Python"}
    assert "--epochs 3" in found["fine-tune"]
    assert "--epochs 0" not in found["fine-tune"]
    for what in ("fine-tune", "check", "smaller"):
        if what in found:
            program, *words = shlex.split(found[what])
            assert program == "prunetaylor"
            assert inline(*words)[0] in ((0, 3, 4) if what == "check" else (0,)), found[what]
    scope: dict[str, nn.Module] = {}
    exec(found["in Python"], scope)
    assert isinstance(scope["network"], nn.Module)


def test_settings_of_the_environment_are_part_of_the_command(
    inline, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNETAYLOR_PRUNE_SPARSITY", "30%")
    monkeypatch.setenv("PRUNETAYLOR_FINETUNE_EPOCHS", "0")
    code, out, _ = inline(*(word for word in PRUNE if word not in ("--epochs", "0")), "magnitude")
    assert code == 0
    assert steps(out)["fine-tune"].startswith("PRUNETAYLOR_PRUNE_SPARSITY=30% prunetaylor prune ")


def test_a_run_that_lost_much_is_not_told_to_remove_more(inline, here: Path) -> None:
    code, out, _ = inline(*PRUNE, "magnitude", "--sparsity", "95%")
    assert code == 0
    assert "smaller" not in steps(out)
    assert "fine-tune" in steps(out)


def test_quiet_runs_and_json_are_not_told_anything(inline, here: Path) -> None:
    for flag in ("-q", "--json"):
        assert "next steps" not in inline(*PRUNE, "magnitude", flag)[1]


def test_next_commands_omit_checked_limits_and_trained_epochs(inline, here: Path) -> None:
    words = [*PRUNE, "magnitude", "gate.min_sparsity=10%", "--sparsity", "20%"]
    words[words.index("0")] = "1"
    code, out, _ = inline(*words)
    assert code == 0
    assert set(steps(out)) <= {"smaller", "in Python"}
