"""What a sweep costs beside the same runs one by one, and what `bayes` finds beside a grid, on the digits.

    python benchmarks/sweep.py cost        # a grid of 12 trials with --jobs 2, and 12 runs of `prunetaylor prune`
    python benchmarks/sweep.py bayes       # hypervolume of (top-1, sparsity) after 12 trials with 5 seeds, and a grid's

Both make the network of `prunetaylor demo` first. Each side of `cost` starts with an empty cache of fits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-m", "prunetaylor.cli.main"]
SPARSITIES, METHODS = (0.5, 0.7, 0.8, 0.9), ("obs", "obd", "magnitude")
FURTHEST = 0.99  # of the space that bayes and its grid share: further than anybody knows to be possible
TRIALS, SEEDS = 12, 5
QUICK = ["calibration.samples=400", "prune.stages=2", "prune.refine=none"]  # of both sides
BASE = "base: {model: {checkpoint: model.pt}, calibration: {samples: 200}, prune: {stages: 1, refine: none}}"
METRICS = "metrics: [{name: top1}, {name: sparsity}]"


def call(here: Path, *words: str, cache: str = "cache") -> str:
    """Run one command; its stdout."""
    env = {**os.environ, "XDG_CACHE_HOME": str(here / cache)}
    return subprocess.run([*PROGRAM, *words], cwd=here, env=env, check=True, capture_output=True, text=True).stdout


def spent() -> tuple[float, float]:
    """Seconds by the clock, and of processor time by all commands so far."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), children.ru_utime + children.ru_stime


def cost(here: Path) -> None:
    start = spent()
    varied = ["-m", f"prune.sparsity={','.join(map(str, SPARSITIES))}", "-m", f"prune.method={','.join(METHODS)}"]
    found = json.loads(call(here, "sweep", "model.pt", *QUICK, *varied, "--jobs", "2", "--json", "-q", cache="a"))
    between = spent()
    assert found["counts"]["done"] == TRIALS
    for sparsity, method in itertools.product(SPARSITIES, METHODS):
        call(here, "prune", "model.pt", "-q", *QUICK, f"prune.sparsity={sparsity}", f"prune.method={method}", cache="b")
    end = spent()
    for i, what in enumerate(("seconds", "processor seconds")):
        swept, single = between[i] - start[i], end[i] - between[i]
        row = {"sweep": round(swept, 1), "single": round(single, 1), "ratio": round(swept / single, 3)}
        print(json.dumps({"what": what, **row, "machine": machine()}))


def bayes(here: Path) -> None:
    step = (FURTHEST - SPARSITIES[0]) / 3
    values = [round(SPARSITIES[0] + i * step, 4) for i in range(4)]
    methods = f"prune.method: {{values: [{', '.join(METHODS)}]}}"
    grid = f"method: grid\n{METRICS}\n{BASE}\nparameters: {{prune.sparsity: {{values: {values}}}, {methods}}}\n"
    (here / "grid.yaml").write_text(grid)
    space = f"prune.sparsity: {{min: {SPARSITIES[0]}, max: {FURTHEST}}}, {methods}"
    (here / "bayes.yaml").write_text(f"method: bayes\nrun_cap: {TRIALS}\n{METRICS}\n{BASE}\nparameters: {{{space}}}\n")
    volumes: dict[str, list[float]] = {"grid": [], "bayes": []}
    for seed in range(SEEDS):
        for name in volumes if seed == 0 else ["bayes"]:  # a grid has no seed
            found = json.loads(call(here, "sweep", f"{name}.yaml", f"seed={seed}", "--json", "-q"))
            volumes[name].append(round(hypervolume(found["trials"]), 3))
            print(json.dumps({"what": "hypervolume", "method": name, "seed": seed, "value": volumes[name][-1]}))
    medians = {name: statistics.median(found) for name, found in volumes.items()}
    print(json.dumps({"what": "median hypervolume", **medians, "machine": machine()}))


def hypervolume(trials: list[dict[str, Any]]) -> float:
    """The area that the trials dominate above (0 % top-1, sparsity 0), in percent times fraction removed."""
    points = sorted((trial["values"] for trial in trials), key=lambda point: -point[0])
    area, reached = 0.0, 0.0
    for top1, sparsity in points:
        area += top1 * max(0.0, sparsity - reached)
        reached = max(reached, sparsity)
    return area


def machine() -> str:
    return f"{os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "bayes"])
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        call(here, "demo", "-q")
        (cost if what == "cost" else bayes)(here)


if __name__ == "__main__":
    main()
