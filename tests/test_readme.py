"""What the README says of the repository; tests/docs follows its commands."""

from __future__ import annotations

import re

from prunetaylor.core import registry
from support.pages import ROOT, blocks, read


def test_it_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 105


def test_it_has_every_method() -> None:
    table = re.search(r"^\| `--method`.*?\n\n", read("README.md"), re.DOTALL | re.MULTILINE)
    assert table is not None
    named = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table[0].splitlines()[2:-1]))
    assert sorted(named) == list(registry.names(registry.CRITERIA))


def test_its_scripts_exist() -> None:
    lines = [line for block in blocks("README.md") for line in block.lines if line.startswith("bash ")]
    assert [line.split()[1] for line in lines] == ["scripts/quickstart.sh", "scripts/test.sh"]
    assert all((ROOT / line.split()[1]).is_file() for line in lines)
