"""Pruning in steps between steps of training: when they come, how far they go, and from which weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.network.network import Network
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.taylor.model import TaylorModel
from support.runs import quick


def pruned(network: nn.Module, settings: Mapping[str, Any]) -> PruneResult:
    """Six steps of training an epoch."""
    usual = {"calibration.samples": 100, "data.batch_size": 32}
    return quick(network, **{key.replace(".", "__"): value for key, value in {**usual, **settings}.items()})


def test_a_gradual_schedule_needs_epochs(conv: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"prune.schedule=cubic .*\n.*--epochs"):
        pruned(conv, {"prune.schedule": "cubic"})
    for unused in ({"finetune.rewind": True}, {"prune.during": 1.0}):
        with pytest.raises(UsageError, match=rf"{next(iter(unused))} applies to gradual schedules.*\n.*=cubic"):
            pruned(conv, {"finetune.epochs": 1, **unused})


def test_rewinding_after_a_single_step_is_said_to_do_nothing(conv: nn.Module) -> None:
    how = {"finetune.epochs": 1, "prune.schedule": "cubic", "prune.stages": 1, "finetune.rewind": True}
    how["prune.method"] = "obs"
    assert any("no effect: finetune.rewind" in choice for choice in pruned(conv, how).choices)
    assert not any("no effect" in choice for choice in pruned(conv, how | {"prune.stages": 2}).choices)


def test_one_step_of_a_gradual_schedule_always_fits(conv: nn.Module) -> None:
    """It comes before any training, whatever part of the only step there is to prune in."""
    how = {"prune.schedule": "cubic", "prune.stages": 1, "finetune.epochs": 1, "data.batch_size": 1000}
    outcome = pruned(conv, {**how, "prune.sparsity": 0.5})
    assert len(outcome.stages) == 1
    assert outcome.sparsity.removed == round(0.5 * outcome.sparsity.prunable)


def test_a_gradual_schedule_prunes_the_current_weights_between_steps(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: dict[int, set[float]] = {}  # what Taylor models of each stage are fitted at: a sum over all weights
    model = StageSetup.taylor_model

    def seen(self: StageSetup, network: Network, *rest: Any, stage: int, **more: Any) -> TaylorModel:
        at = sum(float(p.detach().double().abs().sum()) for p in network.module.parameters())
        fitted.setdefault(stage, set()).add(at)
        return model(self, network, *rest, stage=stage, **more)

    monkeypatch.setattr(StageSetup, "taylor_model", seen)
    how = {
        "prune.schedule": "cubic",
        "prune.method": "obs",
        "finetune.epochs": 3,
        "prune.during": 2.0,
        "prune.stages": 4,
    }
    outcome = pruned(conv, {**how, "prune.sparsity": 0.8})
    expected = [0.8 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)]
    assert [stage.sparsity for stage in outcome.stages] == pytest.approx(expected)
    # Each at the weights that training came to, besides the dense ones, since which all stages are predicted.
    dense = set.intersection(*fitted.values())
    own = [found - dense for found in fitted.values()]
    assert len(own) == 4
    assert len(dense) == 1
    assert [len(found) for found in own] == [0, 1, 1, 1]  # the first one starts from the dense weights
    assert len(set.union(*own)) == 3
    # An epoch is measured before it ends in a step: the four come at 0, 1/2, 1 and 3/2 epochs.
    assert [epoch.sparsity for epoch in outcome.epochs] == pytest.approx(
        [expected[1], 0.8, 0.8], abs=1 / outcome.sparsity.prunable
    )
    assert outcome.sparsity.removed == round(0.8 * outcome.sparsity.prunable)
    [levels] = [choice.value for choice in outcome.plan if choice.key == "prune.stages"]
    assert levels == pytest.approx(expected)
