"""The loss of a step and its gradients: distillation, precision, layout, the compiler, and memory that runs out."""

from __future__ import annotations

import copy
import shutil
import weakref

import pytest
import torch
from test_train import CPU, batches, cuda, half_masks, network, run, weights
from test_train_options import plain, training
from torch import Tensor, nn

from prunetaylor.core.errors import DataError, NumericsError, UsageError
from prunetaylor.network.state import channels_last
from prunetaylor.pruning.masks import check_masks
from prunetaylor.pruning.training import backward
from prunetaylor.pruning.training.distillation import distillation
from prunetaylor.pruning.training.settings import DistillSettings, TrainingSettings
from prunetaylor.pruning.training.train import train
from prunetaylor.taylor.memory import ChunkDivisors, use_chunks
from support.samples import tensors


def test_distillation_of_classes_is_hintons():
    outputs = torch.randn(5, 4, requires_grad=True)
    wanted, targets = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
    heat = 3.0
    q, p = (wanted / heat).softmax(1), (outputs / heat).softmax(1)
    expected = heat**2 * (q * (q.log() - p.log())).sum(1).mean()
    value = distillation(outputs, wanted, targets, "classification", DistillSettings(temperature=heat))
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, outputs)
    torch.testing.assert_close(gradient, heat * (p - q).detach() / 5)


def test_distillation_of_values_is_a_squared_error():
    outputs, wanted = torch.randn(5, 4), torch.randn(5, 4)
    value = distillation(outputs, wanted, torch.randn(5, 4), "regression", DistillSettings())
    torch.testing.assert_close(value, (outputs - wanted).square().mean())


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distillation_is_a_share_of_the_loss_and_leaves_the_teacher_alone(share):
    module, teacher = network(), network(0.5)
    teacher[1].eval()
    before = weights(teacher)
    options = TrainingSettings(distill=DistillSettings(weight=share, temperature=2.0))
    with torch.no_grad():
        data = batches(n=8)
        [(x, y)] = tensors(batches(n=8))
        outputs, wanted = copy.deepcopy(module).train()(x), copy.deepcopy(teacher).eval()(x)
    expected = share * distillation(outputs, wanted, y, "classification", options.distill)
    if share < 1:
        expected = expected + (1 - share) * nn.functional.cross_entropy(outputs, y)

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        assert share < 1, "the labels are of no use here"
        return nn.functional.cross_entropy(outputs, y)

    states = run(module, {}, data, epochs=1, options=options, teacher=teacher, loss=loss)
    assert states[0].loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(weights(teacher), before, rtol=0, atol=0)
    assert [child.training for child in teacher.children()] == [True, False, True, True, True, True]
    assert all(p.grad is None for p in teacher.parameters())


def test_distillation_pulls_towards_the_teacher():
    teacher, module = network().eval(), network()
    masks = half_masks(module)
    x = batches(n=40, size=40)
    options = TrainingSettings(lr=0.05, distill=DistillSettings(weight=1.0))
    states = run(module, masks, x, epochs=40, options=options, teacher=teacher)
    assert states[-1].loss < 0.2 * states[0].loss


def test_distillation_without_a_teacher_is_refused():
    with pytest.raises(UsageError, match="needs the dense network"):
        run(network(), {}, batches(), options=TrainingSettings(distill=DistillSettings(weight=0.5)))


