"""Fine-tuning of what is left, with the removed weights held at zero. A generator, so that it never calls upwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunetaylor.config.schema import DistillSection, FinetuneSection
from prunetaylor.data.samples import Batches
from prunetaylor.errors import DataError, NumericsError, UsageError
from prunetaylor.memory import FLOAT, Phase, Sizes, forward, graph
from prunetaylor.network.state import channels_last, evaluating
from prunetaylor.objective import outputs_of
from prunetaylor.repair.masks import apply_masks, check_masks, keep_masks

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (B, K), targets (B, ...)) -> mean loss, a scalar."""

# Reading a loss waits for the GPU; one that is not finite stays so in the epoch's sum, so a look now and then will do.
_LOOK_EVERY = 25


@dataclass(frozen=True)
class TrainState:
    """After an optimiser step. ``epoch`` and ``step`` count from 1, ``steps`` are those of all epochs."""

    epoch: int
    step: int
    steps: int
    lr: float  # of the step just done
    epoch_done: bool
    samples_per_second: float  # of this epoch so far, what the caller does between steps left out
    loss_tensor: Tensor = field(repr=False)  # scalar on the device
    _epoch_sum: Tensor = field(repr=False)
    _epoch_samples: int = field(repr=False)

    @property
    def loss(self) -> float:
        """The mean training loss of this step's batch. Reading it waits for the device."""
        return float(self.loss_tensor)

    @property
    def epoch_loss(self) -> float:
        """The mean training loss over the samples of this epoch so far. Reading it waits for the device."""
        return float(self._epoch_sum) / self._epoch_samples


def peak_lr(options: FinetuneSection) -> tuple[float, str]:
    """The peak learning rate and why."""
    if options.lr != "auto":
        return options.lr, "as asked"
    return (0.05, "the default of sgd") if options.optimizer == "sgd" else (0.001, "the default of adamw")


def precision(options: FinetuneSection, device: torch.device) -> tuple[torch.dtype, str]:
    """The type that convolutions and matrix products compute in, and why."""
    asked = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if options.precision != "auto":
        return asked[options.precision], "as asked"
    if device.type != "cuda":
        return torch.float32, f"mixed precision gains nothing on {device.type}"
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16, "the GPU computes in bf16"
    return torch.float16, "the GPU does not compute in bf16"


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then a cosine towards zero. ``step`` counts from 0."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def memory(sizes: Sizes, options: FinetuneSection) -> Phase:
    """Gradients, the optimizer's state, masks as numbers and the best state, beside a batch with its graph.

    The dense network, which teaches, needs none.
    """
    states = 1 if options.optimizer == "sgd" else 2
    held = FLOAT * ((1 + states) * sizes.parameters + sizes.weights) + sizes.state
    return Phase("fine-tuning", {"optimizer": held, "activations": 2 * forward(sizes) + graph(sizes)})


def train(
    module: nn.Module,
    masks: Mapping[str, Tensor],
    batches: Batches,
    *,
    options: FinetuneSection,
    epochs: int,
    loss: Loss,
    teacher: nn.Module | None = None,
    device: torch.device,
    generator: torch.Generator,
) -> Iterator[TrainState]:
    """Train ``module`` in place, yielding after every optimiser step; masked weights are zero at every yield.

    At a yield with ``epoch_done`` the module is in evaluation mode, ready to be measured; at the end too, with its
    gradients released. The global random state, which dropout draws from, is seeded from ``generator`` and put back.

    Args:
        module: the network on ``device``; parameters that require no gradient are left alone.
        masks: by parameter name, True = keep.
        batches: shuffled training batches; what they draw comes from their own generator. Use ``drop_last``, as batch
            norm cannot train on a last batch of one sample.
        options: optimiser, schedule, precision and distillation. ``options.epochs`` is not read.
        epochs: passes over ``batches``; 0 only applies the masks.
        loss: gets float32 outputs and the targets.
        teacher: the dense network; without it ``options.distill.weight`` must be 0, or auto, which then means 0.

    Raises:
        NumericsError: the loss or a weight is not finite, or a masked weight is not zero at the end.
        DataError: there is no batch.
        UsageError: nothing to train, or no teacher to distil from.
    """
    if teacher is None and options.distill.weight not in (0, "auto"):
        raise UsageError("distillation needs the dense network", "pass it as teacher, or set finetune.distill.weight=0")
    if epochs and not len(batches):
        raise DataError(
            "there is not one batch to fine-tune on", "lower data.batch_size, or give more training samples"
        )
    apply_masks(module, masks)
    try:
        with _reproducible(device, generator), _layout(module, device), _frozen(teacher, device):
            if epochs:
                yield from _epochs(module, masks, batches, options, epochs, loss, teacher, device)
    finally:
        module.eval()
        module.zero_grad(set_to_none=True)
    check_masks(module, masks)
    _check_finite(module)


