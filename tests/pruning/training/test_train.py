"""Fine-tuning: the same numbers as a plain loop, masks exact at every step, the same bits for the same seed."""

import itertools
import math
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError, NumericsError, UsageError
from prunetaylor.data.samples import Batches, Preprocess, TensorSplit
from prunetaylor.network.state import channels_last
from prunetaylor.pruning.masks import apply_masks, check_masks
from prunetaylor.pruning.training.optimizer import can_fuse, learning_rate, make_optimizer
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.pruning.training.train import TrainState, train
from support.samples import tensors

CPU = torch.device("cpu")
cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(24, 3)
    )


def half_masks(module: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.rand(parameter.shape, generator=generator) > 0.5).to(parameter.device)
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1
    }


def batches(device: torch.device = CPU, *, n: int = 40, size: int = 8, seed: int = 3, values: bool = False) -> Batches:
    """Three classes told apart by the mean of a quadrant; ``values``: three numbers to regress."""
    generator = torch.Generator().manual_seed(2)
    y = torch.randint(3, (n,), generator=generator)
    x = torch.randn(n, 2, 4, 4, generator=generator)
    x[torch.arange(n), 0, y] += 3
    target = torch.randn(n, 3, generator=generator) if values else y
    shuffled = torch.Generator().manual_seed(seed)
    return Batches(
        TensorSplit(x, target), Preprocess(), batch_size=size, device=device, generator=shuffled, shuffle=True
    )


def run(
    module: nn.Module, masks: dict[str, Tensor], data: Batches, *, epochs: int = 2, seed: int = 4, **kwargs: Any
) -> list[TrainState]:
    options = kwargs.pop("options", TrainingSettings())
    kwargs.setdefault("loss", nn.functional.cross_entropy)
    kwargs.setdefault("device", CPU)
    generator = torch.Generator().manual_seed(seed)
    return list(train(module, masks, data, options=options, epochs=epochs, generator=generator, **kwargs))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_numbers_as_a_plain_loop(optimizer, layout):
    options = TrainingSettings(optimizer=optimizer, lr=0.02, weight_decay=0.1, warmup=0.3)
    module, plain = network(), network()
    masks = half_masks(module)
    with channels_last(module) if layout == torch.channels_last else nullcontext():
        states = run(module, masks, batches(), options=options)

    apply_masks(plain, masks)
    decayed = [p for p in plain.parameters() if p.dim() > 1]
    others = [p for p in plain.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    if optimizer == "sgd":
        reference: torch.optim.Optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    else:
        reference = torch.optim.AdamW(groups, lr=1.0)
    data, step = batches(), 0
    plain.train().to(memory_format=layout)
    for _ in range(2):
        for x, y in tensors(data):
            x = x.contiguous(memory_format=layout)
            for group in reference.param_groups:
                group["lr"] = 0.02 * ((step + 1) / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 7)) / 2)
            reference.zero_grad()
            loss = nn.functional.cross_entropy(plain(x), y)
            loss.backward()
            reference.step()
            apply_masks(plain, masks)
            assert states[step].loss == pytest.approx(loss.item(), rel=1e-6)
            step += 1
    torch.testing.assert_close(weights(module), weights(plain))
    assert step == len(states) == 10


def test_it_learns_with_half_the_weights():
    module = network()
    masks = half_masks(module)
    states = run(module, masks, batches(n=120), epochs=6, options=TrainingSettings(lr=0.05))
    assert states[-1].epoch_loss < 0.3 * states[14].epoch_loss
    check_masks(module, masks)


def test_states_count_and_modes_follow():
    module = network()
    masks = half_masks(module)
    losses: list[float] = []
    generator = torch.Generator().manual_seed(4)
    data = batches(n=20, size=8)  # batches of 8, 8, 4
    for i, state in enumerate(
        train(module, masks, data, options=TrainingSettings(), epochs=2, loss=nn.functional.cross_entropy,
              device=CPU, generator=generator)
    ):  # fmt: skip
        assert (state.epoch, state.step, state.steps) == (1 + i // 3, i + 1, 6)
        assert state.epoch_done == (i % 3 == 2)
        assert module.training != state.epoch_done
        assert state.samples_per_second > 0
        assert state.lr == pytest.approx(learning_rate(i, 6, 0.05, 0.05))
        check_masks(module, masks)
        losses.append(state.loss)
        if state.epoch_done:
            a, b, c = losses[-3:]
            assert state.epoch_loss == pytest.approx((8 * a + 8 * b + 4 * c) / 20)
            module.eval()  # as whoever measures here may do
    assert not any(child.training for child in module.modules())
    assert all(p.grad is None for p in module.parameters())


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    rates = [learning_rate(t, 100, 0.5, 0.1) for t in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (t + 1) for t in range(10)])
    assert rates[10] == 0.5
    assert rates[55] == pytest.approx(0.25)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(0, 1, 0.5, 0.0) == 0.5
    assert all(r > 0 for steps in (1, 2, 3) for t in range(steps) for r in [learning_rate(t, steps, 1, 0.99)])


