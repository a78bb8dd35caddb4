"""Fine-tuning of the remaining weights, with the removed ones kept at zero. It yields after each step.

The caller may measure, save and prune between two steps. The state is a dictionary of plain values and tensors; a
training that starts from such a state continues as if it had never stopped, bit for bit on one machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data.samples import Batches, BatchShard
from prunetaylor.network.state import evaluating, fixed_order
from prunetaylor.pruning.masks import MaskKeeper, apply_masks, check_masks, keep_masks
from prunetaylor.pruning.training.backward import Backward, Loss
from prunetaylor.pruning.training.divergence import Guard, check_finite, check_scale
from prunetaylor.pruning.training.optimizer import Average, Rates, make_optimizer
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.pruning.training.train_state import TrainState
from prunetaylor.runtime.processes.exchange import all_sum, copy_from_main, from_main
from prunetaylor.runtime.processes.group import rank, world
from prunetaylor.runtime.processes.training import sum_gradients, synced_batch_norm, waits_within
from prunetaylor.taylor.objective import Task

_LAST = ("lr", "samples_per_second", "seconds_left", "loss_tensor")
"""Fields of a TrainState that the rest of a state does not contain."""


class Training:
    """A training of ``module`` in place; masked weights are zero at every yield of :meth:`run`.

    At a yield with ``epoch_done`` the module is in evaluation mode, ready to be measured; at the end too, with its
    gradients released. The global random state, which dropout draws from, is seeded from ``generator`` and put back.
    Several processes train on their rows of each batch; steps are those of one process, but for what dropout draws.

    Args:
        module: the network on ``device``; parameters that require no gradient do not move.
        masks: by parameter name, True = keep; :meth:`prune` changes them between steps.
        batches: shuffled training batches; what they draw comes from their own generator. Use ``drop_last``, as batch
            norm cannot train on a last batch of one sample.
        options: optimiser, schedule, precision and distillation. ``options.epochs`` is not read.
        epochs: passes over ``batches``; 0 only applies the masks.
        loss: gets float32 outputs and the targets.
        task: the task of the network, for the distance from the teacher's outputs.
        teacher: the dense network; without it ``options.distill.weight`` must be 0.
        starts: steps, the first of them 0, at which the learning rate's schedule starts anew.
        note: called with messages for the user.

    Raises (in ``run``):
        Diverged: the loss is not finite or has exploded, or a weight is not finite at the end.
        NumericsError: a masked weight is not zero at the end of an epoch.
        DataError: there is no batch.
        UsageError: nothing to train, or no teacher to distil from.
    """

    # Made when it starts.
    _optimizer: torch.optim.Optimizer
    _backward: Backward
    _average: Average | None
    _keeper: MaskKeeper
    _guard: Guard

    def __init__(
        self,
        module: nn.Module,
        masks: Mapping[str, Tensor],
        batches: Batches,
        *,
        options: TrainingSettings,
        epochs: int,
        loss: Loss,
        task: Task = "classification",
        teacher: nn.Module | None = None,
        device: torch.device,
        generator: torch.Generator,
        starts: Sequence[int] = (0,),
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        if teacher is None and options.distill.weight:
            raise UsageError(
                "distillation needs the dense network", "pass it as teacher, or set finetune.distill.weight=0"
            )
        if epochs and not len(batches):
            raise DataError(
                "too few samples for one batch of fine-tuning", "lower data.batch_size, or give more training samples"
            )
        self.module, self.masks, self.batches, self.epochs = module, dict(masks), batches, epochs
        self._options, self._device, self._generator = options, device, generator
        self._teacher = teacher if options.distill.weight else None
        self._loss, self._task, self._starts, self._note = loss, task, starts, note
        self._epoch, self._step = 1, 0
        self._resumed: Mapping[str, Any] | None = None
        self._last: TrainState | None = None
        self._again = False

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimiser steps in an epoch."""
        return -(-len(self.batches) // self._options.accumulate)

    @property
    def steps(self) -> int:
        """Return the number of optimiser steps in all epochs."""
        return self.epochs * self.steps_per_epoch

    def run(self) -> Iterator[TrainState]:
        """Train, yielding after every optimiser step."""
        apply_masks(self.module, self.masks)
        try:
            with self._reproducible(), ExitStack() as stack:
                stack.enter_context(synced_batch_norm(self.module))
                if self._teacher is not None:
                    stack.enter_context(evaluating(self._teacher))
                if self.epochs:
                    yield from self._epochs()
        finally:
            self.module.eval()
            self.module.zero_grad(set_to_none=True)
        self.check()

    def check(self) -> None:
        """Raise Diverged if a weight is not finite, NumericsError if a removed one is not zero."""
        check_finite(self.module)  # first: not even a mask makes a zero of a weight that is not a number
        check_masks(self.module, self.masks)

    def prune(self, masks: Mapping[str, Tensor]) -> None:
        """Replace the masks between two steps; the momentum of removed weights is reset, and the average starts
        anew."""
        self.masks = dict(masks)
        if self._resumed is not None:  # it is yet to go on
            self._resumed = {**self._resumed, "average": None}
            return
        self._keeper.remove()
        self._keeper = self._keep_masks()
        if self._average is not None:
            self._average = Average(self.module, self._options.ema)

    @property
    def worst(self) -> float | None:
        """Return the training loss of a constant answer; None before the first step."""
        return self._guard.worst if self.epochs else None

    def averaged(self) -> AbstractContextManager[None]:
        """Give the module the averaged weights inside, if an average is computed."""
        return nullcontext() if self._average is None else self._average.swapped_in()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the coming steps depend on; the caller saves weights and masks."""
        if self._resumed is not None:
            return dict(self._resumed)
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._backward.scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "batches": self.batches.state_dict(),
            "epoch": self._epoch,
            "step": self._step,
            "parts": self._backward.parts,
            "guard": self._guard.state_dict(),
            "sum": self._sum,
            "seen": self._seen,
            "last": None if self._last is None else {key: getattr(self._last, key) for key in _LAST},
        }

    def load_state_dict(self, state: Mapping[str, Any], *, again: bool = False) -> None:
        """Continue from that state once :meth:`run` is called.

        With ``again`` the last state is yielded once more: an epoch's end that the caller had not finished with.
        """
        self._resumed, self._again = state, again

    def _epochs(self) -> Iterator[TrainState]:
        options, module = self._options, self.module
        self._optimizer = make_optimizer(module, options, self._device)
        self._average = Average(module, options.ema) if options.ema else None
        self._guard = Guard(self._device)
        self._backward = Backward(
            module,
            self._teacher,
            self._loss,
            self._guard,
            task=self._task,
            options=options,
            device=self._device,
            note=self._note,
        )
        self._sum, self._seen = torch.zeros((), device=self._device), 0
        rates = Rates(options, self.steps, self._starts)
        last = self._resume()
        if (parts := self._backward.parts) > 1:
            norms = "; batch-norm statistics are those of a micro-batch" if waits_within(self.module) else ""
            self._note(f"micro-batches: each batch is split into {parts}, to fit in memory, with the same step{norms}")
        self._keeper = self._keep_masks()
        try:
            if last is not None:
                yield last
                self._next_epoch()
            while self._epoch <= self.epochs:
                yield from self._one_epoch(rates)
                self._next_epoch()
        finally:
            self._keeper.remove()

    def _next_epoch(self) -> None:
        self._epoch += 1
        self._sum, self._seen = torch.zeros((), device=self._device), 0

    def _keep_masks(self) -> MaskKeeper:
        """Keep the masks of trained weights; others stay zero, and the optimizer does not know them."""
        own = dict(self.module.named_parameters(remove_duplicate=False))
        moving = {name: mask for name, mask in self.masks.items() if name not in own or own[name].requires_grad}
        apply_masks(self.module, self.masks)
        return keep_masks(self.module, self._optimizer, moving)

    def _one_epoch(self, rates: Rates) -> Iterator[TrainState]:
        self.module.train()
        new, busy, start = 0, 0.0, time.perf_counter()
        for group in _groups(self.batches, self._options.accumulate):
            count, lr = sum(share.batch_size for share in group), rates(self._step)
            value = self._do(group, count, lr)
            self._step += 1
            self._seen, new = self._seen + count, new + count
            self._sum = torch.add(self._sum, value, alpha=count)
            epoch_done = self._step == self._epoch * self.steps_per_epoch
            if self._guard.is_due(value) or epoch_done:
                self._guard.check(value, lr, self._step, self.steps)
                check_scale(self._backward.scaler, self._step, self.steps)
            if epoch_done:
                self.module.eval()
                copy_from_main(t for t in self.module.state_dict().values() if isinstance(t, Tensor))
                self.check()
            busy += time.perf_counter() - start
            rate = new / max(busy, 1e-9)
            seconds_left = (self.steps - self._step) * count / rate
            self._last = TrainState(
                self._epoch, self._step, self.steps, lr, epoch_done, rate, seconds_left, value, self._sum, self._seen
            )
            yield self._last
            start = time.perf_counter()

    def _do(self, group: Sequence[BatchShard], count: int, lr: float) -> Tensor:
        """Do one optimiser step; the mean loss is returned as a tensor, so that nothing waits for the device."""
        for settings in self._optimizer.param_groups:
            settings["lr"] = lr
        self._seed_step()
        scaler = self._backward.scaler
        value = self._backward(group, count)
        if world() > 1:
            sum_gradients(self.module.parameters())
            value = all_sum({"loss": value})["loss"]
            self._backward.agree(group, count)
            if self._step == 0:
                self._guard.worst = from_main(self._guard.worst)
        if self._options.clip_norm is not None:
            scaler.unscale_(self._optimizer)
            self._keeper.mask_gradients()  # the sparser the network, the more of the norm would be theirs
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._options.clip_norm)
        scaler.step(self._optimizer)
        scaler.update()
        if self._average is not None:
            self._average.update()
        return value

    def _resume(self) -> TrainState | None:
        """Restore a loaded state, if any; return the state to yield once more before the next step."""
        state, self._resumed = self._resumed, None
        if state is None:
            return None
        self._optimizer.load_state_dict(state["optimizer"])
        self._backward.scaler.load_state_dict(state["scaler"])
        if self._average is not None and state["average"] is not None:
            self._average.load_state_dict(state["average"])
        self._epoch, self._step, self._backward.parts = state["epoch"], state["step"], state["parts"]
        self._sum, self._seen = state["sum"].to(self._device), state["seen"]
        self._guard.load_state_dict(state["guard"])
        epoch_done = self._step == self._epoch * self.steps_per_epoch
        self.batches.load_state_dict(state["batches"], finished=epoch_done)
        if not epoch_done:
            return None
        if not self._again:  # its last step was done, the next one begins
            self._next_epoch()
            return None
        self._last = TrainState(
            self._epoch,
            self._step,
            self.steps,
            epoch_done=True,
            _epoch_sum=self._sum,
            _epoch_samples=self._seen,
            **{**state["last"], "loss_tensor": state["last"]["loss_tensor"].to(self._device)},
        )
        return self._last

    @contextmanager
    def _reproducible(self) -> Iterator[None]:
        """Seed the network's own randomness from the generator; on a GPU convolutions sum in a fixed order."""
        self._seed, device = int(torch.randint(2**62, (), generator=self._generator)), self._device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), fixed_order(device):
            self._seed_step()
            yield

    def _seed_step(self) -> None:
        """Seed each step of each process on its own, so that a resumed run needs no earlier random numbers."""
        seed = (self._seed + 1_000_003 * self._step + 7_919 * rank()) % 2**63
        if self._device.type == "cpu":  # leaves the generators of GPUs that nobody uses alone
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)


def train(module: nn.Module, masks: Mapping[str, Tensor], batches: Batches, **how: Any) -> Iterator[TrainState]:
    """Run a whole :class:`Training`."""
    return Training(module, masks, batches, **how).run()


def _groups(batches: Batches, size: int) -> Iterator[list[BatchShard]]:
    """Yield this process's rows of ``size`` batches at a time, fewer at the end."""
    group: list[BatchShard] = []
    for share in batches.shards():
        group.append(share)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
