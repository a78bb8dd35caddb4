"""Write the table of docs/reference/methods.md anew, from what the files of criteria/ state."""

from __future__ import annotations

from pathlib import Path

from prunetaylor.core.config.describe import methods_table

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "methods.md"
BEGIN, END = "<!-- methods: written by scripts/methods.py -->\n", "<!-- end of methods -->\n"


def rewritten(page: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{methods_table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