def _epochs(
    module: nn.Module,
    masks: Mapping[str, Tensor],
    batches: Batches,
    options: FinetuneSection,
    epochs: int,
    loss: Loss,
    teacher: nn.Module | None,
    device: torch.device,
) -> Iterator[TrainState]:
    peak, _ = peak_lr(options)
    optimizer = _optimizer(module, options, peak, device)
    step = _Step(module, optimizer, options, loss, teacher, device)
    steps, done = epochs * len(batches), 0
    with keep_masks(module, optimizer, masks):
        for epoch in range(1, epochs + 1):
            module.train()
            total, seen, busy, start = torch.zeros((), device=device), 0, 0.0, time.perf_counter()
            for index, (x, y) in enumerate(batches, start=1):
                lr = learning_rate(done, steps, peak, options.warmup)
                value = step(x, y, lr)
                done, seen = done + 1, seen + len(x)
                total = torch.add(total, value, alpha=len(x))
                epoch_done = index == len(batches)
                if epoch_done or done % _LOOK_EVERY == 0 or device.type == "cpu":
                    _check_loss(total, lr, done, steps)
                if epoch_done:
                    module.eval()
                busy += time.perf_counter() - start
                yield TrainState(epoch, done, steps, lr, epoch_done, seen / max(busy, 1e-9), value, total, seen)
                start = time.perf_counter()


class _Step:
    """One optimiser step; the loss comes back as a tensor, so that nothing waits for the device."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        options: FinetuneSection,
        loss: Loss,
        teacher: nn.Module | None,
        device: torch.device,
    ) -> None:
        self._module, self._optimizer, self._loss, self._device = module, optimizer, loss, device
        self._distill = options.distill
        self._share = distillation_share(options.distill) if teacher is not None else 0.0
        self._teacher = teacher if self._share else None
        self._dtype, _ = precision(options, device)
        # Gradients below 6e-8 vanish in fp16; bf16 has float32's range.
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)

    def __call__(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        if self._device.type == "cuda" and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        value = self._value(x, y)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return value.detach()

    def _value(self, x: Tensor, y: Tensor) -> Tensor:
        with self._autocast():
            outputs = outputs_of(self._module(x))
        outputs = outputs.float()
        if self._teacher is None:
            return self._loss(outputs, y)
        with torch.no_grad(), self._autocast():
            wanted = outputs_of(self._teacher(x))
        distance = distillation(outputs, wanted.float(), y, self._distill)
        share = self._share
        return distance if share == 1 else (1 - share) * self._loss(outputs, y) + share * distance

    def _autocast(self) -> AbstractContextManager[object]:
        if self._dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)


def distillation_share(options: DistillSection) -> float:
    """Of the training loss, ``auto`` settled: mostly the dense network's outputs, which say more than a label does."""
    return 0.9 if options.weight == "auto" else options.weight


def distillation(outputs: Tensor, wanted: Tensor, targets: Tensor, options: DistillSection) -> Tensor:
    """How far outputs (B, K) are from the teacher's: a scalar.

    For classes (targets are integers) the KL divergence of the softened outputs times T^2, which keeps the size of its
    gradient (Hinton, Vinyals & Dean 2015, section 2); for values the mean squared error.
    """
    if targets.is_floating_point():
        return functional.mse_loss(outputs, wanted)
    heat = options.temperature
    student, dense = (outputs / heat).log_softmax(1), (wanted / heat).log_softmax(1)
    return functional.kl_div(student, dense, reduction="batchmean", log_target=True) * heat**2


def _optimizer(module: nn.Module, options: FinetuneSection, lr: float, device: torch.device) -> torch.optim.Optimizer:
    """No decay on vectors and scalars: norms and biases."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise UsageError("no parameter of the network requires a gradient", "call requires_grad_() on what is to train")
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type == "cuda" and _can_fuse(trained, precision(options, device)[0])
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=fused)
    return torch.optim.SGD(groups, lr=lr, momentum=options.momentum, nesterov=options.momentum > 0, fused=fused)


def _can_fuse(parameters: list[nn.Parameter], dtype: torch.dtype) -> bool:
    """Where torch's fused steps are right: of a parameter with holes (a slice of something larger) they update other
    memory, and SGD's leaves its momentum unset when a gradient scaler skips the first step; both without a word."""
    return dtype is not torch.float16 and all(torch.empty_like(p).stride() == p.stride() for p in parameters)


@contextmanager
def _reproducible(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """The network's own randomness comes from ``generator``; on a GPU convolutions sum in a fixed order."""
    seed = int(torch.randint(2**62, (), generator=generator))
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed) if device.type != "cpu" else torch.default_generator.manual_seed(seed)
            yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    was = torch.backends.cudnn.deterministic
    with torch.random.fork_rng(devices=[index]):
        torch.manual_seed(seed)
        torch.backends.cudnn.deterministic = True
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic = was


def _layout(module: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Channels last on a GPU, where its convolutions are fastest."""
    return channels_last(module) if device.type == "cuda" else nullcontext()


@contextmanager
def _frozen(teacher: nn.Module | None, device: torch.device) -> Iterator[None]:
    with ExitStack() as stack:
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
            stack.enter_context(_layout(teacher, device))
        yield


def _check_loss(total: Tensor, lr: float, step: int, steps: int) -> None:
    if not math.isfinite(float(total)):
        raise NumericsError(
            f"the training loss is {float(total)} by step {step} of {steps} (learning rate {lr:.3g})",
            "lower finetune.lr, lengthen finetune.warmup, or set finetune.precision=float32",
        )


def _check_finite(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericsError(
                f"fine-tuning left values in {name} that are not finite",
                "lower finetune.lr, lengthen finetune.warmup, or set finetune.precision=float32",
            )