@pytest.mark.parametrize(
    ("device", "name"),
    [
        pytest.param("cpu", "bf16"),
        pytest.param("cpu", "fp16"),
        pytest.param("cuda", "auto", marks=cuda),
        pytest.param("cuda", "float32", marks=cuda),
        pytest.param("cuda", "bf16", marks=cuda),
        pytest.param("cuda", "fp16", marks=cuda),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_mixed_precision_keeps_float32_weights_and_exact_masks(device, name, optimizer):
    where = torch.device(device)
    module = network().to(where)
    masks = half_masks(module)
    kinds: list[torch.dtype] = []

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        kinds.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, y)

    options = TrainingSettings(precision=name, optimizer=optimizer, lr=0.02)
    teacher = network().to(where)
    options = options.model_copy(update={"distill": DistillSettings(weight=0.1)})
    data = batches(where, n=120)
    states = run(module, masks, data, epochs=6, options=options, device=where, loss=loss, teacher=teacher)
    assert states[-1].epoch_loss < 0.6 * states[14].epoch_loss
    assert set(kinds) == {torch.float32}
    assert {p.dtype for p in (*module.parameters(), *teacher.parameters())} == {torch.float32}
    assert all(p.is_contiguous() for p in (*module.parameters(), *teacher.parameters()))
    check_masks(module, masks)


def test_fp16_steps_that_overflow_are_skipped_and_the_masks_hold():
    """A loss of 1e6 times the scale of 2^16 overflows in fp16 activations' gradients at first, and is scaled down."""
    module = network()
    masks = half_masks(module)
    options = TrainingSettings(precision="fp16", lr=1e-9)
    before = weights(module)["5.weight"] * masks["5.weight"]
    moved: list[bool] = []
    steps = train(module, masks, batches(n=160), options=options, epochs=3,
                  loss=lambda outputs, y: 1e6 * nn.functional.cross_entropy(outputs, y),
                  device=CPU, generator=torch.Generator())  # fmt: skip
    for _ in steps:
        check_masks(module, masks)
        moved.append(not torch.equal(module[5].weight, before))
    assert not moved[0]
    assert moved[-1]


def test_layout_is_channels_last_inside_and_plain_after():
    """The memory work alone, which needs no GPU to be checked."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(2, 2, 2), nn.Linear(3, 3))
    module[0].weight.data = module[0].weight.data.contiguous()
    before = weights(module)
    identities = [id(p) for p in module.parameters()]
    with channels_last(module):
        assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(weights(module), before, rtol=0, atol=0)
    assert all(p.is_contiguous() for p in module.parameters())
    assert [id(p) for p in module.parameters()] == identities
    torch.testing.assert_close(weights(module), before, rtol=0, atol=0)


class Small(nn.Module):
    """A device on which only so many samples fit."""

    def __init__(self, inner: nn.Module, room: int) -> None:
        super().__init__()
        self.inner, self.room, self.sizes = inner, room, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.inner(x)


def test_out_of_memory_is_answered_by_micro_batches_with_the_same_step() -> None:
    small, large = Small(plain(), 3), plain()
    masks = half_masks(large)
    notes: list[str] = []
    states = list(training(small, {f"inner.{n}": m for n, m in masks.items()}, note=notes.append).run())
    expected = list(training(large, masks).run())
    assert [s.loss for s in states] == pytest.approx([s.loss for s in expected], rel=1e-5)
    torch.testing.assert_close(weights(small.inner), weights(large))
    assert small.sizes[:7] == [8, 4, 2, 2, 2, 2, 2]
    assert len(notes) == 2
    assert notes[1].startswith("out of memory: micro-batches of 2 samples from here on, with the same step of 8")


class Room:
    """A device's memory, in samples: what a graph holds of it is free again when the graph is."""

    def __init__(self, size: int) -> None:
        self.size, self.graphs, self.asked = size, weakref.WeakKeyDictionary(), []

    def take(self, owner: object, samples: int) -> None:
        self.asked.append(samples)
        if sum(self.graphs.values()) + samples > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.graphs[owner] = self.graphs.get(owner, 0) + samples


class Held(torch.autograd.Function):
    """Takes as much on the way back as on the way there, as gradients do."""

    @staticmethod
    def forward(ctx, x, room):
        ctx.room, ctx.samples = room, len(x)
        room.take(ctx, len(x))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.room.take(ctx, ctx.samples)
        return gradient, None


def test_memory_that_runs_out_on_the_way_back_is_free_for_the_next_attempt() -> None:
    room, inner = Room(12), plain()

    class Heavy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return Held.apply(self.inner(x), room)

    notes: list[str] = []
    list(training(Heavy(), {}, epochs=1, note=notes.append).run())
    assert room.asked[:6] == [8, 8, 4, 4, 4, 4]  # the first fits alone and not with its gradients
    assert len(notes) == 1


def test_what_the_plan_says_is_split_from_the_start() -> None:
    small, large = Small(plain(), 3), plain()
    notes: list[str] = []
    with use_chunks(ChunkDivisors(training=4)):
        states = list(training(small, {}, note=notes.append).run())
    assert small.sizes[:4] == [2, 2, 2, 2]
    assert [s.loss for s in states] == pytest.approx([s.loss for s in training(large, {}).run()], rel=1e-5)
    [said] = notes
    assert said.startswith("micro-batches: each batch is split into 4, to fit in memory, with the same step")


def test_memory_that_runs_out_for_one_sample_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(training(Small(plain(), 0), {}).run())


def test_processes_that_wait_for_one_another_in_batch_norms_do_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "world", lambda: 2)
    norms = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    said = r"out of memory with 8 samples a process, which wait .* batch norm\n.*finetune.accumulate for the same step"
    with pytest.raises(NumericsError, match=said):
        list(training(Small(norms, 3), {}).run())
    small = Small(plain(), 3)
    list(training(small, {}).run())
    assert small.sizes[:4] == [8, 4, 2, 2]


def test_micro_batches_are_even() -> None:
    """A batch norm cannot train on one sample that is left over."""
    inner = nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    small = Small(inner, 3)
    run(small, {}, batches(n=10, size=10), epochs=1)
    assert small.sizes == [10, 5, 3, 3, 2, 2]


def test_a_batch_norm_that_gets_single_samples_says_what_to_do() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(DataError, match=r"single sample\nraise data.batch_size"):
        run(module, {}, batches(size=1))


def test_another_error_of_the_network_is_its_own() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(training(Broken(), {}).run())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_alike() -> None:
    compiled, other = plain(), plain()
    masks = half_masks(compiled)
    list(training(compiled, masks, epochs=1, options={"compile": True}).run())
    list(training(other, masks, epochs=1).run())
    torch.testing.assert_close(weights(compiled), weights(other), rtol=1e-4, atol=1e-5)
    check_masks(compiled, masks)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_network_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/compiler"))
    torch.compiler.reset()
    with pytest.raises(UsageError, match=r"C\+\+ compiler(.|\n)*finetune.compile"):
        list(training(plain(), {}, epochs=1, options={"compile": True}).run())
