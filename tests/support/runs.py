"""Whole runs from Python on tiny networks, and what is promised of every one of them."""

from __future__ import annotations

import torch
from torch import nn

from prunetaylor import prune
from prunetaylor.core.results.outcome import PruneResult
from support.samples import Pair, quadrants

TRAIN, TEST = quadrants(240, 1), quadrants(120, 2)
_DIRECT = ("sparsity", "validation", "normalize", "augment", "progress")


def quick(model: nn.Module, train: object = TRAIN, test: object = TEST, **settings: object) -> PruneResult:
    """A run with few samples; ``a__b`` is the setting a.b."""
    direct = {key: settings.pop(key) for key in _DIRECT if key in settings}
    more = {key.replace("__", "."): value for key, value in settings.items()}
    usual = {"calibration.samples": 120, "prune.stages": 1, "finetune.epochs": 0, "data.workers": 0, "device": "cpu"}
    usual["prune.refine_steps"] = 6
    return prune(model, train, test, settings=usual | more, **direct)


def assert_truthful(outcome: PruneResult, dense: nn.Module, sparsity: float) -> None:
    """Counts are exact, masks are what the weights say, and the account adds up."""
    weights = outcome.module.state_dict()
    for name, mask in outcome.masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == weights[name].shape
        assert not weights[name][~mask].any()
    removed = sum(int((~mask).sum()) for mask in outcome.masks.values())
    assert removed == round(sparsity * outcome.sparsity.prunable) == outcome.sparsity.removed
    assert outcome.sparsity.asked == sparsity
    assert outcome.sparsity.obtained == removed / outcome.sparsity.prunable
    assert {layer.name: layer.removed for layer in outcome.layers} == {
        "" if name == "weight" else name.removesuffix(".weight"): int((~mask).sum())
        for name, mask in outcome.masks.items()
    }
    assert outcome.sparsity.prunable == sum(mask.numel() for mask in outcome.masks.values())
    for side, module in ((outcome.dense, dense), (outcome.pruned, outcome.module)):
        assert side.parameters == sum(p.numel() for p in module.parameters())
        assert side.nonzero == sum(int(p.count_nonzero()) for p in module.parameters())
        assert side.flops_nonzero <= side.flops
    assert not outcome.module.training


def same_bits(one: PruneResult, other: PruneResult) -> None:
    assert one.module.state_dict().keys() == other.module.state_dict().keys()
    for name, tensor in one.module.state_dict().items():
        torch.testing.assert_close(other.module.state_dict()[name], tensor, rtol=0, atol=0)
    for name, mask in one.masks.items():
        assert torch.equal(other.masks[name], mask)


def top1(module: nn.Module, data: Pair) -> float:
    with torch.no_grad():
        return 100 * float((module(data[0]).argmax(1) == data[1]).double().mean())
