"""Training samples without labels: the dense network answers for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from prunetaylor.core.errors import UsageError
from support.networks import ConvNet, mlp, trained
from support.runs import TEST, TRAIN, assert_truthful, quick, same_bits
from support.samples import curve

INPUTS = TRAIN[0]
NO_LABELS = {"calibration__labels": False, "finetune__distill__weight": 1.0, "validation": TEST}


@pytest.fixture(scope="module")
def conv() -> nn.Module:
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 60)


@pytest.mark.parametrize("schedule", ["one-shot", "linear"])
def test_the_same_bits_as_with_labels_that_nobody_looks_at(conv: nn.Module, schedule: str) -> None:
    how = {"sparsity": 0.8, "finetune__epochs": 3, "prune__schedule": schedule, "prune__stages": 2, **NO_LABELS}
    without, labelled = quick(conv, INPUTS, **how), quick(conv, TRAIN, **how)
    same_bits(without, labelled)
    assert_truthful(without, conv, 0.8)
    assert without.first_order is None
    assert [s.predicted_change for s in without.stages] == [s.predicted_change for s in labelled.stages]
    assert any("labels: none; pruning keeps the dense network's outputs" in c for c in without.choices)


def test_epochs_are_chosen_by_agreement_where_nothing_is_labelled(conv: nn.Module) -> None:
    how = {"sparsity": 0.85, "prune__method": "magnitude"}
    outcome = quick(conv, INPUTS, **how, finetune__epochs=6, data__batch_size=32)
    assert outcome.epochs[-1].validation > 80
    assert any("top1 is agreement with the dense network" in c for c in outcome.choices)
    assert outcome.pruned.metrics["top1"] > quick(conv, INPUTS, **how).pruned.metrics["top1"]


def test_values_without_labels() -> None:
    data = curve(160, 1)
    torch.manual_seed(0)
    dense = trained(mlp(), data, mse_loss, 200)
    how = {"sparsity": 0.7, "metric": "loss", "finetune__epochs": 6}
    without = quick(dense, data[0], data, **how)
    labelled = quick(dense, data, data, **{**how, **NO_LABELS, "validation": None})
    assert_truthful(without, dense, 0.7)
    torch.testing.assert_close(without.module.state_dict(), labelled.module.state_dict(), rtol=0.3, atol=0.1)
    assert without.pruned.metrics["loss"] < 2 * labelled.pruned.metrics["loss"]


@pytest.mark.parametrize("method", ["magnitude", "obd", "obs_fisher", "joint"])
def test_criteria_that_need_no_labels(conv: nn.Module, method: str) -> None:
    assert_truthful(quick(conv, INPUTS, sparsity=0.5, prune__method=method), conv, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune__method": "taylor1"}, r"have no labels, and taylor1 needs them\n.*--method"),
        ({"calibration__labels": True}, r"calibration\.labels=true, but the training samples have no labels\n.*auto"),
        ({"finetune__distill__weight": 0.5, "finetune__epochs": 1}, r"weight=0\.5 trains towards labels too"),
        ({"finetune__label_smoothing": 0.1, "finetune__epochs": 1}, r"label_smoothing smooths labels"),
    ],
)
def test_what_asks_for_labels_is_refused(conv: nn.Module, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quick(conv, INPUTS, sparsity=0.5, **settings)


def test_without_any_labels_it_is_measured_by_the_distance_to_the_dense_outputs(conv: nn.Module) -> None:
    outcome = quick(conv, INPUTS, None, sparsity=0.5)
    assert outcome.metric == "cosine"
    assert outcome.dense.metrics == {"loss": 0.0, "cosine": 1.0}
    assert 0.8 < outcome.pruned.metrics["cosine"] < 1
    assert 0 < outcome.pruned.metrics["loss"] < 1
    assert outcome.warnings == []
