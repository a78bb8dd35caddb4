"""Fine-tuning after the last stage, or between the stages of a gradual schedule; the best epoch is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunetaylor.core.errors import NumericsError
from prunetaylor.core.progress import Progress, ProgressMonitor, no_monitor
from prunetaylor.core.results.outcome import Alert, Epoch, Unfinished
from prunetaylor.data import augment
from prunetaylor.data.samples import Split
from prunetaylor.measure.evaluate import evaluate
from prunetaylor.network.state import restore, snapshot
from prunetaylor.pipeline.choice_log import ChoiceLog
from prunetaylor.pipeline.files.resume import restoring
from prunetaylor.pipeline.finetuning.epoch_selection import Candidate, EpochSelector
from prunetaylor.pipeline.finetuning.gradual import GradualPruning
from prunetaylor.pipeline.preparation import Preparation
from prunetaylor.pipeline.sampling.calibration import pseudo_labelled
from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pruning.masks import check_masks
from prunetaylor.pruning.training.divergence import CHECK_EVERY, Diverged
from prunetaylor.pruning.training.train import Training
from prunetaylor.pruning.training.train_state import TrainState
from prunetaylor.taylor.objective import Objective, Reference


@dataclass(frozen=True)
class FinetuningResult:
    """The epochs of fine-tuning, the lines and warnings for the report, and why the sparsity was not reached, if so."""

    epochs: list[Epoch] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    unfinished: Unfinished | None = None
    alerts: tuple[Alert, ...] = ()


class Finetuning:
    """Trains the kept weights of the job's network in place, and prunes between steps where the schedule is gradual.

    The dense network teaches where distillation is on.

    Args:
        training: the samples that are trained on.
        validation: the samples that choose between the epochs that have the sparsity asked for.
        checkpoint_point: called wherever the state may be saved.
        monitor: told the result of each epoch.
    """

    def __init__(
        self,
        prepared: Preparation,
        stages: Stages,
        training: Split,
        validation: Split,
        progress: Progress,
        checkpoint_point: Callable[[], None],
        monitor: ProgressMonitor = no_monitor,
    ) -> None:
        self.job, self.dense, self.stages, self.progress = prepared.job, prepared.dense.module, stages, progress
        job, plan = self.job, prepared.plan
        self._checkpoint_point, self._monitor = checkpoint_point, monitor
        self.epochs: list[Epoch] = []
        self.choices = ChoiceLog(progress)
        self._selector = EpochSelector(job.metric.sign)
        self._epoch_is_ending = False
        self._unfinished: Unfinished | None = None
        self._alerts: tuple[Alert, ...] = ()
        self.plan, self.options = plan, plan.training
        self._generator = torch.Generator().manual_seed(job.config.seed)
        assert job.samples is not None
        _, change = augment.load_augmentation(job.samples.augment, training.fetch([0])[0])
        self._batches = job.batches(training, augment=change, generator=self._generator, shuffle=True, drop_last=True)
        if not validation.labelled and job.metric.needs == "labels":
            self.choices(f"validation: {job.config.metric} is agreement with the dense network, as there are no labels")
        self._validation = job.batches(pseudo_labelled(job, self.dense, validation))
        self._gradual = GradualPruning(stages, plan.gradual)
        self._objective_loss = self._loss()
        self.training: Training | None = None

    def run(self, saved: Mapping[str, Any] | None = None) -> FinetuningResult:
        """Train, prune and choose the best epoch, or go on from a ``saved`` state."""
        if saved is not None:
            with restoring():
                self.choices.load_state_dict(saved["choices"])
        if self.options.rewind and len(self._gradual.levels) == 1:
            self.choices("no effect: finetune.rewind (there is only one pruning step)")
        if saved is None:
            self._prune_at(0)
            self._validate_start()
            self._checkpoint_point()
        self.training = training = self._make_training()
        if saved is not None:
            self._load(training, saved)
        if self.stages.state.unfinished:
            self._prune_at(self.stages.state.train_steps)
            self._checkpoint_point()
        self.progress.phase("fine-tune", training.steps)
        for _ in range(self.stages.state.train_steps - (saved is not None and saved["ending"])):
            self.progress.step()
        self._epoch_start = time.perf_counter()
        try:
            for state in training.run():
                self._follow(training, state)
        except Diverged as error:
            self._stop(error)
        if self._selector.best is not None:
            self._finish(training, self._selector.best)
        return FinetuningResult(self.epochs, self.choices.lines, self._unfinished, self._alerts)

    def state_dict(self) -> dict[str, Any] | None:
        """Plain values and tensors; None before training has begun."""
        if self.training is None:
            return None
        return {
            "training": self.training.state_dict(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "selection": self._selector.state_dict(),
            "ending": self._epoch_is_ending,
            "choices": self.choices.state_dict(),
        }

    @restoring()
    def _load(self, training: Training, saved: Mapping[str, Any]) -> None:
        self.epochs = [Epoch(**epoch) for epoch in saved["epochs"]]
        self._selector.load_state_dict(saved["selection"])
        training.load_state_dict(saved["training"], again=saved["ending"])

    def _follow(self, training: Training, state: TrainState) -> None:
        """Report a step, end the epoch, and prune where the schedule says so."""
        self.stages.state.train(state.step)
        detail = f"epoch {state.epoch} of {self.plan.epochs}"
        # A loss that is not finite ends training at its next check.
        if state.step % CHECK_EVERY == 0 and math.isfinite(loss := state.loss):
            speed = {"train/loss": loss, "train/lr": state.lr, "train/samples_per_second": state.samples_per_second}
            self.progress.measured(state.step, speed)
        self.progress.step(f"{detail}, {state.samples_per_second:,.0f} samples/s, {_duration(state.seconds_left)} left")
        if state.epoch_done:
            self._epoch_is_ending = True  # a run that resumes from here evaluates the epoch again
            self._checkpoint_point()
            self._epoch_is_ending = False
            self._end_epoch(training, state)
            self._monitor("epoch", state.epoch, self.epochs[-1].validation)
        if self._prune_at(state.step):
            self.progress.phase("fine-tune", training.steps - state.step)
        self._checkpoint_point()

    def _validate_start(self) -> None:
        """Offer the network before training as a result, as epochs may be worse."""
        if not self.stages.finished:
            self._offer_incomplete(0)
            return
        try:
            value = self._metric()
        except NumericsError:  # training may repair what removal broke
            return
        self.progress.note(f"before fine-tuning: validation {self.job.config.metric} {value:.2f}")
        self._selector.offer(0, value, self._weights)

    def _end_epoch(self, training: Training, state: TrainState) -> None:
        pruning, metric = self.stages.state, self.job.config.metric
        with training.averaged():
            check_masks(self.job.network.module, pruning.masks)  # of an average; training checks the network's own
            value = self._validate(state.epoch)
            if self.stages.finished:
                self._selector.offer(state.epoch, value, self._weights)
            else:
                self._offer_incomplete(state.epoch)
        sparsity = pruning.removed / self.job.network.prunable
        seconds = time.perf_counter() - self._epoch_start
        self.epochs.append(Epoch(state.epoch, state.epoch_loss, value, seconds, sparsity, state.lr))
        numbers = {"epoch/loss": state.epoch_loss, f"validation/{metric}": value, "epoch/sparsity": sparsity}
        self.progress.measured(state.step, numbers)
        removed = f"{sparsity:.2%} removed, " if self._gradual.levels else ""
        self.progress.note(
            f"epoch {state.epoch}: {removed}loss {state.epoch_loss:.4f}, validation {metric} {value:.2f}, "
            f"{state.samples_per_second:,.0f} samples/s"
        )
        self._epoch_start = time.perf_counter()

    def _weights(self) -> dict[str, Tensor]:
        return snapshot(self.job.network.module)

    def _offer_incomplete(self, epoch: int) -> None:
        state = self.stages.state
        self._selector.offer_incomplete(epoch, self._weights, state.masks, len(state.history))

    def _metric(self) -> float:
        job = self.job
        evaluation = evaluate(job.network.module, self._validation, job.task, job.metric, self.dense)
        return evaluation.metrics[job.metric.name]

    def _validate(self, epoch: int) -> float:
        """Return the metric after an epoch. Values that are not finite come from training: the dense network ran."""
        try:
            return self._metric()
        except NumericsError as error:
            raise Diverged(
                f"after epoch {epoch} of fine-tuning {error.cause}", "lower finetune.lr, or lengthen finetune.warmup"
            ) from error

    def _finish(self, training: Training, best: Candidate) -> None:
        """Restore the best weights, and say where training gained nothing."""
        restore(self.job.network.module, best.weights)
        if best.epoch == 0 and len(self.epochs) == self.plan.epochs:
            self.choices("fine-tuning: no epoch improved the network, so it is kept as it was; try a lower finetune.lr")
        if (text := describe_poor_loss([epoch.loss for epoch in self.epochs], training.worst)) is not None:
            self.choices(text)

    def _stop(self, error: Diverged) -> None:
        """Training failed: the best epoch is the result, or the fallback while the sparsity is not reached."""
        best, fallback = self._selector.best, self._selector.fallback
        if best is None and fallback is None:
            raise error
        epoch = best.epoch if best is not None else self._fall_back(error)
        better = ", better than any epoch," if self.epochs and best is not None else ""
        network = f"epoch {epoch}" if epoch else f"the network before fine-tuning{better}"
        text = f"fine-tuning stopped: {error.cause}; {network} is kept; to continue, {error.remedy}"
        self.choices.record(text)
        self.progress.warn(text)
        self._alerts = (Alert("finetuning_stopped", text),)

    def _fall_back(self, error: Diverged) -> int:
        """Return to the last epoch, with its masks, and return its number."""
        state, fallback = self.stages.state, self._selector.fallback
        assert fallback is not None
        restore(self.job.network.module, fallback.weights)
        state.revert(fallback.masks, fallback.stages)
        removed, asked = state.removed / self.job.network.prunable, self.job.config.prune.sparsity
        cause = f"{removed:.2%} are removed where {asked:.2%} were asked for, as {error.cause}"
        self._unfinished = Unfinished(cause, error.remedy)
        return fallback.epoch

    def _prune_at(self, step: int) -> bool:
        pruned = self._gradual.prune_at(step, self.training)
        if pruned:
            self._epoch_start = time.perf_counter()
        return pruned

    def _make_training(self) -> Training:
        return Training(
            self.job.network.module,
            self.stages.state.masks,
            self._batches,
            options=self.options,
            epochs=self.plan.epochs,
            loss=self._objective_loss,
            task=self.job.task,
            teacher=self.dense if self.options.distill.weight else None,
            device=self.job.device,
            generator=self._generator,
            starts=[*self._gradual.levels] if self.options.rewind and self._gradual.levels else (0,),
            note=self.choices,
        )

    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        smoothing = self.job.config.finetune.label_smoothing
        if smoothing:
            return lambda outputs, targets: functional.cross_entropy(
                outputs.flatten(0, -2), targets.flatten(0, outputs.dim() - 2), label_smoothing=smoothing
            )
        objective = Objective(self.job.task, "task")
        return lambda outputs, targets: objective.values(outputs, Reference(targets)).mean()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds) if math.isfinite(seconds) else 0, 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def describe_poor_loss(losses: Sequence[float], constant_loss: float | None) -> str | None:
    """Say that no epoch's training loss was better than that of answering all samples alike.

    A single epoch says little: its first steps repair what removal broke.
    """
    best = min(losses, default=math.nan)
    if len(losses) < 2 or constant_loss is None or not best > constant_loss:
        return None
    return (
        f"fine-tuning: no epoch's training loss, {best:.4g} at best, was better than that of an answer which never "
        f"changes, {constant_loss:.4g}; lower finetune.lr, or prune in smaller steps"
    )
