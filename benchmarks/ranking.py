"""How output errors are made comparable across layers: OBS in stages and least squares under one rule after another.

    python benchmarks/ranking.py --checkpoint FILE --arch FILE.py:NAME --data folder:DIR [--normalize imagenet]
    python benchmarks/ranking.py --show

The rule is the weight of the error's unit in the geometric mean with the layer's own (pruning/criteria/_units.py):
0 is the layer's own alone, 1 the error's alone. Accuracy is that on training images which nothing else sees, so that
the rule is not chosen by those that report. Rows go to ranking.jsonl; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import Silent
from prunetaylor.data.samples import draw
from prunetaylor.pipeline.job import Job, open_job
from prunetaylor.pipeline.run import run
from prunetaylor.pruning.criteria import _units
from prunetaylor.pruning.selection.selector import Selection, Selector

RESULTS = Path(__file__).with_suffix(".jsonl")
RISING, ASKED = "rising to 1", "the sparsity"  # from 1/2 with what is removed so far; the sparsity that is asked for
WEIGHTS: tuple[float | str, ...] = (0.25, 0.5, 0.75, 1.0, RISING, ASKED)
# The same stages for every rule: what a run by itself takes, about, so that only the ranking differs.
STAGES = {
    0.7: [0.3, 0.55, 0.7],
    0.8: [0.3, 0.55, 0.7, 0.8],
    0.9: [0.3, 0.55, 0.7, 0.81, 0.875, 0.9],
    0.95: [0.3, 0.55, 0.7, 0.81, 0.875, 0.92, 0.95],
}
METHODS = ("exact_obs", "obs", "magnitude")  # the last has one unit everywhere, that of the weights
KEPT_OUT = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint")
    parser.add_argument("--arch")
    parser.add_argument("--data")
    parser.add_argument("--normalize", default="none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        for seed, sparsity, method in product(args.seeds, STAGES, METHODS):
            for weight in WEIGHTS if method != "magnitude" else (None,):
                if not any(key(row) == (method, sparsity, weight, seed) for row in rows()):
                    measure(args, method, sparsity, weight, seed)
    show()


def measure(args: argparse.Namespace, method: str, sparsity: float, weight: float | str | None, seed: int) -> None:
    settings = {
        "model.checkpoint": args.checkpoint,
        "model.arch": args.arch,
        "data.source": args.data,
        "data.normalize": args.normalize,
        "prune.method": method,
        "prune.repair": "least-squares",
        "prune.sparsity": sparsity,
        "prune.stages": STAGES[sparsity],
        "prune.refine": "none",
        "finetune.epochs": 0,
        "seed": seed,
    }
    job = open_job(from_values(settings).config, trust=Trust(everything=True), progress=Silent())
    keep_out(job)
    step = Selector.step

    def weighed(self: Selector, masks: Mapping[str, Tensor], *rest: Any, **more: Any) -> Selection:
        now = sum(int((~mask).sum()) for mask in masks.values()) / self.network.prunable
        if weight is not None:
            _units.BELIEF = (1 + now) / 2 if weight == RISING else sparsity if weight == ASKED else float(weight)
        return step(self, masks, *rest, **more)

    with patch.object(Selector, "step", weighed), patch.object(_units, "BELIEF", _units.BELIEF):
        outcome = run(job, Silent())
    row = {"method": method, "sparsity": sparsity, "weight": weight, "seed": seed, **outcome.pruned.metrics}
    with RESULTS.open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(row, flush=True)


def keep_out(job: Job) -> None:
    """Training images report in place of the test set, and calibrate nothing."""
    assert job.samples is not None
    train = job.samples.train
    order = draw(train, len(train), torch.Generator().manual_seed(12345))
    parts: dict[str, Any] = {"train": train.subset(order[KEPT_OUT:]), "test": train.subset(order[:KEPT_OUT])}
    job.samples = type(job.samples)(**{**vars(job.samples), **parts})


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def key(row: dict[str, Any]) -> tuple[str, float, float | str | None, int]:
    return row["method"], row["sparsity"], row["weight"], row["seed"]


def show() -> None:
    """The loss, and top-1 in percent, means over seeds."""
    found = rows()
    print("| | weight of the error's unit | " + " | ".join(f"{s:.0%}" for s in STAGES) + " |")
    print("| --- | --- |" + " ---: |" * len(STAGES))
    for method, weight in product(METHODS, (*WEIGHTS, None)):
        cells = []
        for sparsity in STAGES:
            mine = [row for row in found if key(row)[:3] == (method, sparsity, weight)]
            loss, top1 = (statistics.mean(row[name] for row in mine) if mine else 0.0 for name in ("loss", "top1"))
            cells.append(f"{loss:.3f} ({top1:.2f}){' one' if len(mine) == 1 else ''}" if mine else "")
        if any(cells):
            print(f"| {method} | {weight or ''} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
