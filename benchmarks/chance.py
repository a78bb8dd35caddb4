"""How often a network is said to be no better than guessing: simulated test sets of networks that are, and are not.

    python benchmarks/chance.py          # some minutes

Rows go to chance.jsonl; the table stands in docs/explanation/chance.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from prunetaylor.measure.chance import check_chance
from prunetaylor.measure.evaluate import evaluate_outputs

OUTPUT = Path(__file__).with_suffix(".jsonl")
G = torch.Generator().manual_seed(0)
Network = Callable[[Tensor, int], Tensor]


def noise(y: Tensor, classes: int) -> Tensor:
    return torch.randn(len(y), classes, generator=G)


def good(y: Tensor, classes: int) -> Tensor:
    return 2 * (noise(y, classes) + 6 * one_hot(y, classes))


def shifted(y: Tensor, classes: int) -> Tensor:
    return good((y + 1) % classes, classes)


def permuted(y: Tensor, classes: int) -> Tensor:
    return good(torch.randperm(classes, generator=G)[y], classes)


def unscaled(y: Tensor, classes: int) -> Tensor:
    """Inputs out of range leave nearly one answer."""
    return 5 * torch.randn(1, classes, generator=G) + 0.01 * noise(y, classes)


def weak(share: float) -> Network:
    """Right on this share of the samples, and far too sure: its cross-entropy is above that of the shares."""

    def network(y: Tensor, classes: int) -> Tensor:
        wrong = (y + torch.randint(1, classes, y.shape, generator=G)) % classes
        return 8.0 * one_hot(torch.where(torch.rand(len(y), generator=G) < share, y, wrong), classes)

    return network


def calibrated(y: Tensor, classes: int) -> Tensor:
    return 0.1 * (noise(y, classes) + 0.1 * one_hot(y, classes))


def ranking(scale: float, prior: float) -> Network:
    """Two classes, told apart by one number."""

    def network(y: Tensor, classes: int) -> Tensor:
        seen = torch.randn(len(y), generator=G) + y
        return torch.stack([torch.zeros(len(y)), scale * (seen - 0.5) + prior], 1)

    return network


EVEN2, EVEN10, EVEN100, EVEN1000 = ([1 / k] * k for k in (2, 10, 100, 1000))
ODD2, ODD10 = [0.95, 0.05], [0.5, *[0.5 / 9] * 9]
NETWORKS: list[tuple[str, str, Network, list[float]]] = [
    ("broken", "ids shifted by one, 10 classes", shifted, EVEN10),
    ("broken", "classes in a random order, 10", permuted, EVEN10),
    ("broken", "unscaled inputs, 10", unscaled, EVEN10),
    ("broken", "unscaled inputs, 10 (one has half)", unscaled, ODD10),
    ("broken", "random weights, 10", noise, EVEN10),
    ("broken", "random weights, 10 (one has half)", noise, ODD10),
    ("broken", "random weights, 100", noise, EVEN100),
    ("broken", "labels swapped, 2", shifted, EVEN2),
    ("broken", "random weights, 2", noise, EVEN2),
    ("broken", "random weights, 95:5", noise, ODD2),
    ("useful", "good, 10", good, EVEN10),
    ("useful", "12 % right, calibrated, 10", calibrated, EVEN10),
    ("useful", "12 % right, far too sure, 10", weak(0.12), EVEN10),
    ("useful", "1.6 % right, far too sure, 100", weak(0.016), EVEN100),
    ("useful", "answers the majority, ranks well, 95:5", ranking(1.0, math.log(0.05 / 0.95)), ODD2),
    ("useful", "trained with weights, 95:5", ranking(4.0, 0.0), ODD2),
]
LARGE: list[tuple[str, str, Network, list[float]]] = [
    ("broken", "ids shifted by one, 1,000", shifted, EVEN1000),
    ("broken", "classes in a random order, 1,000", permuted, EVEN1000),
    ("broken", "random weights, 1,000", noise, EVEN1000),
    ("broken", "unscaled inputs, 1,000", unscaled, EVEN1000),
    ("useful", "0.2 % right, far too sure, 1,000", weak(0.002), EVEN1000),
]


def rate(network: Network, samples: int, shares: list[float], trials: int) -> float:
    alerts = 0
    for _ in range(trials):
        y = torch.multinomial(torch.tensor(shares), samples, replacement=True, generator=G)
        evaluation = evaluate_outputs(network(y, len(shares)), y, "classification")
        alerts += check_chance(evaluation, "classification") is not None
    return alerts / trials


def main() -> None:
    each = [(n, one, 200) for one in NETWORKS for n in (40, 1000, 10_000)] + [(50_000, one, 20) for one in LARGE]
    for samples, (kind, name, network, shares), trials in each:
        found = rate(network, samples, shares, trials)
        row = {"network": name, "kind": kind, "samples": samples, "trials": trials, "said": found}
        with OUTPUT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
