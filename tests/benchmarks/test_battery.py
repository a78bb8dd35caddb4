"""The battery of networks can be run: benchmarks/battery.py counts what becomes of all of them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from battery import run

from support.battery.cases import load_cases


@pytest.mark.parametrize("name", ["layers/conv1d", "outputs/named_tuple"])
def test_a_case_works(name: str) -> None:
    row = run(name, load_cases()[name])
    assert (row["status"], row.get("why")) == ("works", None)


def test_cases_have_names_of_their_own() -> None:
    assert len(load_cases()) > 90
