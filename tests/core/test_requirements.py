"""What is installed: packages that are missing are asked for by a command that works everywhere, and ours are whole."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shlex
from pathlib import Path

import pytest

from prunetaylor.core.requirements import install_hint

ROOT = Path(__file__).parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = [line for text in SETUP["options.extras_require"].values() for line in text.split() if "[" not in line]


@pytest.mark.parametrize("requirement", [*SETUP["options"]["install_requires"].split(), *EXTRAS])
def test_a_hint_names_the_package_with_the_version_that_is_needed(requirement: str) -> None:
    name = re.split(r"[<>=]", requirement)[0]
    assert shlex.split(install_hint(name)) == ["pip", "install", requirement]
    assert install_hint(name.upper().replace("-", "_")) == install_hint(name)


def test_other_packages_are_named_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_hint("gdown") == "pip install gdown"
    assert install_hint("evil; rm -rf /") == "pip install 'evil; rm -rf /'"

    def none(_: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", none)
    assert install_hint("ray") == "pip install ray"


def test_the_wheel_holds_every_folder_with_modules() -> None:
    """They are listed by hand, as ``find:`` does not know the folder cli/, which is installed under another name."""
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "prunetaylor").rglob("*.py")}
    found |= {f"prunetaylor.{'.'.join(path.parent.relative_to(ROOT).parts)}" for path in (ROOT / "cli").rglob("*.py")}
    assert SETUP["options"]["packages"].split() == sorted(found)


def test_no_text_sends_the_user_to_an_index_for_this_package() -> None:
    """It is installed from a clone or a git address; an index may have another package of its name, or none."""
    sources = [path for folder in ("prunetaylor", "cli", "docs", "configs") for path in (ROOT / folder).rglob("*.*")]
    for path in [*sources, ROOT / "README.md", ROOT / "action.yml"]:
        if path.suffix in (".py", ".md", ".yml", ".yaml", ".html") and path.name != "requirements.py":
            for line in path.read_text().splitlines():
                asked = re.search(r"""pip install [^`]*?['" ]prunetaylor\b(?!(\[[\w,]*\])? @ git)""", line)
                assert not asked, f"{path}: {line}"
