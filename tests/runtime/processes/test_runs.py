"""Whole runs on two processes come to what one process comes to, up to rounding: all criteria, repairs, refinements.

The numbers of samples are odd, and of one split less than a batch: shares are never even.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunetaylor import score
from prunetaylor.core import registry
from prunetaylor.data.samples import DatasetSplit
from prunetaylor.runtime.processes import group
from support.networks import ConvNet, trained
from support.processes import run_in_processes
from support.runs import quick
from support.samples import Pair, Recording, quadrants

TRAIN, TEST = quadrants(241, 1), quadrants(121, 2)
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"prune__method": name, "prune__refine": "none"} for name in registry.names(registry.CRITERIA)},
    "staged": {"prune__stages": "auto", "sparsity": 0.7, "prune__refine": "none"},
    # Without a repair before them: near a minimum, steps along a gradient that is mostly rounding are rounding too.
    "by features": {
        "prune__repair": "none",
        "sparsity": 0.7,
        "prune__refine": "last",
        "prune__refine_by": "features",
        "prune__refine_steps": 8,
    },
    "joint": {"prune__method": "joint", "prune__refine": "none", "calibration__samples": 31},
    "by Gauss-Newton": {
        "prune__repair": "none",
        "prune__refine": "last",
        "prune__refine_by": "gauss-newton",
        "prune__refine_steps": 2,
    },
    "with labels": {"calibration__labels": True, "prune__method": "obs_kfac", "prune__refine": "none"},
    "batch norm": {"prune__method": "obd", "prune__repair": "batch-norm"},
    "in closed form": {"prune__repair": "obs", "prune__refine": "none"},
    "no cache": {"cache__enabled": False, "prune__method": "obd"},
    "fine-tuned": {
        "prune__method": "magnitude",
        "finetune__epochs": 1,
        "finetune__lr": 0.01,
        "data__batch_size": 33,
        "augment": "flip",
    },
    "gradual": {
        "prune__schedule": "linear",
        "prune__stages": 2,
        "prune__method": "magnitude",
        "prune__during": 1.0,
        "finetune__epochs": 2,
        "finetune__lr": 0.01,
        "finetune__accumulate": 2,
        "finetune__ema": 0.5,
        "finetune__clip_norm": 1.0,
        "data__batch_size": 33,
    },
    # Refined between its stages, so that the next one ranks what rounding has touched: by sizes, which have few ties.
    "augmented": {
        "prune__method": "magnitude",
        "prune__repair": "none",
        "augment": "flip",
        "calibration__resample": True,
        "prune__stages": 2,
        "prune__refine": "stages",
        "prune__refine_by": "gauss-newton",
        "prune__refine_steps": 2,
    },
}

# Of numbers that are compared themselves: where a stage changes next to nothing, rounding makes anything of them.
RATIOS = {
    "gain_ratio": ("measured_change", "predicted_change"),
    "cumulative_ratio": ("cumulative_measured", "cumulative_predicted"),
}


@cache
def dense() -> ConvNet:
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 100)


def numbers(outcome: Any) -> dict[str, Any]:
    """What the report has of a run, but for times and what is free."""
    stages = [{k: v for k, v in asdict(stage).items() if k not in ("seconds", *RATIOS)} for stage in outcome.stages]
    for stage in outcome.stages:
        for ratio, (above, below) in RATIOS.items():
            if getattr(stage, ratio) is not None:
                assert getattr(stage, ratio) == getattr(stage, above) / getattr(stage, below)
    sides = [asdict(outcome.dense), asdict(outcome.pruned)]
    return {
        "masks": outcome.masks,
        "weights": {n: t.clone() for n, t in outcome.module.state_dict().items()},
        "stages": stages,
        "metrics": [side.pop("metrics") for side in sides],
        "sides": sides,
        "rest": [outcome.sparsity, outcome.drop, outcome.layers, outcome.skipped, outcome.hashes],
        "epochs": [[e.loss, e.validation, e.sparsity, e.lr] for e in outcome.epochs],
        "first order": asdict(outcome.first_order) if outcome.first_order else None,
    }


def run(name: str) -> dict[str, Any]:
    how = {"calibration__samples": 101, "data__batch_size": 64, **SETTINGS[name]}
    return numbers(quick(dense(), TRAIN, TEST, **how))


def scored() -> dict[str, Any]:
    found = score(dense(), TRAIN, settings={"calibration.samples": 101, "device": "cpu"})
    return {"levels": [asdict(level) for level in found.levels], "layers": [asdict(layer) for layer in found.layers]}


def read(data: Pair) -> tuple[Any, list[int]]:
    """A run on samples that are decoded on the fly, and which of the test samples this process has decoded."""
    samples = Recording(data)
    found = numbers(quick(dense(), DatasetSplit(Recording(TRAIN)), DatasetSplit(samples), prune__method="obd"))
    return found, samples.seen


class Short(nn.Module):
    """In the second process no more than five samples fit in memory while it trains."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if self.training and group.rank() == 1 and len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.inner(x)


