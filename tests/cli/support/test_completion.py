"""What TAB offers, in bash (whose words end at = and :) and elsewhere; without torch, and without running user code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunetaylor.cli.main import group
from prunetaylor.core import registry

# bash's own words: a=b is three
CASES = {
    ("pru",): ["prune"],
    ("prune", "prune.m"): ["prune.method="],
    ("prune", "prune.method", "="): ["auto", *registry.names(registry.CRITERIA)],
    ("prune", "prune.method", "=", "exa"): ["exact_obs"],
    ("prune", "m.pt", "--method", "mag"): ["magnitude"],
    ("score", "m.pt", "--method", "=", "mag"): ["magnitude"],
    ("prune", "m.pt", "--arch", "torchvision", ":", "resnet1"): ["resnet101", "resnet152", "resnet18"],
    ("prune", "m.pt", "model.arch", "=", "torchvision", ":", "resnet5"): ["resnet50"],
    ("eval", "m.pt", "--arch", "net.py", ":"): ["make", "Net"],
    ("prune", "m.pt", "--data", "torchvision", ":", "CIFAR1"): ["CIFAR10", "CIFAR100"],
    ("prune", "finetune.optimizer", "="): ["sgd", "adamw"],
    ("sweep", "m.pt", "-m", "prune.method", "=", "mag,ra"): ["mag,random"],
    ("config", "cache.en"): ["cache.enabled="],
    ("prune", "net"): ["net.py"],
}
SCRIPT = """
eval "$(_PRUNETAYLOR_COMPLETE=bash_source {program})"
compopt() {{ :; }}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_prunetaylor_completion prunetaylor
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text("raise SystemExit('was run')\ndef make(): ...\nclass Net: ...\ndef _own(): ...\n")
    program = tmp_path / "bin" / "prunetaylor"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom prunetaylor.cli.main import main\nmain()\n")
    program.chmod(0o755)
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_bash_offers_what_fits(words: tuple[str, ...], folder: Path) -> None:
    program = folder / "bin" / "prunetaylor"
    path = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    command = ["bash", "-c", SCRIPT.format(program=program), "bash", "prunetaylor", *words]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == CASES[words]


def test_other_shells_get_whole_words_and_nothing_is_imported(folder: Path) -> None:
    code = """
import os, sys
from prunetaylor.cli.main import run
os.environ.update(_PRUNETAYLOR_COMPLETE="fish_complete", COMP_WORDS="prunetaylor prune --arch torchvision:resnet5",
                  COMP_CWORD="torchvision:resnet5")
try:
    run([])
except SystemExit:
    pass
assert not {"torch", "torchvision", "timm"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "plain,torchvision:resnet50"


def test_the_networks_that_are_offered_are_those_of_torchvision() -> None:
    from prunetaylor.cli.support.completion import _networks
    from prunetaylor.runtime.torchvision_import import import_torchvision

    assert set(import_torchvision().models.list_models()) == set(_networks("torchvision", "models"))


def test_every_option_with_a_name_or_a_spec_is_completed() -> None:
    for name, command in group.commands.items():
        for param in command.params:
            if param.name in ("arch", "data", "method", "device"):
                assert param._custom_shell_complete is not None, (name, param.name)
