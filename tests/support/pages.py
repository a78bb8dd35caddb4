"""The documentation as tests see it: pages, their fenced blocks, and the commands in them.

A comment right before a block says how it is tested where it is not simply run:

    <!-- parsed: REASON -->      its commands are parsed, not run
    <!-- long: REASON -->        it is run in the long tier, and parsed in the short one
    <!-- not run: REASON -->     nothing is done with it

A block with a title, ```python title="net.py", is a file that the page's reader saves.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
GENERATED = ["docs/reference/cli.md", "docs/reference/configuration.md", "docs/reference/python.md"]
_BLOCK = re.compile(
    r'(?:<!-- (?P<mark>parsed|long|not run): [^\n]+ -->\n)?^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    title: str | None = None
    mark: str | None = None

    @property
    def lines(self) -> list[str]:
        """Each command of a shell's block, without what it printed, comments and line breaks."""
        if self.language not in ("bash", "console"):
            return []
        joined = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            joined = [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
        return [line for line in joined if shlex.split(line, comments=True)]

    @property
    def sessions(self) -> list[tuple[str, list[str]]]:
        """Each command of a terminal's block with the lines that it printed."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:] if self.language == "console" else []
        return [(first, rest.splitlines()) for first, _, rest in (part.partition("\n") for part in parts)]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    found = [Block(m["language"], m["text"], m["title"], m["mark"]) for m in _BLOCK.finditer(read(page))]
    assert len(found) == len(re.findall(r"^```\w", read(page), re.MULTILINE)), f"{page}: a fence that is not closed"
    return found


def prose(page: str) -> str:
    """A page without its blocks."""
    return _BLOCK.sub("", read(page))


def spans(page: str) -> list[str]:
    """What stands between single backticks in a page's text."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def words(line: str) -> list[str]:
    """The words of the prunetaylor command in a line of shell; none where there is no such command."""
    found = shlex.split(line, comments=True)
    return found[found.index("prunetaylor") + 1 :] if "prunetaylor" in found else []
