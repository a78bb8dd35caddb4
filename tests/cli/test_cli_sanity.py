"""A dense network that is at chance is named by every command, before any work, and no gate judges against it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from support.verdicts import assert_valid_json, assert_valid_junit

NET = "import torch\ndef net():\n    return torch.nn.Linear(4, 4)\n"
SETTINGS = ["--arch", "net.py:net", "--device", "cpu", "prune.method=magnitude", "prune.refine=none"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A network that is right on every sample of right.npz, and on none of shifted.npz."""
    (tmp_path / "net.py").write_text(NET)
    net = nn.Linear(4, 4)
    with torch.no_grad():
        net.weight.copy_(8 * torch.eye(4) + 0.01 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
        net.bias.zero_()
    torch.save(net.state_dict(), tmp_path / "sd.pt")
    y = np.arange(80) % 4
    x = np.eye(4, dtype=np.float32)[y] + 0.05 * np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    for name, labels in (("right", y), ("shifted", (y + 1) % 4)):
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    return tmp_path


def document(stdout: str) -> dict:
    found = json.loads(stdout)
    assert isinstance(found["warnings"], list)
    return found


COMMANDS = {
    "eval": ["eval", "sd.pt"],
    "score": ["score", "sd.pt"],
    "dry run": ["prune", "sd.pt", "--dry-run"],
    "prune": ["prune", "sd.pt", "-o", "run"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("data", "keys"), [("right", []), ("shifted", ["dense_at_chance"])])
def test_every_command_says_so_in_json_and_on_stderr(here: Path, inline, command: str, data: str, keys: list) -> None:
    code, stdout, stderr = inline(*COMMANDS[command], "--data", f"arrays:{data}.npz", *SETTINGS, "--json", "-q")
    assert code == 0, stderr
    assert [alert["key"] for alert in document(stdout)["warnings"]] == keys
    assert stderr.count("warning: ") == len(keys)


def test_it_is_said_before_the_work(here: Path, inline) -> None:
    code, stdout, stderr = inline("prune", "sd.pt", "--data", "arrays:shifted.npz", *SETTINGS, "-o", "run")
    assert code == 0
    assert stderr.index("warning: ") < stderr.index("calibrate")
    assert json.loads((here / "run" / "report.json").read_text())["verdict"]["level"] == "bad"
    assert "no better than guessing" in stdout.splitlines()[0] + stdout.splitlines()[1]


@pytest.mark.parametrize("settled", ["pass", "warn", "fail"])
def test_a_gate_is_inconclusive_whatever_that_is_to_mean(here: Path, inline, settled: str) -> None:
    limits = ["gate.max_drop=50", "gate.min_sparsity=10%", f"gate.on_inconclusive={settled}"]
    words = ["--data", "arrays:shifted.npz", *SETTINGS]
    code, stdout, stderr = inline("prune", "sd.pt", *words, *limits, "-o", "run", "--json")
    assert code == 4, stderr
    assert stderr.count("warning: ") == 1
    assert json.loads(stdout)["gate"]["verdict"] == "inconclusive"
    more = ["--baseline", "sd.pt", "--json", "--junit", "gate.xml"]
    code, stdout, stderr = inline("check", "run", *words, *limits, *more)
    assert code == 4, stderr
    found = document(stdout)
    assert_valid_json(found)
    assert [alert["key"] for alert in found["warnings"]] == ["dense_at_chance"]
    assert {check["status"] for check in found["checks"]} == {"inconclusive"}
    assert_valid_junit((here / "gate.xml").read_text())
    assert (here / "gate.xml").read_text().count("<failure") == 2


def test_a_gate_of_the_right_labels_passes(here: Path, inline) -> None:
    words = ["--data", "arrays:right.npz", *SETTINGS, "gate.max_drop=50", "--sparsity", "10%"]
    code, stdout, stderr = inline("prune", "sd.pt", *words, "-o", "run", "--json")
    assert code == 0, stderr
    found = document(stdout)
    assert found["gate"]["verdict"] == "pass"
    assert found["verdict"]["level"] == "ok"
    assert found["constant"]["top1"] == 25
