"""How output errors are made comparable across layers where training follows each step: by new images.

    python benchmarks/gradual_ranking.py --data arrays:cifar10.npz --folder DIR [--seeds 0]
    python benchmarks/gradual_ranking.py --show

Two ResNet-20, each trained on 20,000 of CIFAR-10's training images at 16 x 16 pixels, are pruned to 90 % in 8 epochs of
those images and measured on the 30,000 other training images. A network answers images that it was trained on as it has
learnt them by heart, so that on those of the shared ResNet-20 nothing can be chosen that has to hold for new ones, and
test images are not there to choose by. The rule is the weight of the error's unit (pruning/criteria/_units.py).
Rows go to gradual_ranking.jsonl; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import Silent
from prunetaylor.pipeline.job import open_job
from prunetaylor.pipeline.run import run
from prunetaylor.pruning.criteria import _units
from prunetaylor.runtime.user_code import load_object

RESULTS = Path(__file__).with_suffix(".jsonl")
ARCH = Path(__file__).parent.parent / "configs" / "resnet20_cifar.py"
NETWORKS = ("a", "b")
WEIGHTS: tuple[float | None, ...] = (0.25, 0.75, 1.0, None)  # None: magnitude, without repair
TRAINED_ON, SIZE = 20000, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="arrays:FILE.npz with x_train (N, 32, 32, 3) and y_train")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the small networks and images are, or go to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        for name in args.networks:
            if not (args.folder / f"{name}.pt").exists():
                train(args.data.removeprefix("arrays:"), args.folder, name)
        for seed, weight, name in product(args.seeds, WEIGHTS, args.networks):
            if not any(key(row) == (name, weight, seed) for row in rows()):
                measure(args.folder, name, weight, seed)
    show()


def train(data: str, folder: Path, name: str) -> None:
    """A network and its images: DIR/NAME.pt and DIR/NAME.npz, whose test set are the training images that are left."""
    number, arrays = NETWORKS.index(name), np.load(data)
    x, y = arrays["x_train"], arrays["y_train"]
    order = np.random.default_rng(0).permutation(len(x))
    mine = np.arange(len(x)) // TRAINED_ON == number
    x = x.reshape(-1, SIZE, 2, SIZE, 2, 3).mean((2, 4)).round().astype("uint8")
    np.savez(
        folder / f"{name}.npz",
        x_train=x[order[mine]],
        y_train=y[order[mine]],
        x_test=x[order[~mine]],
        y_test=y[order[~mine]],
    )
    torch.manual_seed(number)
    network = load_object(f"{ARCH}:resnet20")().to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = (torch.from_numpy(x[order[mine]]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    images = F.pad(images, (2, 2, 2, 2), mode="reflect").contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(y[order[mine]]).long()
    batch, epochs = 128, 28
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = len(images) // batch * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.15)
    for _ in range(epochs):
        for some in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            top, left = torch.randint(0, 5, (2,)).tolist()
            crops = images[some][:, :, top : top + SIZE, left : left + SIZE]
            flip = (torch.rand(batch) < 0.5).view(-1, 1, 1, 1)
            crops = torch.where(flip, crops.flip(3), crops).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(crops), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.save(network.state_dict(), folder / f"{name}.pt")


def measure(folder: Path, name: str, weight: float | None, seed: int) -> None:
    settings: dict[str, Any] = {
        "model.checkpoint": str(folder / f"{name}.pt"),
        "model.arch": f"{ARCH}:resnet20",
        "data.source": f"arrays:{folder / name}.npz",
        "data.normalize": "imagenet",
        "prune.sparsity": 0.9,
        "prune.schedule": "cubic",
        "finetune.epochs": 8,
        "seed": seed,
    }
    if weight is None:
        settings |= {"prune.method": "magnitude", "prune.repair": "none"}
    job = open_job(from_values(settings).config, trust=Trust(everything=True), progress=Silent())
    with patch.object(_units, "RETRAINED", weight):
        outcome = run(job, Silent())
    row = {
        "network": name,
        "weight": weight,
        "seed": seed,
        "dense": outcome.dense.metrics,
        "pruned": outcome.pruned.metrics,
        "validation": [round(epoch.validation, 2) for epoch in outcome.epochs],
        "left": {x.name: round(float((x.weight != 0).float().mean()), 3) for x in job.network.layers},
    }
    with RESULTS.open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(row, flush=True)


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def key(row: dict[str, Any]) -> tuple[str, float | None, int]:
    return row["network"], row["weight"], row["seed"]


def show() -> None:
    """Top-1 in percent and the loss, means over seeds."""
    found = rows()
    print("| weight of the error's unit | " + " | ".join(f"network {name}" for name in NETWORKS) + " |")
    print("| --- |" + " ---: |" * len(NETWORKS))
    for weight in (*WEIGHTS, "dense"):
        cells = []
        for name in NETWORKS:
            mine = [row for row in found if row["network"] == name and weight in ("dense", row["weight"])]
            side = "dense" if weight == "dense" else "pruned"
            top1, loss = (statistics.mean(row[side][what] for row in mine) for what in ("top1", "loss"))
            cells.append(f"{top1:.2f} ({loss:.4f})")
        print(f"| {'magnitude' if weight is None else weight} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
