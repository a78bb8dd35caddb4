"""Names in checkpoints, files and folders reach no terminal but as text; and there is one way to it."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;owned\x07\x1b[2J\u202e[red]x[/red]<script>\n::error::y"
FILE = "\x1b]0;owned\x07[red]\u202ex"  # as a file's name

NET = f"""
from torch import nn

def make():
    net = nn.Sequential()
    net.add_module("flat", nn.Flatten())
    net.add_module({EVIL!r}, nn.Linear(16, 8))
    net.add_module("relu", nn.ReLU())
    net.add_module("b" + {EVIL!r}, nn.Linear(8, 3))
    return net
"""
SETTINGS = ["model.arch=net.py:make", "data.source=arrays:data.npz", "data.normalize=none", "device=cpu"]
QUICK = ["prune.method=magnitude", "prune.repair=none", "prune.refine=none", "finetune.epochs=0"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    import numpy as np

    torch.manual_seed(0)
    x, y = torch.randn(120, 1, 4, 4).numpy(), (torch.arange(120) % 3).numpy()
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "net.py").write_text(NET)
    room: dict[str, object] = {}
    exec(NET, room)
    net = room["make"]()  # type: ignore[operator]
    assert isinstance(net, nn.Module)
    torch.save(net.state_dict(), tmp_path / f"{FILE}.pt")
    return tmp_path


def assert_harmless(text: str) -> None:
    bare = re.sub(r"\x1b\[(\?25[lh]|2K|\d*A|[\d;]*m)|\r", "", text)  # our own colours and bars
    found = {c for c in bare if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert not found, bare
    assert not re.search(r"^\s*::error::", bare, re.MULTILINE)


def test_every_command_shows_names_as_text(here: Path, inline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    run, other = f"runs/{FILE}", "runs/other"
    commands = [
        (["inspect", f"{FILE}.pt"], 0),
        (["eval", f"{FILE}.pt", *SETTINGS], 0),
        (["score", f"{FILE}.pt", *SETTINGS, "-v"], 0),
        (["prune", f"{FILE}.pt", *SETTINGS, *QUICK, "--dry-run"], 0),
        (["prune", f"{FILE}.pt", *SETTINGS, *QUICK, "-o", run, "-v"], 0),
        (["prune", f"{FILE}.pt", *SETTINGS, *QUICK, "-o", other, "prune.sparsity=0.3"], 0),
        (["prune", f"{FILE}.pt", *SETTINGS, *QUICK, "-o", run], 2),
        (["compare", run, other], 0),
        (["report", run, "-o", "page.html"], 0),
        (["check", run, *SETTINGS, "--max-drop", "90pp", "-v"], None),
        (["prune", f"{FILE}.pt", *SETTINGS, *QUICK, f"prune.include=[{json.dumps(EVIL)}]"], None),
        (["inspect", f"no-{FILE}.pt"], 2),
        (["prune", f"{FILE}.pt", f"{EVIL}=1"], 2),
        (["prune", f"{FILE}.pt", f"prune.method={EVIL}", "-vv"], 2),
        ([EVIL], 2),
    ]
    for words, expected in commands:
        code, stdout, stderr = inline(*words)
        assert expected is None or code == expected, (words, stderr)
        for text in (stdout, stderr):
            assert_harmless(text)
        assert "should not have happened" not in stderr
    page = (here / "page.html").read_text()
    assert "<script" not in page
    assert_harmless(page)


def test_reports_of_somebody_elses_are_text(here: Path, inline) -> None:
    code, _, stderr = inline("prune", f"{FILE}.pt", *SETTINGS, *QUICK, "-o", "runs/a", "-q")
    assert code == 0, stderr
    file = here / "runs" / "a" / "report.json"
    whole = json.loads(file.read_text())
    for change in (
        {"metric": {"name": EVIL, "goal": EVIL}},
        {"device": EVIL, "choices": [EVIL]},
        {EVIL: EVIL},
        {"stages": EVIL},
    ):
        file.write_text(json.dumps({**whole, **change}))
        for words in (["report", "runs/a", "-o", "page.html"], ["compare", "runs/a", "runs/a", "--html", "page.html"]):
            code, stdout, stderr = inline(*words)
            assert code in (0, 2, 5), stderr
            assert_harmless(stdout + stderr)
            if (here / "page.html").exists():
                assert "<script" not in (here / "page.html").read_text()


def calls(file: Path) -> list[tuple[str, str]]:
    """(what is called, with what) by name."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""))
    return found


def test_there_is_one_way_to_the_terminal() -> None:
    """Whatever is shown is made safe in one place: a new command cannot forget it."""
    harmless = ("json.dumps(", "neutral_lines(", "line", "ctx.get_help()", "'none' if", "")
    for file in [*(ROOT / "cli").rglob("*.py"), *(ROOT / "prunetaylor").rglob("*.py")]:
        where = str(file.relative_to(ROOT))
        for name, argument in calls(file):
            if name.endswith("Console"):
                assert where == "prunetaylor/report/terminal/console.py" or name == "PlainConsole", (
                    f"{where} makes a console"
                )
            if name in ("print", "sys.stdout.write", "sys.stderr.write", "traceback.print_exception", "click.secho"):
                raise AssertionError(f"{where} prints by {name}")
            if name == "click.echo" and where != "cli/terminal/console.py":
                assert argument.startswith(harmless[:-1]) or not argument, f"{where} echoes {argument}: use say"
            if name.endswith("Markup"):
                assert where == "prunetaylor/report/html/page.py", f"{where} marks text as safe"
            if name in ("TextColumn", "Text.from_markup"):
                assert "from_markup" not in name
