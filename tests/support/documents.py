"""Reports of runs as they lie in report.json, without a run."""

from __future__ import annotations

import json
import math
from typing import Any

from torch import nn

from prunetaylor.core.results.outcome import (
    ClassDrop,
    Drop,
    Epoch,
    FirstOrder,
    Flips,
    Histogram,
    LayerResult,
    NetworkStats,
    PruneResult,
    Skipped,
    Sparsity,
    Stage,
)
from prunetaylor.measure.disagreements import mcnemar
from prunetaylor.report.json_report import to_json, verdict_to_json
from support.verdicts import verdict

BLOCKS = ["conv1", *(f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)), "linear"]


def report(**more: Any) -> dict[str, Any]:
    """The report.json of a run like ResNet-20's at 80 %, as it is read back; ``more`` are fields of the outcome."""
    stages = []
    for i, (sparsity, predicted, ratio) in enumerate(
        [(0.3, 2e-3, 0.8), (0.52, 9e-3, 1.1), (0.69, 0.04, 4.6), (0.62, 0.02, 1.3), (0.74, 0.05, 1.6), (0.8, 0.11, 0.7)]
    ):
        measured, stands = predicted * ratio, i != 2
        since = (2 * predicted, 2 * measured, True, ratio)
        stages.append(
            Stage(sparsity, predicted, measured, ratio, 3.2, stands, 0.001, 0.01, *since, 92.0 - 8 * sparsity)
        )
    edges = [-8 + 0.1 * i for i in range(61)]
    hill = [round(4000 * math.exp(-(((edge + 5) / 1.2) ** 2))) for edge in edges[:-1]]
    line = next(i for i, edge in enumerate(edges) if edge > -4.6)
    values: dict[str, Any] = {
        "module": nn.Linear(1, 1),
        "masks": {},
        "method": "obs",
        "metric": "top1",
        "goal": "max",
        "unit": "%",
        "dense": NetworkStats({"top1": 88.29, "loss": 0.4321}, 272_474, 272_474, 81_070_000, 81_070_000, 1_105_000),
        "pruned": NetworkStats({"top1": 85.93, "loss": 0.4876}, 272_474, 55_757, 81_070_000, 21_300_000, 1_105_100),
        "sparsity": Sparsity(0.8, 0.8, 270_896, 216_717, 0.99),
        "drop": Drop(2.36, 1.92, 2.81),
        "stages": stages,
        "first_order": FirstOrder(0.0312, 0.123, 0.1, kept=False, labels=True),
        "layers": [LayerResult(name, (16, 16, 3, 3), 1843 - 60 * i, 0.8 - 0.026 * i) for i, name in enumerate(BLOCKS)],
        "skipped": [Skipped("head.parametrized", "its weight is computed from another")],
        "epochs": [Epoch(i, 1 / i, 84.0 + i / 2, 70.0, 0.8, 0.05 / i) for i in (1, 2, 3)],
        "choices": ["method obs: there are samples, and it is the strongest one-shot criterion measured"],
        "seconds": {"total": 168.3},
        "seed": 0,
        "device": "cpu",
        "hashes": {"checkpoint": "ab" * 32, "data": "cd" * 32},
        "flips": Flips(10_000, 412, 176, mcnemar(412, 176)),
        "classes": [
            ClassDrop(i, 1000, 60 - 5 * i, 12, Drop(4.8 - 0.5 * i, 3.2 - 0.5 * i, 6.5 - 0.5 * i)) for i in range(10)
        ],
        "histogram": Histogram(edges, [*hill[:line], *([0] * (60 - line))], [*([0] * line), *hill[line:]], -4.6),
    }
    outcome = PruneResult(**{**values, **more})
    files = {"folder": "runs/resnet20-1", "model": "runs/resnet20-1/model.safetensors"}
    files |= {"config": "runs/resnet20-1/config.yaml"}
    settings = {
        "model": {"checkpoint": "resnet20.pt", "args": {}},
        "prune": {"sparsity": 0.8, "exclude": []},
        "seed": 0,
    }
    document = {**to_json(outcome, files, settings), "gate": verdict_to_json(verdict())}
    read: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return read