def short_of_memory() -> dict[str, Any]:
    torch.manual_seed(0)
    module = Short(nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 4)))
    how = {"prune__method": "magnitude", "finetune__epochs": 2, "finetune__lr": 0.05, "data__batch_size": 32}
    outcome = quick(module, TRAIN, TEST, **how)
    return {**numbers(outcome), "said": [line for line in outcome.choices if "memory" in line and "micro" in line]}


def work() -> dict[str, Any]:
    assert group.world() == 2
    found, seen = read(TEST)
    return {**{name: run(name) for name in SETTINGS}, "scored": scored(), "decoded": found, "seen": seen}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_in_processes("test_runs:work", tmp_path_factory.mktemp("runs"))


def assert_alike(one: dict[str, Any], other: dict[str, Any], **close: float) -> None:
    assert one["masks"].keys() == other["masks"].keys()
    for name, mask in one["masks"].items():
        assert torch.equal(other["masks"][name], mask), name
    torch.testing.assert_close(other["weights"], one["weights"], rtol=close["rtol"], atol=close["atol"])
    for part in ("stages", "metrics", "epochs", "first order"):
        flat, wanted = (torch.tensor(values(side[part]), dtype=torch.float64) for side in (other, one))
        torch.testing.assert_close(flat, wanted, equal_nan=True, **close)
    assert other["sides"] == one["sides"]
    assert other["rest"] == one["rest"]


def values(of: Any) -> list[float]:
    if isinstance(of, dict | list):
        return [x for part in (of.values() if isinstance(of, dict) else of) for x in values(part)]
    return [float("nan") if of is None else float(of)]


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_are_one(found: list[dict[str, Any]], name: str) -> None:
    first, second = (one[name] for one in found)
    assert_alike(first, second, rtol=0, atol=0)
    assert_alike(run(name), first, rtol=2e-3, atol=2e-4)


def test_scores(found: list[dict[str, Any]]) -> None:
    wanted = scored()
    for one in found:
        for part in ("levels", "layers"):
            for mine, his in zip(wanted[part], one["scored"][part], strict=True):
                pair = (torch.tensor(values(without_names(x)), dtype=torch.float64) for x in (his, mine))
                torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-6, equal_nan=True)


def test_memory_that_runs_out_in_one_process_is_answered_in_all(tmp_path: Path) -> None:
    first, second = run_in_processes("test_runs:short_of_memory", tmp_path)
    assert first["said"] == [
        "another process was out of memory: micro-batches of 4 samples from here on, with the same step of 32"
    ]
    halves = [f"out of memory: micro-batches of {n} samples from here on, with the same step of 32" for n in (8, 4)]
    assert second["said"] == halves
    assert_alike(first, second, rtol=0, atol=0)
    assert_alike(short_of_memory(), first, rtol=2e-3, atol=2e-4)


def without_names(of: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in of.items() if not isinstance(value, str | tuple)}


def test_a_process_decodes_its_own_samples_and_every_sample_counts_once(found: list[dict[str, Any]]) -> None:
    wanted, seen = read(TEST)
    for one in found:
        assert_alike(wanted, one["decoded"], rtol=2e-3, atol=2e-4)
        assert one["decoded"]["metrics"][0]["top1"] * len(TEST[0]) / 100 == pytest.approx(
            round(wanted["metrics"][0]["top1"] * len(TEST[0]) / 100)
        )
    # Both measure the dense and the pruned network; all of them look at some samples besides, for shapes and prints.
    looks = [i for i in set(seen) if seen.count(i) > 2]
    parts = [[i for i in one["seen"] if i not in looks] for one in found]
    assert sorted(parts[0] + parts[1]) == sorted(2 * [i for i in range(len(TEST[0])) if i not in looks])
    assert not set(parts[0]) & set(parts[1])
    assert all(len(part) > 40 for part in parts)
