"""Fine-tuning after the last stage, or between the stages of a gradual schedule; the best epoch stays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunetaylor.core.errors import NumericsError, UsageError
from prunetaylor.core.progress import Progress, ProgressMonitor, no_monitor
from prunetaylor.core.results.outcome import Alert, Epoch, Unfinished
from prunetaylor.data import augment
from prunetaylor.data.samples import Batches, Split
from prunetaylor.measure.evaluate import evaluate
from prunetaylor.network.state import restore, snapshot
from prunetaylor.pipeline.files.resume import restoring
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.sampling.calibration import answered
from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pruning.repair.masks import check_masks
from prunetaylor.pruning.selection.schedule import gradual, pruning_steps, sparsities
from prunetaylor.pruning.training.distillation import distillation_share
from prunetaylor.pruning.training.divergence import LOOK_EVERY, Diverged
from prunetaylor.pruning.training.optimizer import peak_lr, precision
from prunetaylor.pruning.training.train import Training, TrainState
from prunetaylor.taylor.objective import Objective


class Finetuning:
    """Trains what is left of ``job.network`` in place, and prunes it between steps where the schedule is gradual.

    Args:
        dense: the network as it was, which teaches.
        training: what is trained on.
        validation: chooses between the epochs that have the sparsity asked for.
        moment: called wherever the state may be kept.
        watch: told what each epoch came to.
    """

    def __init__(
        self,
        job: Job,
        stages: Stages,
        dense: nn.Module,
        training: Split,
        validation: Split,
        progress: Progress,
        checkpoint_point: Callable[[], None],
        watch: ProgressMonitor = no_monitor,
    ) -> None:
        self._watch = watch
        self.job, self.stages, self.dense, self.progress, self.checkpoint_point = (
            job,
            stages,
            dense,
            progress,
            checkpoint_point,
        )
        self.epochs: list[Epoch] = []
        self.choices: list[str] = []
        # (how good, the epoch, its weights)
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        # While nothing has the sparsity asked for, the last that training came to: (epoch, weights, masks, stages).
        self._reached: tuple[int, dict[str, Tensor], dict[str, Tensor], int] | None = None
        self._ending = False
        self.unfinished: Unfinished | None = None
        self.options = job.config.finetune
        if not job.labelled:
            alone = self.options.distill.model_copy(update={"weight": 1.0})
            self.options = self.options.model_copy(update={"distill": alone})
        self._generator = torch.Generator().manual_seed(job.config.seed)
        assert job.samples is not None
        _, change = augment.resolve(job.samples.augment, training.fetch([0])[0][0])
        self._batches = job.batches(training, augment=change, generator=self._generator, shuffle=True, drop_last=True)
        if not validation.labelled:
            self._choose(f"validation: {job.config.metric} is agreement with the dense network, as there are no labels")
        self._chooser = job.batches(answered(job, dense, validation))
        self._levels = gradual_levels(job, self._batches)
        self._objective_loss = self._loss()
        self.training: Training | None = None

    def run(self, left: Mapping[str, Any] | None = None) -> list[Epoch]:
        """Train, prune and choose; from ``left``, a state, on."""
        if left is not None:
            with restoring():
                self.choices = list(left["choices"])
        self._say_choices()
        if left is None:
            self._prune_at(0)
            self._look_before()
            self.checkpoint_point()
        training = self._training()
        if left is not None:
            with restoring():
                self.epochs = [Epoch(**epoch) for epoch in left["epochs"]]
                self._best, self._reached = left["best"], left["reached"]
                training.load_state_dict(left["training"], again=left["ending"])
        self.training = training
        if self.stages.state.unfinished:
            self._prune_at(self.stages.state.train_steps)
            self.checkpoint_point()
        self.progress.phase("fine-tune", training.steps)
        for _ in range(self.stages.state.train_steps - (left is not None and left["ending"])):
            self.progress.step()
        self._start = time.perf_counter()
        try:
            for state in training.run():
                self._after(training, state)
        except Diverged as error:
            self._stop_at(error)
        if self._best is not None:
            restore(self.job.network.module, self._best[2])
            if self._best[1] == 0 and len(self.epochs) == self.job.epochs:
                self._choose(
                    "fine-tuning: no epoch improved the network, so it is kept as it was; try a lower finetune.lr"
                )
            self._say_no_better(training)
        return self.epochs

    def state_dict(self) -> dict[str, Any] | None:
        """All that the steps to come depend on, at a ``checkpoint_point``; None where training has not begun."""
        if self.training is None:
            return None
        return {
            "training": self.training.state_dict(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": self._best,
            "reached": self._reached,
            "ending": self._ending,
            "choices": list(map(str, self.choices)),
        }

    def _after(self, training: Training, state: TrainState) -> None:
        """What is done between this step and the next."""
        self.stages.state.train(state.step)
        detail = f"epoch {state.epoch} of {self.job.epochs}"
        if state.step % LOOK_EVERY == 0 and math.isfinite(loss := state.loss):  # else training ends at its next look
            speed = {"train/loss": loss, "train/lr": state.lr, "train/samples_per_second": state.samples_per_second}
            self.progress.measured(state.step, speed)
        self.progress.step(f"{detail}, {state.samples_per_second:,.0f} samples/s, {_duration(state.seconds_left)} left")
        if state.epoch_done:
            self._ending = True  # a state now, before the pass over what chooses, is of before it
            self.checkpoint_point()
            self._ending = False
            self._end_epoch(training, state)
            self._watch("epoch", state.epoch, self.epochs[-1].validation)
        if self._prune_at(state.step):
            self.progress.phase("fine-tune", training.steps - state.step)
        self.checkpoint_point()

    def _look_before(self) -> None:
        """What training starts from is a result too, where it has the sparsity asked for: epochs may be worse."""
        if not self.stages.finished:
            self._reach(0)
            return
        try:
            value = evaluate(self.job.network.module, self._chooser, self.job.task).metrics[self.job.config.metric]
        except NumericsError:  # training may repair what removal broke
            return
        self.progress.note(f"before fine-tuning: validation {self.job.config.metric} {value:.2f}")
        self._best = self._gain(value), 0, snapshot(self.job.network.module)

    def _end_epoch(self, training: Training, state: TrainState) -> None:
        config, module = self.job.config, self.job.network.module
        with training.averaged():
            check_masks(module, self.stages.state.masks)  # of an average; the network's own are checked by the training
            value = self._validate(state.epoch)
            gain = self._gain(value)
            # An epoch with more weights than asked for is no result.
            finished = self.stages.finished
            # As good as before training is good enough: what was trained may be surer of it.
            if finished and (self._best is None or gain > self._best[0] or (gain, 0) == self._best[:2]):
                self._best, self._reached = (gain, state.epoch, snapshot(module)), None
            if not finished:
                self._reach(state.epoch)
        sparsity = self.stages.state.removed / self.job.network.prunable
        seconds = time.perf_counter() - self._start
        self.epochs.append(Epoch(state.epoch, state.epoch_loss, value, seconds, sparsity, state.lr))
        self.progress.measured(
            state.step,
            {"epoch/loss": state.epoch_loss, f"validation/{config.metric}": value, "epoch/sparsity": sparsity},
        )
        at = f"{sparsity:.2%} removed, " if self._levels else ""
        self.progress.note(
            f"epoch {state.epoch}: {at}loss {state.epoch_loss:.4f}, validation {config.metric} {value:.2f}, "
            f"{state.samples_per_second:,.0f} samples/s"
        )
        self._start = time.perf_counter()

    def _reach(self, epoch: int) -> None:
        state = self.stages.state
        self._reached = epoch, snapshot(self.job.network.module), dict(state.masks), len(state.history)

    def _say_no_better(self, training: Training) -> None:
        """Where no epoch's loss was better than that of an answer which is the same for all samples.

        Of one epoch it says little: its first steps repair what removal broke.
        """
        best = min((epoch.loss for epoch in self.epochs), default=math.nan)
        if len(self.epochs) > 1 and training.worst is not None and best > training.worst:
            self._choose(
                f"fine-tuning: no epoch's training loss, {best:.4g} at best, was better than that of an answer which "
                f"never changes, {training.worst:.4g}; lower finetune.lr, or prune in smaller steps"
            )

    def _gain(self, value: float) -> float:
        """The metric with its sign such that more is better."""
        return value if self.job.config.metric != "loss" else -value

    def _validate(self, epoch: int) -> float:
        """The metric on the samples that choose. What is not finite now was made so by training: the dense one ran."""
        try:
            return evaluate(self.job.network.module, self._chooser, self.job.task).metrics[self.job.config.metric]
        except NumericsError as error:
            raise Diverged(
                f"after epoch {epoch} of fine-tuning {error.cause}", "lower finetune.lr, or lengthen finetune.warmup"
            ) from error

    def _stop_at(self, error: Diverged) -> None:
        """Training came to nothing: the last good epoch is the result, or what it started from.

        While a gradual schedule has not reached the sparsity asked for, that is the last epoch, with what it had.
        """
        if self._best is None and self._reached is None:
            raise error
        epoch = self._best[1] if self._best is not None else self._go_back(error)
        better = ", better than any epoch," if self.epochs and self._best is not None else ""
        kept = f"epoch {epoch}" if epoch else f"the network before fine-tuning{better}"
        text = f"fine-tuning stopped: {error.cause}; {kept} is kept; to continue, {error.remedy}"
        self.choices.append(text)
        self.job.warn(Alert("finetuning_stopped", text), self.progress)

    def _go_back(self, error: Diverged) -> int:
        """To the last epoch, at its sparsity: its number. Stages since then are as if they had been taken back."""
        assert self._reached is not None
        state, (epoch, weights, masks, count) = self.stages.state, self._reached
        restore(self.job.network.module, weights)
        state.revert(masks, count)
        removed, asked = state.removed / self.job.network.prunable, self.job.config.prune.sparsity
        cause = f"{removed:.2%} are removed where {asked:.2%} were asked for, as {error.cause}"
        self.unfinished = Unfinished(cause, error.remedy)
        return epoch

    def _prune_at(self, step: int) -> bool:
        """Prune where the schedule says so, after ``step`` steps."""
        if step not in self._levels:
            return False
        if self.training is not None:
            self.training.check()  # what is not finite now was made so by training, not by pruning
        self.stages.prune_to(self._levels[step])
        if self.training is not None:
            self.training.prune(self.stages.state.masks)
        self._start = time.perf_counter()
        return True

    def _training(self) -> Training:
        share = distillation_share(self.options.distill)
        return Training(
            self.job.network.module,
            self.stages.state.masks,
            self._batches,
            options=self.options,
            epochs=self.job.epochs,
            loss=self._objective_loss,
            task=self.job.task,
            teacher=self.dense if share else None,
            device=self.job.device,
            generator=self._generator,
            starts=[*self._levels] if self.options.rewind and self._levels else (0,),
            note=self._choose,
        )

    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        smoothing = self.job.config.finetune.label_smoothing
        if smoothing:
            return lambda outputs, targets: functional.cross_entropy(outputs, targets, label_smoothing=smoothing)
        objective = Objective(self.job.task, "task")
        return lambda outputs, targets: objective.values(outputs, targets).mean()

    def _say_choices(self) -> None:
        config = self.options
        lr, lr_reason = peak_lr(config)
        kind, kind_reason = precision(config, self.job.device)
        share = distillation_share(config.distill)
        if not self.job.labelled:
            self._choose("distillation: weight 1 (there are no labels; teacher: the dense network)")
        if share and config.distill.weight == "auto":
            self._choose(f"distillation: weight {share:g} (teacher: the dense network)")
        self._choose(f"learning rate {lr:g}: {lr_reason}")
        self._choose(f"precision {str(kind).removeprefix('torch.')}: {kind_reason}")
        if self._levels:
            each = -(-len(self._batches) // config.accumulate)
            steps = ", ".join(f"{level:.1%} at epoch {step / each:.2g}" for step, level in self._levels.items())
            self._choose(f"schedule {self.job.config.prune.schedule}: {steps}")
            if config.rewind and len(self._levels) == 1:
                self._choose("no effect: finetune.rewind (there is only one pruning step)")

    def _choose(self, text: str) -> None:
        if text not in self.choices:
            self.choices.append(text)
            self.progress.note(text)


def gradual_levels(job: Job, batches: Batches) -> dict[int, float]:
    """The sparsity that is pruned to, by the number of steps done before; empty where all is pruned beforehand.

    UsageError where the stages do not fit into the epochs.
    """
    config, each = job.config.prune, -(-len(batches) // job.config.finetune.accumulate)
    if config.schedule == "one-shot":
        return {}
    during = config.during if config.during != "auto" else job.epochs * 2 / 3
    if during > job.epochs:
        raise UsageError(
            f"prune.during={during:g} is more than the {job.epochs} epochs of fine-tuning",
            "lower prune.during, or give more --epochs",
        )
    if isinstance(config.stages, list):
        levels = sparsities(config.sparsity, config.stages, True)
    else:
        usual = len(sparsities(config.sparsity, "auto", True))
        levels = gradual(config.sparsity, config.schedule, usual if config.stages == "auto" else config.stages)
    if len(levels) > (room := max(1, int(during * each))):  # the first one comes before any step
        if config.stages != "auto":
            raise UsageError(
                f"{len(levels)} stages do not fit into prune.during={during:g} epochs of {each} steps",
                "lower prune.stages, or raise prune.during",
            )
        levels = gradual(config.sparsity, config.schedule, room)
    return dict(zip(pruning_steps(len(levels), during * each), levels, strict=True))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds) if math.isfinite(seconds) else 0, 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
