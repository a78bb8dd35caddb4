"""The documentation's site: built with every warning an error, and complete without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = re.compile(r"""(?:src|href)="(https?:)?//|url\(["']?(https?:)?//|@import""")


@pytest.mark.long
def test_the_site_is_built_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
    pages = list((ROOT / "docs").rglob("*.md"))
    assert len(list(tmp_path.rglob("index.html"))) >= len(pages)
    for path in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        text = re.sub(r'<a [^>]*href="https?://[^>]*>|<link rel="(canonical|alternate)"[^>]*>', "", path.read_text())
        assert not PLACES.search(text), path
