"""Markdown for the generated pages of docs/reference/."""

from __future__ import annotations

import re
from collections.abc import Sequence

HEAD = "<!-- written by scripts/reference.py -->\n"

_CODE = re.compile(
    r"(?<![\w`*{])"
    r"("
    r"--[a-z][\w-]*"  # an option
    r"|\w+\([^)]*\)"  # a call
    r"|\[[A-Z]\w+.*\]$"  # a list of transforms
    r"|\{[a-z_]+: [^}]*\}"  # a mapping
    r"|[\w./*~$-]*(?:_|=|::)[\w.:/*=-]*\w"  # a name, an assignment
    r"|\w+(?:\.\w+)*:[A-Z]+(?:\.[a-z]+)?(?::[A-Z]+)?"  # torchvision:NAME
    r"|[\w-]+\.(?:py|npz|yaml|json|jsonl|html|safetensors)(?::[A-Z]+)?"  # a file
    r"|[a-z]+\.[a-z]\w*(?:\.\w+)*"  # a setting
    r")(?![\w`])"
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    cells = [head, ("---",) * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def prose(text: str) -> str:
    """Return plain text as Markdown, with what looks like code as code."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(
        f"`{part.strip('`')}`" if part.startswith("`") else _CODE.sub(r"`\1`", part.replace("<", "&lt;"))
        for part in parts
    )
