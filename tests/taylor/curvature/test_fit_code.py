"""A fit's key names the code that makes it: every module that it imports, however it is called, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import prunetaylor
from prunetaylor.core.errors import PruneTaylorError
from prunetaylor.taylor import model
from prunetaylor.taylor.curvature.fit_code import code_digest, import_closure

FITS = model.__name__
SOME = 6
"""Each sixth module is tried: reading the imports of all of them takes a tenth of a second a time."""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that can be edited."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(prunetaylor.__file__).parent, tmp_path / "prunetaylor", ignore=ignored))


def digest(package: Path) -> str:
    return code_digest.__wrapped__(FITS, package)


def path_of(name: str, package: Path) -> Path:
    place = package.joinpath(*name.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def test_what_makes_a_fit_is_in_it() -> None:
    names = set(import_closure(FITS))
    for wanted in ("curvature.gram", "curvature.tape", "passes", "losses"):
        assert f"prunetaylor.taylor.{wanted}" in names
    assert {"prunetaylor.network.layer", "prunetaylor.runtime.processes.exchange"} <= names
    rooms = {name.split(".")[1] for name in names if "." in name}
    assert not rooms & {"cli", "api", "sweep", "gate", "pipeline", "report", "pruning", "measure"}


def test_only_edits_of_the_fit_s_own_modules_change_its_code(package: Path) -> None:
    before = digest(package)
    assert before == digest(package) == code_digest(FITS)
    inside = {path_of(name, package) for name in import_closure(FITS)}
    for path in sorted(inside)[::SOME]:
        text = path.read_bytes()
        path.write_bytes(text + b"# edited\n")
        assert digest(package) != before, path
        path.write_bytes(text)
    for path in set(package.rglob("*.py")) - inside:
        path.write_bytes(path.read_bytes() + b"# edited\n")
    assert digest(package) == before


def test_a_module_that_is_moved_is_followed(package: Path) -> None:
    before = digest(package)
    (package / "taylor" / "curvature" / "gram.py").rename(package / "gram.py")
    for path in package.rglob("*.py"):
        path.write_text(path.read_text().replace("prunetaylor.taylor.curvature.gram", "prunetaylor.gram"))
    assert "prunetaylor.gram" in import_closure(FITS, package)
    assert digest(package) != before


def test_a_module_that_is_missing_is_refused(package: Path) -> None:
    modules = [name for name in sorted(import_closure(FITS, package)) if path_of(name, package).stem != "__init__"]
    for name in modules[::SOME]:
        path = path_of(name, package)
        path.rename(path.with_suffix(".gone"))
        with pytest.raises(PruneTaylorError, match=f"no source of {name} in"):
            digest(package)
        path.with_suffix(".gone").rename(path)


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("def f():\n    import prunetaylor.pipeline.demo\n", True),
        (
            "def f():\n    try:\n        pass\n    except OSError:\n        from prunetaylor.pipeline import demo\n",
            True,
        ),
        (
            "match 1:\n    case _:\n        from prunetaylor.pipeline.demo import (\n            save,\n        )\n",
            True,
        ),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from prunetaylor.pipeline import demo\n", False),
        ("import typing as t\nif t.TYPE_CHECKING:\n    pass\nelse:\n    import prunetaylor.pipeline.demo\n", True),
        ('"""\nfrom prunetaylor.pipeline import demo\n"""\n', False),
    ],
)
def test_imports_are_found_wherever_they_run(package: Path, source: str, imported: bool) -> None:
    (package / "made.py").write_text(source)
    assert ("prunetaylor.pipeline.demo" in import_closure("prunetaylor.made", package)) == imported
