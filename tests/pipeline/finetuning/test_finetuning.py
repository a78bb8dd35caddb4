"""Whole runs with fine-tuning: what is trained on, what chooses, what stays zero."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunetaylor.core.errors import DataError, NumericsError, UsageError
from prunetaylor.core.progress import Silent
from prunetaylor.data.load import from_python
from prunetaylor.data.samples import draw
from prunetaylor.pipeline.finetuning.epoch_selection import EpochSelector
from prunetaylor.pruning.criteria.exact_obs import ExactOBS
from prunetaylor.pruning.training.divergence import Guard
from prunetaylor.pruning.training.optimizer import Average, Rates
from support.networks import ConvNet, mlp, trained
from support.runs import TRAIN, assert_truthful, quick, same_bits, top1
from support.samples import Pair, curve, quadrants

CUT = {"sparsity": 0.85, "prune__method": "magnitude", "finetune__lr": 0.02, "data__batch_size": 32}


@pytest.fixture(scope="module")
def conv() -> nn.Module:
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 60)


def mean_loss(module: nn.Module, data: Pair) -> float:
    with torch.no_grad():
        return float(cross_entropy(module(data[0]), data[1]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fine_tuning_wins_back_what_pruning_lost_and_zeros_stay(conv: nn.Module, optimizer: str) -> None:
    cut = quick(conv, **CUT)
    more = {**CUT, "finetune__epochs": 4, "finetune__optimizer": optimizer}
    tuned = quick(conv, **more)
    assert_truthful(tuned, conv, 0.85)
    assert tuned.pruned.metrics["loss"] < 0.7 * cut.pruned.metrics["loss"]
    assert [epoch.epoch for epoch in tuned.epochs] == [1, 2, 3, 4]
    assert tuned.epochs[-1].loss < tuned.epochs[0].loss
    assert tuned.seconds["fine-tune"] > 0
    assert any(line.startswith("learning rate 0.02: as asked") for line in tuned.choices)
    assert cut.epochs == []


def without_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only epochs be chosen, not the network before them."""
    offer = EpochSelector.offer

    def offer_epochs(self: EpochSelector, epoch: int, *rest: Any) -> None:
        if epoch:
            offer(self, epoch, *rest)

    monkeypatch.setattr(EpochSelector, "offer", offer_epochs)


