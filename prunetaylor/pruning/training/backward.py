"""The gradients of a training step towards labels and dense outputs, in parts that fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError, NumericsError, UsageError
from prunetaylor.core.text import first_line
from prunetaylor.data.samples import BatchShard, Inputs
from prunetaylor.network.state import match_memory_format
from prunetaylor.pruning.training.distillation import distillation
from prunetaylor.pruning.training.divergence import Guard
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.runtime.processes.group import gather_objects, world
from prunetaylor.runtime.processes.training import waits_within
from prunetaylor.taylor.memory import current_chunks, is_out_of_memory, release
from prunetaylor.taylor.objective import Task
from prunetaylor.taylor.outputs import read_outputs

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (B, K), targets (B, ...)) -> mean loss, a scalar."""


class Backward:
    """The backward pass leaves the gradients of the mean training loss over some batches in ``module``'s parameters.

    Args:
        module: in training mode; inputs are laid out as its weights are.
        teacher: the dense network, in evaluation mode; None: the loss is that of the labels alone.
        guard: receives the loss of a constant output, the limit for the training loss.
        note: called with messages for the user.
    """

    def __init__(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        loss: Loss,
        guard: Guard,
        *,
        task: Task,
        options: TrainingSettings,
        device: torch.device,
        note: Callable[[str], None],
    ) -> None:
        self._module, self._teacher, self._loss, self._guard = module, teacher, loss, guard
        self._task, self._options, self._device, self._note = task, options, device, note
        self._share, self._dtype = options.distill.weight, options.dtype
        self._forward = torch.compile(module) if options.compile else module
        # Gradients below 6e-8 vanish in fp16; bf16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)
        self._parameters = list(module.parameters())
        self.parts = current_chunks().training
        """The number of parts that a batch is split into to fit in memory."""

    def __call__(self, group: Sequence[BatchShard], count: int) -> Tensor:
        """Return the mean loss over a group of batches of ``count`` samples in all, a scalar on the device.

        Each of several processes computes the part of its own rows.
        """
        largest = max(len(share.x) for share in group)
        while True:
            self._forget()
            size = max(1, -(-largest // self.parts))
            try:
                return self._added(group, count, size)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                if world() > 1 and waits_within(self._module):  # the others do, for this one
                    raise NumericsError(
                        f"out of memory with {size} samples a process, which wait for one another in each batch norm",
                        "lower data.batch_size, and raise finetune.accumulate for the same step",
                    ) from error
            self._forget()
            release()
            self.parts *= 2
            self._say_parts("out of memory", largest, count)

    def agree(self, group: Sequence[BatchShard], count: int) -> None:
        """Let several processes continue with as many parts as the one that needs the most; call it after a step."""
        if (most := max(gather_objects(self.parts))) > self.parts:
            self.parts = most
            self._say_parts("another process was out of memory", max(len(share.x) for share in group), count)

    def _say_parts(self, why: str, largest: int, count: int) -> None:
        norms = "; batch-norm statistics are those of a micro-batch" if waits_within(self._module) else ""
        size = -(-largest // self.parts)
        self._note(f"{why}: micro-batches of {size} samples from here on, with the same step of {count}{norms}")

    def _added(self, group: Sequence[BatchShard], count: int, size: int) -> Tensor:
        """Add the gradients of at most ``size`` samples at a time, and return the mean loss.

        It is a call of its own, so that after a failure nothing is left that would fill the memory of the next attempt.
        """
        means: list[Tensor] = []
        for share in group:
            for x, y in _parts(share, size):
                mean = self._value(x.change_tensors(partial(match_memory_format, self._module)), y)
                if len(x) != count:  # small networks on a GPU cost what their launches do: none without need
                    mean = mean * (len(x) / count)
                self.scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
                means.append(mean.detach())
        return means[0] if len(means) == 1 else torch.stack(means).sum()

    def _forget(self) -> None:
        """Delete the gradients, as ``module.zero_grad`` does, which looks for the parameters at every step."""
        for parameter in self._parameters:
            parameter.grad = None

    def _value(self, x: Inputs, y: Tensor) -> Tensor:
        with self._autocast():
            outputs = self._outputs(x).float()
        if not len(x):  # the other processes wait for it in every batch norm
            return outputs.sum() * 0
        teacher_outputs = None
        if self._teacher is not None:
            with torch.no_grad(), self._autocast():
                teacher_outputs = read_outputs(self._teacher, x.call(self._teacher)).float()
        if self._guard.worst is None:
            # Of zeros too: where these samples are of one class, their mean output is no bad answer.
            same = outputs.detach().mean(0).expand_as(outputs), torch.zeros_like(outputs)
            with torch.no_grad():
                losses = [float(self._mixed(answer, teacher_outputs, y)) for answer in same]
            self._guard.worst = max(filter(math.isfinite, losses), default=math.nan)
        return self._mixed(outputs, teacher_outputs, y)

    def _outputs(self, x: Inputs) -> Tensor:
        try:
            return self._computed(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "a batch norm of the network cannot train on a single sample", "raise data.batch_size, or --memory"
            ) from error

    def _computed(self, x: Inputs) -> Tensor:
        positional, named = x.arguments(self._module)
        if not self._options.compile:
            return read_outputs(self._module, self._forward(*positional, **named))
        from torch._dynamo.exc import TorchDynamoException

        try:
            return read_outputs(self._module, self._forward(*positional, **named))
        except TorchDynamoException as error:
            raise UsageError(
                f"torch.compile cannot compile the network: {first_line(error)}",
                "leave finetune.compile at false",
            ) from error

    def _mixed(self, outputs: Tensor, teacher_outputs: Tensor | None, y: Tensor) -> Tensor:
        """Return the training loss from the labels, the dense network's outputs, or both."""
        if teacher_outputs is None:
            return self._loss(outputs, y)
        distance = distillation(outputs, teacher_outputs, y, self._task, self._options.distill)
        share = self._share
        return distance if share == 1 else (1 - share) * self._loss(outputs, y) + share * distance

    def _autocast(self) -> AbstractContextManager[object]:
        if self._dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)


def _parts(share: BatchShard, size: int) -> list[tuple[Inputs, Tensor]]:
    """Split a batch evenly into at most ``size`` samples each: no batch norm can train on a single sample."""
    parts = -(-len(share.x) // size)
    if parts <= 1:
        return [(share.x, share.y)]
    return list(zip(share.x.split(parts), share.y.tensor_split(parts), strict=True))
