"""What a user can ask of a training step: schedules, accumulation, clipping, averages; and memory that runs out."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_train import CPU, batches, half_masks, network, run, weights
from torch import Tensor, nn

from prunetaylor.data.samples import Batches, Preprocess, TensorSplit
from prunetaylor.pruning.masks import apply_masks, check_masks
from prunetaylor.pruning.training.divergence import CHECK_EVERY, EXPLODED, Diverged
from prunetaylor.pruning.training.optimizer import Average, Rates, learning_rate
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.pruning.training.train import Training


def plain() -> nn.Module:
    """Without batch norm: a batch in parts has the same gradient."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))


def training(module: nn.Module, masks: dict[str, Tensor], epochs: int = 2, **how: Any) -> Training:
    options = TrainingSettings(**{"lr": 0.05, **how.pop("options", {})})
    usual = {"loss": nn.functional.cross_entropy, "device": CPU, "generator": torch.Generator().manual_seed(4)}
    data = how.pop("data", None) or batches()
    return Training(module, masks, data, options=options, epochs=epochs, **{**usual, **how})


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_learning_rates_end_where_their_shape_says(shape: str) -> None:
    rates = [learning_rate(t, 40, 0.5, 0.1, shape) for t in range(40)]
    assert rates[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    middle, last = {"cosine": (0.25, 0), "linear": (0.25, 0), "constant": (0.5, 0.5)}[shape]
    assert rates[22] == pytest.approx(middle)
    assert learning_rate(40, 40, 0.5, 0.1, shape) == pytest.approx(last, abs=1e-12)


@given(st.sets(st.integers(1, 59)), st.sampled_from(["cosine", "linear", "constant"]))
def test_rewinding_starts_the_schedule_anew(cuts: set[int], shape: str) -> None:
    starts = [0, *sorted(cuts)]
    rates = Rates(TrainingSettings(lr=0.1, warmup=0.2, lr_schedule=shape), 60, starts)
    for first, end in itertools.pairwise([*starts, 60]):
        expected = [learning_rate(t, end - first, 0.1, 0.2, shape) for t in range(end - first)]
        assert [rates(t) for t in range(first, end)] == expected


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_batches_are_one_large_batch(optimizer: str) -> None:
    small, large = plain(), plain()
    masks = half_masks(small)
    options = {"optimizer": optimizer, "lr": 0.02}
    # 40 samples: 5 batches of 8 make steps of 16, 16 and 8.
    one = run(small, masks, batches(size=8), options=TrainingSettings(accumulate=2, **options))
    other = run(large, masks, batches(size=16), options=TrainingSettings(**options))
    assert [s.step for s in one] == [s.step for s in other] == [1, 2, 3, 4, 5, 6]
    assert [s.loss for s in one] == pytest.approx([s.loss for s in other], rel=1e-5)
    assert [s.epoch_done for s in one] == [False, False, True] * 2
    torch.testing.assert_close(weights(small), weights(large))


def test_the_gradient_is_clipped_to_a_norm() -> None:
    module = plain()
    before = weights(module)
    how = {"momentum": 0.0, "lr": 1.0, "warmup": 0.0, "weight_decay": 0.0, "clip_norm": 0.01}
    run(module, {}, batches(n=8), epochs=1, options=TrainingSettings(**how))
    moved = torch.cat([(weights(module)[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_clipping_leaves_removed_weights_out() -> None:
    module = plain()
    masks = {name: torch.rand(p.shape) > 0.95 for name, p in module.named_parameters() if p.dim() > 1}
    apply_masks(module, masks)
    before = weights(module)
    how = {"momentum": 0.0, "lr": 1.0, "warmup": 0.0, "weight_decay": 0.0, "clip_norm": 0.01}
    run(module, masks, batches(n=8), epochs=1, options=TrainingSettings(**how))
    moved = torch.cat([(weights(module)[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_buffer_of_infinities_is_left_alone(ema: float) -> None:
    module = plain()
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    work = training(module, {}, options={"ema": ema})
    states = []
    for state in work.run():
        states.append(state)
        with work.averaged():
            assert module.mask.tolist() == [0.0, float("-inf")]
    assert len(states) == work.steps


def test_fp16_whose_gradients_are_never_finite_is_a_divergence() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(Broken.apply(outputs), targets)

    module = plain()
    before = weights(module)
    with pytest.raises(Diverged, match=r"no gradient has been finite in fp16(.|\n)*precision=bf16 or float32"):
        list(training(module, {}, epochs=10, loss=loss, options={"precision": "fp16"}).run())
    torch.testing.assert_close(weights(module), before, rtol=0, atol=0)


def test_the_average_is_the_exponential_one_and_is_swapped_in() -> None:
    module = network()
    masks = half_masks(module)
    decay, expected, before = 0.6, None, None
    work = training(module, masks, options={"ema": decay})
    for state in work.run():
        now = {k: v for k, v in weights(module).items() if v.is_floating_point()}
        if expected is None:
            before = network()
            for name, mask in masks.items():
                before.state_dict()[name].mul_(mask)
            expected = {k: v for k, v in weights(before).items() if v.is_floating_point()}
        share = 1 - min(decay, (1 + state.step) / (10 + state.step))
        expected = {name: a + share * (now[name] - a) for name, a in expected.items()}
        with work.averaged():
            found = {k: v for k, v in weights(module).items() if v.is_floating_point()}
            torch.testing.assert_close(found, expected)
            check_masks(module, masks)
        after = {k: v for k, v in weights(module).items() if v.is_floating_point()}
        torch.testing.assert_close(after, now, rtol=0, atol=0)


def test_without_an_average_nothing_is_swapped() -> None:
    module = plain()
    work = training(module, {}, epochs=1)
    for _ in work.run():
        now = weights(module)
        with work.averaged():
            torch.testing.assert_close(weights(module), now, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_weights_pruned_between_steps_stay_zero_in_momentum_and_average(optimizer: str, ema: float) -> None:
    module = network()
    masks = half_masks(module)
    fewer = {
        name: mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(9)) > 0.5)
        for name, mask in masks.items()
    }
    work = training(module, masks, epochs=3, options={"optimizer": optimizer, "ema": ema, "weight_decay": 0.1})
    for state in work.run():
        if state.step == 4:
            work.prune(fewer)
            check_masks(module, fewer)
        if state.step >= 4:
            check_masks(module, fewer)
            with work.averaged():
                check_masks(module, fewer)
            for name, parameter in module.named_parameters():
                for value in work._optimizer.state[parameter].values():
                    if name in fewer and value.shape == parameter.shape:
                        assert not bool(value[~fewer[name]].any())
    check_masks(module, fewer)


def test_a_loss_that_explodes_is_found_before_it_is_infinite() -> None:
    module = plain()
    data = batches(n=8 * CHECK_EVERY)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets) * (1 if steps[0] < 2 else 20 * EXPLODED)

    steps = [0]
    work = training(module, {}, epochs=1, data=data, loss=loss)
    states = work.run()
    steps[0] = next(states).step + 1
    with pytest.raises(Diverged, match=r"training loss(.|\n)*finetune\.lr"):
        list(states)


def test_a_first_batch_of_one_class_makes_no_explosion_of_what_comes() -> None:
    """The constant answer costs next to nothing there, so that ten times as much is no explosion."""
    module = nn.Linear(2, 2, bias=False)
    y = torch.zeros(2 * CHECK_EVERY, dtype=torch.long)
    y[20:] = 1
    x = 8 * torch.eye(2)[y]
    x[30] = x[0]  # one that the network gets wrong
    with torch.no_grad():
        module.weight.copy_(torch.eye(2))
    data = Batches(TensorSplit(x, y), Preprocess(), batch_size=2, device="cpu")
    states = list(training(module, {}, epochs=1, data=data, options={"lr": 1e-6}).run())
    assert 0.1 < states[-1].epoch_loss < 0.5


def test_a_bad_start_is_no_explosion() -> None:
    """A pruned network may be as bad as guessing, or somewhat worse."""
    module = plain()
    with torch.no_grad():
        module[3].weight.mul_(20)
    states = list(training(module, {}, epochs=6, data=batches(n=80)).run())
    assert states[-1].epoch_loss < states[9].epoch_loss


def test_it_goes_on_from_any_step_with_the_same_bits() -> None:
    module = network(0.3)
    masks = half_masks(module)
    options = {"optimizer": "adamw", "ema": 0.9, "accumulate": 2}
    kept: dict[int, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {}
    work = training(module, masks, epochs=3, options=options)
    for state in work.run():
        kept[state.step] = copy.deepcopy((module.state_dict(), work.state_dict()))
    with work.averaged():
        expected = weights(module)
    for step, (tensors, state) in kept.items():
        other = network(0.3)
        other.load_state_dict(tensors)
        again = training(other, masks, epochs=3, options=options)
        again.load_state_dict(state)
        assert again.state_dict() == state  # until it goes on
        torch.manual_seed(step)
        assert [s.step for s in again.run()] == list(range(step + 1, 10))
        with again.averaged():
            torch.testing.assert_close(weights(other), expected, rtol=0, atol=0)


def test_an_average_keeps_its_steps() -> None:
    module = plain()
    average = Average(module, 0.5)
    average.update()
    other = Average(plain(), 0.5)
    other.load_state_dict(average.state_dict())
    assert other.state_dict()["steps"] == 1
