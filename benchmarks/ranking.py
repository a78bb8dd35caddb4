"""How output errors are made comparable across layers: OBS in stages and least squares under one rule after another.

    python benchmarks/ranking.py --checkpoint FILE --arch FILE.py:NAME --data folder:DIR [--normalize imagenet]
    python benchmarks/ranking.py --show

The rule is the weight of the error's unit in the geometric mean with the layer's own (prunetaylor/saliency/_units.py):
0 is the layer's own alone, 1 the error's alone. Accuracy is that on training images which nothing else sees, so that
the rule is not chosen by those that report. Rows go to ranking.jsonl; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from prunetaylor.config.resolve import from_values
from prunetaylor.data.samples import draw
from prunetaylor.job import Job, open_job
from prunetaylor.pipeline import run
from prunetaylor.progress import Silent
from prunetaylor.saliency import _units

RESULTS = Path(__file__).with_suffix(".jsonl")
WEIGHTS = (0.75, 0.0, 0.5, 1.0)
SPARSITIES = (0.8, 0.9, 0.95)
KEPT_OUT = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint")
    parser.add_argument("--arch")
    parser.add_argument("--data")
    parser.add_argument("--normalize", default="none")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        for sparsity in SPARSITIES:
            for weight in WEIGHTS:
                if not any((row["sparsity"], row["weight"]) == (sparsity, weight) for row in rows()):
                    measure(args, sparsity, weight)
    show()


def measure(args: argparse.Namespace, sparsity: float, weight: float) -> None:
    settings = {
        "model.checkpoint": args.checkpoint,
        "model.arch": args.arch,
        "data.source": args.data,
        "data.normalize": args.normalize,
        "prune.sparsity": sparsity,
        "prune.refine": "none",
        "finetune.epochs": 0,
    }
    job = open_job(from_values(settings).config, trusted_arch=True, trusted_data=True, progress=Silent())
    keep_out(job)
    before, _units.BELIEF = _units.BELIEF, weight
    try:
        outcome = run(job, Silent())
    finally:
        _units.BELIEF = before
    row = {"sparsity": sparsity, "weight": weight, **outcome.pruned.metrics, "dense": outcome.dense.metrics["top1"]}
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


def rows() -> list[dict[str, float]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def show() -> None:
    """Top-1 in percent, and the loss."""
    found = {(row["weight"], row["sparsity"]): row for row in rows()}
    print("| weight of the error's unit | " + " | ".join(f"{s:.0%}" for s in SPARSITIES) + " |")
    print("| ---: |" + " ---: |" * len(SPARSITIES))
    for weight in sorted(WEIGHTS):
        cells = [found.get((weight, s)) for s in SPARSITIES]
        shown = [f"{cell['top1']:.2f} ({cell['loss']:.3f})" if cell else "" for cell in cells]
        print(f"| {weight:g} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