def test_the_best_epoch_on_the_validation_samples_is_restored(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation samples that contradict the training make the first epoch the best, and the network before it still
    better, whatever the test samples tell."""
    x, y = quadrants(80, 5)
    against = (x, (y + 1) % 4)
    outcome = quick(conv, **CUT, validation=against, metric="loss", finetune__epochs=4)
    same_bits(outcome, quick(conv, **CUT))
    assert any("no epoch improved the network" in c for c in outcome.choices)
    without_start(monkeypatch)
    outcome = quick(conv, **CUT, validation=against, metric="loss", finetune__epochs=4)
    values = [epoch.validation for epoch in outcome.epochs]
    assert values == sorted(values)
    assert values[0] < values[-1]
    assert mean_loss(outcome.module, against) == pytest.approx(values[0], rel=1e-5)
    monkeypatch.undo()
    for_it = quick(conv, **CUT, validation=(x, y), metric="top1", finetune__epochs=4)
    values = [epoch.validation for epoch in for_it.epochs]
    assert top1(for_it.module, (x, y)) == pytest.approx(max(values))


def test_validation_samples_are_kept_out_of_fine_tuning_and_calibration(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_start(monkeypatch)  # nothing is left to choose between
    train = from_python(TRAIN).train
    order = draw(train, len(train), torch.Generator().manual_seed(0))
    held, used = order[:24], order[24:]  # a tenth
    x, y = TRAIN[0].clone(), TRAIN[1].clone()
    x[held], y[held] = 5.0, 0
    how = {"sparsity": 0.7, "finetune__epochs": 1, "calibration__samples": 1000, "data__batch_size": 32}
    one = quick(conv, **how)
    same_bits(one, quick(conv, (x, y), **how))
    assert (
        f"validation: 24 of the {len(train)} training samples, held out of calibration and fine-tuning" in one.choices
    )
    x[used[0]] = 5.0
    changed = quick(conv, (x, y), **how)
    assert not torch.equal(changed.module.fc.weight, one.module.fc.weight)


def test_distillation_follows_the_dense_network_and_not_the_labels(conv: nn.Module) -> None:
    """With labels that say nothing only the dense network can teach."""
    noise = (TRAIN[0], torch.randint(4, (240,), generator=torch.Generator().manual_seed(3)))
    how = {**CUT, "finetune__epochs": 6, "validation": TRAIN}
    taught = quick(conv, noise, **how, finetune__distill__weight=1.0)
    assert_truthful(taught, conv, 0.85)
    misled = quick(conv, noise, **how, metric="loss", finetune__distill__weight=0.0)
    assert taught.drop.value < 8
    assert taught.pruned.metrics["loss"] < 0.7 * misled.pruned.metrics["loss"]


def test_regression_fine_tunes_and_distils() -> None:
    data, test = curve(400, 1), curve(200, 2)
    dense = trained(mlp(), data, lambda z, t: 0.5 * (z - t).square().sum(1).mean(), 200)
    how = {"sparsity": 0.8, "prune__method": "magnitude", "metric": "loss", "finetune__lr": 0.02}
    cut = quick(dense, data, test, **how)
    for weight in (0.0, 0.5):
        tuned = quick(dense, data, test, **how, finetune__epochs=8, finetune__distill__weight=weight)
        assert_truthful(tuned, dense, 0.8)
        assert tuned.pruned.metrics["loss"] < 0.8 * cut.pruned.metrics["loss"]


def test_too_few_samples_to_choose_by(conv: nn.Module) -> None:
    few = (TRAIN[0][:5], TRAIN[1][:5])
    with pytest.raises(DataError, match=r"5 training samples .*validation"):
        quick(conv, few, sparsity=0.5, finetune__epochs=1)
    assert_truthful(quick(conv, few, sparsity=0.5), conv, 0.5)


WILD = {"finetune__epochs": 3, "finetune__lr": 1e30, "finetune__warmup": 0.0}


@pytest.mark.parametrize(("batch", "cause"), [(32, "loss is (nan|inf)"), (216, "after epoch 1 .* outputs are not fin")])
def test_training_that_diverges_at_once_leaves_the_network_before_it(conv: nn.Module, batch: int, cause: str) -> None:
    outcome = quick(conv, **{**CUT, **WILD, "data__batch_size": batch})
    same_bits(outcome, quick(conv, **CUT))
    assert_truthful(outcome, conv, 0.85)
    assert outcome.epochs == []
    [said] = [line for line in outcome.choices if line.startswith("fine-tuning stopped: ")]
    assert [(alert.key, alert.text) for alert in outcome.warnings] == [("finetuning_stopped", said)]
    assert re.search(cause, said)
    assert "; the network before fine-tuning is kept; to continue, lower finetune.lr" in said


def test_training_that_diverges_early_keeps_the_network_it_had(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer, before = EpochSelector.offer_incomplete, {}

    def telling(self: EpochSelector, epoch: int, *rest: Any) -> None:
        offer(self, epoch, *rest)
        before[epoch] = self.fallback

    monkeypatch.setattr(EpochSelector, "offer_incomplete", telling)
    how = {"sparsity": 0.5, "prune__schedule": "linear", "prune__stages": 2, "data__batch_size": 32}
    outcome = quick(conv, **how, **WILD)
    assert outcome.sparsity.removed == round(0.25 * outcome.sparsity.prunable)
    assert outcome.epochs == []
    [stage] = outcome.stages
    assert stage.accepted
    torch.testing.assert_close(dict(outcome.module.state_dict()), dict(before[0].weights), rtol=0, atol=0)
    short = outcome.unfinished
    assert short is not None
    assert re.match(
        r"25\.\d\d% are removed where 50\.00% were asked for, as the training loss is (nan|inf)", short.cause
    )
    assert "lower finetune.lr" in short.remedy
    [said] = [line for line in outcome.choices if line.startswith("fine-tuning stopped: ")]
    assert "the network before fine-tuning is kept" in said


def test_of_a_gradual_schedule_the_last_good_epoch_is_kept_with_its_masks(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"sparsity": 0.6, "prune__schedule": "linear", "prune__stages": 6, "data__batch_size": 32}
    how |= {"finetune__epochs": 4, "prune__during": 4.0, "prune__method": "magnitude", "finetune__lr": 0.01}
    offer, ends = EpochSelector.offer_incomplete, {}

    def telling(self: EpochSelector, epoch: int, *rest: Any) -> None:
        offer(self, epoch, *rest)
        ends[epoch] = self.fallback

    monkeypatch.setattr(EpochSelector, "offer_incomplete", telling)
    rate = Rates.__call__
    monkeypatch.setattr(Rates, "__call__", lambda self, step: rate(self, step) if step < 17 else 1e30)
    outcome = quick(conv, **how)  # six steps an epoch; a stage comes after every fourth
    weights, masks = dict(ends[2].weights), ends[2].masks
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert [epoch.epoch for epoch in outcome.epochs] == [1, 2]
    assert outcome.sparsity.removed == removed == sum(int((~mask).sum()) for mask in outcome.masks.values())
    torch.testing.assert_close(dict(outcome.module.state_dict()), weights, rtol=0, atol=0)
    assert [stage.accepted for stage in outcome.stages] == [True, True, True, False, False]
    assert outcome.histogram is None  # of the last stage, which does not stand
    assert outcome.unfinished is not None
    assert any("; epoch 2 is kept; " in line for line in outcome.choices)


def test_training_that_diverges_later_leaves_the_last_good_epoch(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = Rates.__call__
    monkeypatch.setattr(Rates, "__call__", lambda self, step: rate(self, step) if step < 14 else 1e30)
    how = {**CUT, "finetune__epochs": 4, "finetune__distill__weight": 0.0}
    outcome = quick(conv, **how)  # 6 steps an epoch
    assert_truthful(outcome, conv, 0.85)
    assert [epoch.epoch for epoch in outcome.epochs] == [1, 2]
    [said] = [line for line in outcome.choices if line.startswith("fine-tuning stopped: ")]
    assert "lower finetune.lr" in said
    monkeypatch.undo()
    assert outcome.pruned.metrics["top1"] > 50


class Finite(Silent):
    """As the log of a run: numbers that are not finite are no JSON."""

    def __init__(self) -> None:
        self.last: tuple[int, Mapping[str, float]] | None = None

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        assert all(map(math.isfinite, values.values())), (step, values)
        self.last = step, values


def test_trackers_get_what_it_all_came_to(conv: nn.Module) -> None:
    told = Finite()
    outcome = quick(conv, **CUT, finetune__epochs=2, progress=told)
    sides = {"dense": outcome.dense, "pruned": outcome.pruned}
    expected = {f"test/{side}/{name}": value for side in sides for name, value in sides[side].metrics.items()}
    assert {"test/dense/top1", "test/pruned/loss"} <= set(expected)
    assert told.last == (12, expected)


def test_a_loss_that_is_not_finite_is_not_logged_before_it_is_found(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is asked for its losses every 25 steps of an epoch; 25 steps of the run may come in between."""
    rate = Rates.__call__
    monkeypatch.setattr(Rates, "__call__", lambda self, step: rate(self, step) if step < 21 else 1e30)

    is_due = Guard.is_due
    monkeypatch.setattr(Guard, "is_due", lambda self, value: is_due(self, value) and False)  # at an epoch's end alone
    how = {**CUT, "data__batch_size": 24, "finetune__distill__weight": 0.0}
    outcome = quick(conv, **how, finetune__epochs=4, progress=Finite())
    assert [epoch.epoch for epoch in outcome.epochs] == [1, 2]  # of 9 steps each
    [said] = [line for line in outcome.choices if line.startswith("fine-tuning stopped: ")]
    assert "training loss is" in said


class BadGradient(nn.Module):
    """A network whose gradient is not a number in one step of training."""

    def __init__(self, inner: nn.Module, step: int) -> None:
        super().__init__()
        self.inner, self.steps_left = inner, step

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.inner(x)
        if self.training:
            if self.steps_left == 0:
                outputs.register_hook(lambda gradient: gradient * math.nan)
            self.steps_left -= 1
        return outputs


@pytest.mark.parametrize("step", range(6, 12))
def test_a_gradient_that_is_not_finite_leaves_the_last_good_epoch(conv: nn.Module, step: int) -> None:
    network = BadGradient(conv, step)
    outcome = quick(network, **CUT, finetune__epochs=2)  # 6 steps an epoch
    assert_truthful(outcome, network, 0.85)
    assert [epoch.epoch for epoch in outcome.epochs] == [1]
    [said] = [line for line in outcome.choices if line.startswith("fine-tuning stopped: ")]
    assert "epoch 1 is kept" in said


def test_a_gradient_that_is_not_finite_before_a_gradual_step_is_called_so(conv: nn.Module) -> None:
    how = {"prune__schedule": "linear", "prune__stages": 3, "prune__during": 2.0}
    network = BadGradient(conv, 5)  # the next step's loss would tell
    short = quick(network, **{**CUT, **how, "finetune__epochs": 3}).unfinished
    assert short is not None
    assert re.search(r", as fine-tuning left values in .* that are not finite", short.cause)


def test_steps_that_training_follows_are_ranked_by_the_error_alone(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, said = ExactOBS.score, []
    monkeypatch.setattr(
        ExactOBS, "score", lambda self, of: said.append(of.model.trained_between_stages) or score(self, of)
    )
    cut = {"sparsity": 0.6, "prune__method": "exact_obs", "prune__stages": 2, "finetune__epochs": 2}
    quick(conv, **cut, prune__schedule="cubic")
    assert said == [True, True]
    said.clear()
    quick(conv, **cut)
    assert said == [False, False]


def test_a_divergence_after_worse_epochs_restores_the_best_network(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = Rates.__call__
    monkeypatch.setattr(Rates, "__call__", lambda self, step: rate(self, step) if step < 18 else 1e30)
    x, y = quadrants(80, 5)
    how = {**CUT, "validation": (x, (y + 1) % 4), "metric": "loss", "finetune__distill__weight": 0.0}
    outcome = quick(conv, **how, finetune__epochs=4)  # 7 steps an epoch
    same_bits(outcome, quick(conv, **CUT))
    assert len(outcome.epochs) == 2
    [said] = [line for line in outcome.choices if line.startswith("fine-tuning stopped: ")]
    assert "; the network before fine-tuning, better than any epoch, is kept; to continue" in said


def test_an_average_with_a_removed_weight_in_it_is_an_error(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Average.update

    def wrong(self: Average) -> None:
        update(self)
        self.state_dict()["values"]["conv1.weight"].add_(1e-3)

    monkeypatch.setattr(Average, "update", wrong)
    with pytest.raises(NumericsError, match=r"conv1\.weight"):
        quick(conv, **CUT, finetune__epochs=1, finetune__ema=0.9)


def test_label_smoothing_needs_classes(conv: nn.Module) -> None:
    still = {**CUT, "finetune__lr": 1e-12, "finetune__epochs": 1, "finetune__distill__weight": 0.0}
    hard, some, more = (quick(conv, **still, finetune__label_smoothing=share).epochs[0].loss for share in (0, 0.2, 0.4))
    # (1 - s) of the loss with labels and s of that with all classes alike, which is more for a network that knows some.
    assert more - some == pytest.approx(some - hard, rel=1e-3)
    assert some > hard
    data = curve(100, 1)
    with pytest.raises(UsageError, match="label_smoothing needs classes"):
        quick(mlp(), data, data, sparsity=0.5, metric="loss", finetune__epochs=1, finetune__label_smoothing=0.1)
