"""Pruning while fine-tuning: ours, magnitude pruning with the same epochs, and the dense network with them.

    python benchmarks/gradual.py --checkpoint resnet20-cifar10-jpeg.pt --data folder:DIR [--seeds 0 1] [--goals 0.9:6]
    python benchmarks/gradual.py --show

A goal is SPARSITY:EPOCHS. Each result is added to benchmarks/gradual.jsonl as soon as it is there; what is there is not
run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import Silent
from prunetaylor.pipeline.finetuning.epoch_selection import EpochSelector
from prunetaylor.pipeline.job import open_job
from prunetaylor.pipeline.run import run

HERE = Path(__file__).parent
RESULTS = HERE / "gradual.jsonl"
GOALS = ["0.9:6", "0.8:4"]
MAGNITUDE: dict[str, Any] = {"prune.method": "magnitude", "prune.schedule": "cubic", "prune.repair": "none"}
TRAINED = "dense, the best of the same epochs"
"""As the one before it, but what it starts from does not count: what the epochs by themselves come to."""
WAYS: dict[str, dict[str, Any]] = {
    "ours, gradual": {"prune.schedule": "cubic"},
    "ours, one-shot, then the epochs": {},
    # No repair; the same schedule, optimiser, distillation and epochs, and as it is known, without distillation.
    "magnitude, gradual": MAGNITUDE,
    "magnitude, gradual, labels alone": {**MAGNITUDE, "finetune.distill.weight": 0.0},
    "dense, the same epochs": {"prune.sparsity": 0.0},
    TRAINED: {"prune.sparsity": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint")
    parser.add_argument("--data")
    parser.add_argument("--goals", nargs="+", default=GOALS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        for seed in args.seeds:
            for goal in args.goals:
                for way in args.ways:
                    measure(args.checkpoint, args.data, goal, way, seed)
    show()


def measure(checkpoint: str, data: str, goal: str, way: str, seed: int) -> None:
    if any((row["goal"], row["way"], row["seed"]) == (goal, way, seed) for row in rows()):
        return
    sparsity, epochs = goal.split(":")
    start = time.perf_counter()
    values = {
        "model.checkpoint": checkpoint,
        "model.arch": f"{HERE.parent / 'configs' / 'resnet20_cifar.py'}:resnet20",
        "data.source": data,
        "data.normalize": "imagenet",
        "prune.sparsity": float(sparsity),
        "finetune.epochs": int(epochs),
        "seed": seed,
    }
    config = from_values(values | WAYS[way]).config
    job = open_job(config, trust=Trust(everything=True), progress=Silent())
    offer = EpochSelector.offer

    def offer_epochs(self: EpochSelector, epoch: int, *rest: Any) -> None:
        if epoch:
            offer(self, epoch, *rest)

    with patch.object(EpochSelector, "offer", offer_epochs) if way == TRAINED else nullcontext():
        outcome = run(job, Silent())
    [said] = [line for line in outcome.choices if line.startswith("validation: ")]
    row = {
        "goal": goal,
        "way": way,
        "seed": seed,
        "held": int(said.split()[1]),  # training samples kept out to choose between epochs by
        "dense": outcome.dense.metrics["top1"],
        "top1": outcome.pruned.metrics["top1"],
        "validation": [round(epoch.validation, 2) for epoch in outcome.epochs],
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    with RESULTS.open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(goal, way, seed, f"{row['top1']:.2f} (dense {row['dense']:.2f}) in {row['seconds']:.0f} s", flush=True)


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def show() -> None:
    """The table: top-1 in percent and the drop in pp, means over seeds."""
    found = rows()
    goals = list(dict.fromkeys(row["goal"] for row in found))
    print("| way | " + " | ".join("{:.0%} in {} epochs".format(float(g.split(":")[0]), g.split(":")[1]) for g in goals))
    print("| --- |" + " ---: |" * len(goals))
    for way in WAYS:
        cells = []
        for goal in goals:
            mine = [row for row in found if row["goal"] == goal and row["way"] == way]
            if not mine:
                cells.append("")
                continue
            top1, dense = (statistics.mean(row[key] for row in mine) for key in ("top1", "dense"))
            cells.append(f"{top1:.2f} (drop {dense - top1:.2f}, {len(mine)} seeds)")
        print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
