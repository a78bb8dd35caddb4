import math

import pytest
from torch import nn

from prunetaylor.core.results.outcome import (
    Drop,
    Epoch,
    FirstOrder,
    LayerResult,
    NetworkStats,
    PruneResult,
    Skipped,
    Sparsity,
    Stage,
)


@pytest.fixture
def outcome() -> PruneResult:
    """A run of everything: twelve layers, one with a long name, stages with and without a measured change."""
    name = "backbone.stages.3.blocks.11.attention.projection.conv_pointwise"
    layers = [LayerResult(f"layer{i}.conv", (64, 32, 3, 3), 100 * i, 0.01 * i) for i in range(11)]
    return PruneResult(
        module=nn.Linear(2, 2),
        masks={},
        metric="top1",
        goal="max",
        unit="%",
        dense=NetworkStats({"top1": 88.29, "loss": 0.4321}, 272474, 272474, 81_070_000, 81_070_000, 1_105_000),
        pruned=NetworkStats({"top1": 86.9, "loss": math.nan}, 272474, 140000, 81_070_000, 40_000_000, 1_105_100),
        sparsity=Sparsity(0.5, 0.500001, 270896, 135448, 0.99),
        drop=Drop(1.39, 1.02, 1.77),
        stages=[Stage(0.25, 0.0012, 0.0015, 1.25, 3.21), Stage(0.5, 0.01, None, None, math.inf)],
        first_order=FirstOrder(0.0312, 0.123, 0.1, kept=False, labels=True),
        layers=[*layers, LayerResult(name, (256, 256, 1, 1), 65536, 1.0)],
        skipped=[Skipped("head.parametrized", "its weight is computed from another")],
        epochs=[Epoch(1, 0.5, 87.1, 12.0, 0.4, 0.05), Epoch(2, 0.4, 87.5, 11.0, 0.8, 0.001)],
        choices=["method obs: there are samples", "8 stages: sparsity 50 %"],
        seconds={"calibrate": 1.0, "total": 12.34},
        seed=3,
        device="cpu",
        hashes={"checkpoint": "ab", "data": "cd"},
    )
