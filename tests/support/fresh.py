"""The project as a stranger gets it: a repository of its files, and environments that hold nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def is_clone() -> bool:
    return shutil.which("git") is not None and (ROOT / ".git").exists()


def tracked(*patterns: str) -> list[str]:
    """The files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def clone(folder: Path) -> Path:
    """A repository of these files as they are now, with one commit on its branch main."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A", "-f"], [*who, "commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def stranger(home: Path) -> dict[str, str]:
    """The environment of somebody who has nothing of ours, but reaches packages the way that this machine does."""
    home.mkdir(parents=True, exist_ok=True)
    ours = ("PYTHON", "PYTEST", "VIRTUAL_ENV", "PRUNETAYLOR_", "XDG_", "GITHUB_", "CI")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    mine = [Path("~/.config/pip/pip.conf").expanduser(), Path("~/.pip/pip.conf").expanduser()]
    found = next((str(path) for path in mine if path.is_file()), None)
    return kept | {"HOME": str(home)} | ({"PIP_CONFIG_FILE": found} if found and "PIP_CONFIG_FILE" not in kept else {})


def empty_environment(folder: Path) -> Path:
    """A virtual environment with nothing but pip; the folder of its programs."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    subprocess.run([str(base if base.exists() else sys.executable), "-m", "venv", str(folder)], check=True, timeout=120)
    return folder / "bin"
