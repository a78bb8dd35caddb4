"""Verdicts to render, and the published forms to hold them against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import xmlschema

from prunetaylor.core.results.outcome import ClassDrop, Drop, Flips, Latency, LayerResult, NetworkStats
from prunetaylor.core.results.verdict import Check, Verdict
from prunetaylor.gate import limits
from prunetaylor.measure.disagreements import mcnemar

ROOT = Path(__file__).parents[2]
JUNIT = xmlschema.XMLSchema10(str(ROOT / "tests" / "report" / "junit.xsd"))
SCHEMA = json.loads((ROOT / "docs" / "reference" / "verdict.schema.json").read_text())


def assert_valid_junit(text: str) -> None:
    JUNIT.validate(text)


def assert_valid_json(document: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)


def checks(lost: int = 60, won: int = 20) -> list[Check]:
    """All six limits; the drop's verdict is what the flips of 10,000 samples make of 0.5 pp."""
    classes = [class_drop(3, 1000, 40, 2)]
    timed = Latency(1.5, 1.3, 0.87, 0.85, 0.89, 0.01, True, 40, 1, "cpu")
    return [
        limits.accuracy_drop(Flips(10_000, lost, won, mcnemar(lost, won)), 0.5),
        limits.class_drop(classes, 3),
        limits.sparsity(800, 1000, 0.8),
        limits.file_size(1_234_567, 2_000_000),
        limits.flops((1000, 1000), (1000, 440), 0.5),
        limits.latency(timed, 0.9),
    ]


def class_drop(label: int, samples: int, lost: int, won: int) -> ClassDrop:
    value = 100 * (lost - won) / samples
    return ClassDrop(label, samples, lost, won, Drop(value, value - 1, value + 1))


def verdict(found: list[Check] | None = None, **more: Any) -> Verdict:
    layers = [LayerResult(f"layer{i}.conv", (64, 32, 3, 3), 9216 + i, 0.5 + i / 100) for i in range(12)]
    values: dict[str, Any] = {
        "checks": checks() if found is None else found,
        "on_inconclusive": None,
        "metric": "top1",
        "goal": "max",
        "unit": "%",
        "dense": NetworkStats({"top1": 91.31, "loss": 0.31}, 272_474, 272_474, 81_000_000, 81_000_000, 1_105_000),
        "pruned": NetworkStats({"top1": 90.91, "loss": 0.33}, 272_474, 60_000, 81_000_000, 20_000_000, 1_234_567),
        "files": {"dense": "resnet20.pt", "pruned": "runs/resnet20-1/model.safetensors"},
        "drop": Drop(0.4, 0.23, 0.58),
        "flips": Flips(10_000, 60, 20, mcnemar(60, 20)),
        "classes": [class_drop(3, 1000, 40, 2), class_drop(5, 1000, 20, 1), class_drop(1, 1000, 0, 0)],
        "layers": layers,
        "latency": Latency(1.5, 1.3, 0.87, 0.85, 0.89, 0.01, True, 40, 1, "cpu"),
        "samples": 10_000,
        "data": "folder:cifar",
        "seed": 0,
        "device": "cpu",
        "seconds": 12.34,
        "notes": ["baseline resnet20.pt: what the run pruned"],
        "hashes": {"dense": "ab", "pruned": "cd", "data": "ef"},
    }
    return Verdict(**{**values, **more})
