"""Code that the user names: found, imported once, kept off stdout; every failure is a UsageError with its cause."""

import subprocess
import sys

import pytest

from prunetaylor.core.config.code import is_code
from prunetaylor.core.errors import UsageError
from prunetaylor.runtime.python_process import python
from prunetaylor.runtime.user_code import load_object


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("net.py:make", True),
        ("/a/b c/net.py:make", True),
        ("package:make", True),
        ("package.module:Class.make", True),
        ("net.py", False),
        ("resnet18", False),
        ("torchvision:resnet18", False),
        ("timm:resnet18", False),
        ("builtin:lenet", False),
        ("folder:data", False),
        ("folder:data.py:x", False),
        ("arrays:a.npz", False),
        ("net.py:", False),
        ("net.py:a b", False),
        ("", False),
    ],
)
def test_what_is_code(spec, code):
    assert is_code(spec) is code


def test_a_file_with_a_neighbour_and_a_dataclass(tmp_path, capsys):
    (tmp_path / "neighbour_of_net.py").write_text("VALUE = 3\n")
    (tmp_path / "net.py").write_text(
        "from dataclasses import dataclass\n"
        "from neighbour_of_net import VALUE\n"
        "print('loud')\n"
        "@dataclass\n"
        "class Thing:\n"
        "    value: int = VALUE\n"
    )
    path = list(sys.path)
    thing = load_object("net.py:Thing", base=tmp_path)
    assert thing().value == 3
    assert load_object(f"{tmp_path}/net.py:Thing") is thing
    assert sys.modules[thing.__module__].Thing is thing
    assert sys.path == path
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "__pycache__" / "net.cpython-311.pyc").exists()


def test_an_edited_file_is_imported_anew(tmp_path):
    (tmp_path / "net.py").write_text("VALUE = 1\n")
    assert load_object("net.py:VALUE", base=tmp_path) == 1
    (tmp_path / "net.py").write_text("VALUE = 2\n")
    assert load_object("net.py:VALUE", base=tmp_path) == 2


def test_a_package_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine_only_here").mkdir()
    (tmp_path / "mine_only_here" / "__init__.py").touch()
    (tmp_path / "mine_only_here" / "net.py").write_text("class Nets:\n    small = 3\n")
    monkeypatch.chdir(tmp_path)
    assert load_object("mine_only_here.net:Nets.small") == 3


@pytest.mark.parametrize(
    ("body", "spec", "match"),
    [
        ("x = 1", "nett.py:make", r"no such file; did you mean 'net\.py'"),
        ("def make(:", "net.py:make", "SyntaxError: .*"),
        ("\n\n1 / 0", "net.py:make", r"ZeroDivisionError: division by zero \(.*net\.py, line 3\)"),
        ("import not_there_at_all", "net.py:make", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(3)", "net.py:make", "SystemExit: 3"),
        ("", "not_there_at_all.net:make", "no module named 'not_there_at_all'"),
        ("", "json.nothing:make", r"no module named 'json\.nothing'"),
        ("", "net.py", "names no code"),
    ],
)
def test_failures_are_the_users_to_mend(tmp_path, body, spec, match):
    (tmp_path / "net.py").write_text(body)
    before = set(sys.modules)
    with pytest.raises(UsageError, match=match) as caught:
        load_object(spec, base=tmp_path)
    assert caught.value.remedy
    assert not [m for m in set(sys.modules) - before if m.startswith("_prunetaylor")]


def test_a_mistyped_name(tmp_path):
    (tmp_path / "net.py").write_text("def make(): pass")
    with pytest.raises(UsageError, match="has no 'mak'; did you mean 'make'"):
        load_object("net.py:mak", base=tmp_path)


def test_the_users_file_may_import_torchvision(tmp_path):
    """Beside a torch of another build too, wherever the import stands; torchvision is imported once a process."""
    (tmp_path / "first.py").write_text("import torchvision\nVALUE = torchvision.models.resnet18\n")
    (tmp_path / "late.py").write_text("def make():\n    from torchvision.models import resnet18\n    return resnet18\n")
    for code in ("load_object('first.py:VALUE')", "load_object('late.py:make')()"):
        line = f"from prunetaylor.runtime.user_code import load_object; assert {code}.__name__ == 'resnet18'"
        done = subprocess.run(
            python("-c", line), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
