"""The memory plan through the real command line: printed, reported, and what does not fit refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["prune", "score"])
def test_what_does_not_fit_is_refused_before_anything_is_done(demo_model: Path, inline, tmp_path, command: str) -> None:
    code, stdout, stderr = inline(command, str(demo_model), "--memory", "1MiB")
    assert code == 2
    assert stdout == ""
    *_, cause, remedy = stderr.splitlines()
    assert " needs " in cause
    assert "the limit is 1.0 MiB" in cause
    assert remedy.strip().startswith("what would fit: --memory ")
    assert "Traceback" not in stderr
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_an_amount_that_is_none(demo_model: Path, inline) -> None:
    code, _, stderr = inline("prune", str(demo_model), "--memory", "3G")
    assert code == 2
    assert "memory: '3G' is not an amount of memory, such as 3GiB" in stderr


def test_a_dry_run_says_it(demo_model: Path, inline) -> None:
    code, stdout, stderr = inline("prune", str(demo_model), "--dry-run", "--memory", "2GiB")
    assert code == 0, stderr
    [line] = [line for line in stdout.splitlines() if line.startswith("memory ")]
    assert "needs up to" in line
    assert "limit 2.0 GiB" in line
    code, stdout, stderr = inline("prune", str(demo_model), "--dry-run", "--json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert document["memory"]["planned"] == sum(document["memory"]["parts"].values())
    assert document["memory"]["limit"] > document["memory"]["planned"]
