"""Mutants of every file that is read back: each is read or refused, within bounds, and none of its code runs."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from support.fuzz_reader import CACHE_KEY, CPU_SECONDS
from support.mutants import mutant, seeds

TESTS = Path(__file__).parents[2]


def written(kind: str, content: bytes, folder: Path) -> Path:
    """The file that the reader of this kind is given; for a run its folder."""
    name = {"run": "report.json", "cache": f"first-{CACHE_KEY}.safetensors", "npz": "a.npz"}.get(kind, "a.pt")
    (folder / name).write_bytes(content)
    return folder if kind == "run" else folder / name


def readings(files, folder: Path):
    """What the reading process says of each of ``files``: (name, kind, content)."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "support.fuzz_reader"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=TESTS.parent, env=environment, text=True, **pipes) as process:
        for name, kind, content in files:
            process.stdin.write(f"{kind} {written(kind, content, folder)}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield name, content, json.loads(line)
        process.stdin.close()


def check(count: int, seed: int, tmp_path: Path) -> None:
    known, draw, canary = seeds(tmp_path), random.Random(seed), tmp_path / "canary"
    names = [list(known)[n % len(known)] for n in range(count)]
    files = ((name, known[name][0], mutant(name, known, draw, canary)) for name in names)
    (tmp_path / "read").mkdir()
    wrong, outcomes = [], set()
    for number, (name, content, found) in enumerate(readings(files, tmp_path / "read")):
        outcomes.add(found["said"])
        if found["signal"] or found["said"] not in ("read", "refused") or found["cpu"] > CPU_SECONDS or canary.exists():
            kept = tmp_path / f"wrong-{number}"
            kept.write_bytes(content)
            canary.unlink(missing_ok=True)
            wrong.append(f"{number}, a mutant of {name} ({kept}): {found}")
    assert not wrong, "\n".join(wrong)
    assert outcomes == {"read", "refused"}


def test_seeds_are_read(tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    good = [(name, kind, content) for name, (kind, content) in seeds(tmp_path).items()]
    for name, _, found in readings(good, tmp_path / "read"):
        assert found["said"] == "read", (name, found)


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    check(50, 0, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_thousand_mutants_are_read_or_refused(tmp_path: Path) -> None:
    check(2000, 1, tmp_path)