def test_norms_and_biases_do_not_decay():
    module = network()
    before = weights(module)
    options = TrainingSettings(lr=0.1, weight_decay=0.5, momentum=0.0)
    run(module, {}, batches(n=8), epochs=1, options=options, loss=lambda outputs, _: outputs.sum() * 0)
    after = weights(module)
    for name, parameter in module.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.dim() > 1 else 1.0
        torch.testing.assert_close(after[name], before[name] * factor)


def test_a_norm_of_several_dimensions_does_not_decay_either() -> None:
    module = nn.Sequential(nn.LayerNorm([3, 4]), nn.Flatten(), nn.Linear(12, 2))
    decaying, others = make_optimizer(module, TrainingSettings(), CPU).param_groups
    assert [id(p) for p in decaying["params"]] == [id(module[2].weight)]
    assert {id(p) for p in others["params"]} == {id(p) for p in (*module[0].parameters(), module[2].bias)}
    assert (decaying["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)


def test_frozen_parameters_stay():
    module = network()
    module[0].requires_grad_(False)
    before = weights(module)
    run(module, {}, batches())
    torch.testing.assert_close(module[0].weight, before["0.weight"], rtol=0, atol=0)
    assert not torch.equal(module[5].weight, before["5.weight"])
    module.requires_grad_(False)
    with pytest.raises(UsageError, match="gradient"):
        run(module, {}, batches())


def test_frozen_weights_that_are_masked_stay_zero_while_the_others_train():
    """Norms and biases alone: the optimizer holds none of the masked weights."""
    module = network()
    masks = half_masks(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in masks)
    before = weights(module)
    run(module, masks, batches())
    check_masks(module, masks)
    for name, mask in masks.items():
        assert torch.equal(module.get_parameter(name), before[name] * mask)
    assert not torch.equal(module[5].bias, before["5.bias"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_weight_that_is_a_slice_of_something_larger_trains_alike(optimizer):
    """torch's fused optimizers get such a parameter wrong without a word."""
    sliced, plain = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    plain[1].load_state_dict(sliced[1].state_dict())
    room_for_more = torch.zeros(6, 96)
    room_for_more[::2, ::3] = sliced[1].weight.detach()
    sliced[1].weight = nn.Parameter(room_for_more[::2, ::3])
    masks = half_masks(plain)
    for module in (sliced, plain):
        run(module, masks, batches(), options=TrainingSettings(optimizer=optimizer))
    torch.testing.assert_close(weights(sliced), weights(plain))
    assert int(room_for_more.count_nonzero()) == int(masks["1.weight"].sum())
    assert not can_fuse([*sliced.parameters()], torch.float32)
    assert can_fuse([*plain.parameters()], torch.float32)
    assert not can_fuse([*plain.parameters()], torch.float16)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_same_seed_same_bits(dropout):
    """A run that starts again from the same weights and seeds gives the same bits, wherever the process' own random
    state stands; and it leaves that state alone."""

    def once(seed: int = 4, data_seed: int = 3) -> dict[str, Tensor]:
        module = network(dropout)
        torch.rand(int(torch.randint(100, ())))
        random = torch.get_rng_state()
        run(module, half_masks(module), batches(seed=data_seed), seed=seed)
        assert torch.equal(torch.get_rng_state(), random)
        return weights(module)

    first = once()
    torch.manual_seed(99)
    torch.testing.assert_close(once(), first, rtol=0, atol=0)
    assert not torch.equal(once(data_seed=5)["5.weight"], first["5.weight"])
    assert torch.equal(once(seed=6)["5.weight"], first["5.weight"]) == (dropout == 0)


def test_what_the_caller_draws_between_steps_repeats_too():
    def once() -> list[float]:
        module = network(0.5)
        generator = torch.Generator().manual_seed(4)
        steps = train(module, {}, batches(), options=TrainingSettings(), epochs=1,
                      loss=nn.functional.cross_entropy, device=CPU, generator=generator)  # fmt: skip
        return [state.loss + float(torch.rand(())) for state in steps]

    assert once() == once()


def test_stopping_early_puts_everything_back():
    module = network(0.5)
    masks = half_masks(module)
    random = torch.get_rng_state()
    steps = train(module, masks, batches(), options=TrainingSettings(), epochs=5, loss=nn.functional.cross_entropy,
                  device=CPU, generator=torch.Generator().manual_seed(4))  # fmt: skip
    next(steps)
    steps.close()
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(child.training for child in module.modules())
    check_masks(module, masks)


def test_no_epochs_only_applies_the_masks():
    module = network()
    masks = half_masks(module)
    before = weights(module)
    assert run(module, masks, batches(), epochs=0) == []
    check_masks(module, masks)
    torch.testing.assert_close(module[5].weight, before["5.weight"] * masks["5.weight"], rtol=0, atol=0)
    assert not module.training


def test_a_weight_revived_behind_our_back_is_found():
    module = network()
    masks = half_masks(module)
    steps = train(module, masks, batches(), options=TrainingSettings(), epochs=1, loss=nn.functional.cross_entropy,
                  device=CPU, generator=torch.Generator())  # fmt: skip
    with pytest.raises(NumericsError, match=r"5\.weight \(3\)"):  # noqa: PT012
        for state in steps:
            if state.epoch_done:
                with torch.no_grad():
                    dead = (~masks["5.weight"]).nonzero()[:3]
                    module[5].weight[dead[:, 0], dead[:, 1]] = 1.0
    assert not module.training


@pytest.mark.parametrize("precision_name", ["float32", "bf16"])
def test_a_loss_that_is_not_finite_says_what_to_try(precision_name):
    module = network()
    options = TrainingSettings(lr=1e30, warmup=0.0, precision=precision_name)
    with pytest.raises(NumericsError, match=r"training loss is (nan|inf)(.|\n)*finetune\.lr"):
        run(module, half_masks(module), batches(), options=options)
    assert not module.training


def test_weights_that_overflow_in_the_last_step_are_found():
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    options = TrainingSettings(lr=1e38, warmup=0.0, momentum=0.0)
    with pytest.raises(NumericsError, match=r"values in 1\.(weight|bias) that are not finite"):
        run(module, {}, batches(n=8), epochs=1, options=options, loss=lambda outputs, _: 1e4 * outputs.sum())


def test_nothing_to_train_on():
    empty = Batches(TensorSplit(torch.zeros(0, 2, 4, 4), torch.zeros(0, dtype=torch.long)), Preprocess(),
                    batch_size=8, device=CPU)  # fmt: skip
    with pytest.raises(DataError, match="too few samples for one batch"):
        run(network(), {}, empty)


# Distillation


def test_values_are_regressed():
    module = network()
    states = run(module, {}, batches(values=True), epochs=8, loss=nn.functional.mse_loss,
                 options=TrainingSettings(lr=0.05))  # fmt: skip
    assert states[-1].epoch_loss < states[4].epoch_loss


# Mixed precision and the GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_seed_same_bits_on_a_gpu():
    def once() -> dict[str, Tensor]:
        module = network(0.5).cuda()
        run(module, half_masks(module), batches(torch.device("cuda")), device=torch.device("cuda"))
        return weights(module)

    random = torch.cuda.get_rng_state()
    deterministic = torch.backends.cudnn.deterministic
    torch.testing.assert_close(once(), once(), rtol=0, atol=0)
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert torch.backends.cudnn.deterministic == deterministic


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_steps_do_not_wait_for_the_gpu():
    module = network().cuda()
    masks = half_masks(module)
    data = list(batches(torch.device("cuda")).shards())

    class Ready:
        """Batches that are on the device already."""

        def __len__(self) -> int:
            return len(data)

        def shards(self) -> Any:
            return iter(data)

    steps = train(module, masks, Ready(), options=TrainingSettings(precision="bf16"), epochs=2,  # type: ignore[arg-type]
                  loss=nn.functional.cross_entropy, device=torch.device("cuda"),
                  generator=torch.Generator())  # fmt: skip
    next(steps)
    with warnings.catch_warnings(action="ignore"):  # that the debug mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                next(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(list(steps)) == 2 * len(data) - 4
