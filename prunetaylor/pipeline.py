"""load -> fit the Taylor model -> score -> select -> repair -> measure (in stages) -> fine-tune."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.checkpoint.write import model_bytes
from prunetaylor.config.resolve import from_values
from prunetaylor.data import augment
from prunetaylor.data.load import from_python
from prunetaylor.data.samples import Batches, Split, draw
from prunetaylor.errors import DataError, NumericsError
from prunetaylor.job import Job, make_job, open_job, pick_device
from prunetaylor.measure.cost import count, flops
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.measure.evaluate import evaluate as evaluate_on
from prunetaylor.measure.paired import drop_interval
from prunetaylor.memory import chunks, within
from prunetaylor.network.network import Network
from prunetaylor.network.state import restore, snapshot
from prunetaylor.objective import Objective
from prunetaylor.outcome import Epoch, LayerOutcome, Outcome, Side, Sparsity
from prunetaylor.planning import make_plan
from prunetaylor.progress import Progress, Silent, Watch, unwatched
from prunetaylor.repair.masks import check_masks
from prunetaylor.repair.train import distillation_share, peak_lr, precision, train
from prunetaylor.stages import Stages

__all__ = ["Job", "evaluate", "open_job", "prune", "run"]


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def run(job: Job, progress: Progress, *, dense_found: Evaluation | None = None, watch: Watch = unwatched) -> Outcome:
    """Prune, repair, fine-tune and measure. ``job.network`` is pruned in place; nothing is written.

    ``dense_found`` is the dense network's evaluation on the test samples, where somebody has it already; ``watch`` is
    told what each stage and epoch came to, and may end the run by an exception of its own.

    UsageError, before anything is done, where it does not fit in memory.
    """
    clock = Clock()
    plan = make_plan(job)
    with clock.time("total"), within(plan.chunks):
        for choice in (*job.choices, plan.describe()):
            progress.note(choice)
        module = job.network.module
        dense = Network.of(copy.deepcopy(module), job.config.prune.include, job.config.prune.exclude)
        training, validation = training_split(job)
        with clock.time("measure"):
            dense_found = dense_found or _measure(job, dense.module, progress, "measure the dense network")
            dense_side = _side(job, dense.module, dense_found)
        stages = Stages(job, dense, training, progress, watch)
        with clock.time("prune"):
            stages.run()
        epochs: list[Epoch] = []
        if job.epochs and training is not None and validation is not None:
            with clock.time("fine-tune"):
                epochs = _finetune(job, stages, dense.module, training, validation, progress, watch)
        check_masks(module, stages.masks)
        with clock.time("measure"):
            pruned_found = _measure(job, module, progress, "measure the pruned network")
            pruned_side = _side(job, module, pruned_found)
    return Outcome(
        module=module,
        masks=stages.masks,
        metric=job.config.metric,
        goal="min" if job.config.metric == "loss" else "max",
        dense=dense_side,
        pruned=pruned_side,
        sparsity=_sparsity(job, stages.masks),
        drop=_drop(job, dense_found, pruned_found),
        stages=stages.done,
        first_order=stages.first_order,
        layers=_layers(job, stages.masks),
        skipped=job.network.skipped,
        epochs=epochs,
        choices=[*job.choices, *stages.choices],
        seconds=clock.seconds,
        seed=job.config.seed,
        device=str(job.device),
        hashes=hashes(job),
        memory=plan.report,
    )


def evaluate(job: Job, progress: Progress) -> Side:
    """Measure the job's network as it is."""
    return _side(job, job.network.module, _measure(job, job.network.module, progress, "measure"))


def prune(
    model: nn.Module,
    train: Any,
    test: Any = None,
    *,
    sparsity: float = 0.5,
    validation: Any = None,
    normalize: str | Mapping[str, Any] | None = None,
    augment: str = "none",
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """``prunetaylor prune`` from Python: the pruned copy of ``model`` is ``outcome.module``; ``model`` stays as it is.

    Args:
        model: a trained network.
        train: calibrates and fine-tunes: a map-style data set of (input, target), a DataLoader of one, or (x, y).
        test: reports; the training samples where it is not given.
        sparsity: fraction of the prunable weights removed, in [0, 1).
        validation: chooses between epochs; else a share of ``train``.
        normalize: "imagenet", "cifar10", "mnist", {"mean": [...], "std": [...]} or None for inputs that are ready.
        augment: random changes of images while fine-tuning: "none", "flip" or "crop-flip".
        settings: any other key of the configuration, dotted: ``{"finetune.epochs": 2, "prune.exclude": ["fc2"]}``.

    Raises:
        PruneTaylorError: with cause and remedy.
    """
    config = from_values({"prune.sparsity": sparsity, **(settings or {})}).config
    device, reason = pick_device(config.device)
    samples = from_python(train, test, validation, normalize=normalize, augment=augment)
    job = make_job(config, copy.deepcopy(model), samples, device, choices=[f"device {device}: {reason}"])
    return run(job, progress or Silent())


def training_split(job: Job) -> tuple[Split | None, Split | None]:
    """What calibrates and fine-tunes, and what chooses between epochs (None where nothing is chosen)."""
    if job.samples is None:
        return None, None
    train = job.samples.train
    if not job.epochs or job.samples.validation is not None:
        return train, job.samples.validation
    held = round(job.config.data.validation * len(train))
    if held < 1 or len(train) - held < 2:
        raise DataError(
            f"{len(train)} training samples are too few to keep some out for validation", "say --epochs 0, or give more"
        )
    # A generator of its own: the split must not depend on how many numbers anything else draws.
    order = draw(train, len(train), torch.Generator().manual_seed(job.config.seed))
    job.choices.append(
        f"validation: {held} of the {len(train)} training samples, kept out of calibration and fine-tuning"
    )
    return train.subset(sorted(order[held:])), train.subset(sorted(order[:held]))


def _finetune(
    job: Job,
    stages: Stages,
    dense: nn.Module,
    training: Split,
    validation: Split,
    progress: Progress,
    watch: Watch,
) -> list[Epoch]:
    """Train what is left, and keep the epoch that is best on the validation samples."""
    config, module = job.config, job.network.module
    assert job.samples is not None
    generator = torch.Generator().manual_seed(config.seed)
    _, change = augment.resolve(job.samples.augment, training.fetch([0])[0][0])
    batches = job.batches(training, augment=change, generator=generator, shuffle=True, drop_last=True)
    chooser = job.batches(validation)
    lr, lr_reason = peak_lr(config.finetune)
    kind, kind_reason = precision(config.finetune, job.device)
    name = str(kind).removeprefix("torch.")
    share = distillation_share(config.finetune.distill)
    if share and config.finetune.distill.weight == "auto":
        stages.choices.append(f"distillation: {share:g} of the loss, as the dense network is at hand")
    stages.choices += [f"learning rate {lr:g}: {lr_reason}", f"precision {name}: {kind_reason}"]
    objective = Objective(job.kind, "task")
    best, best_state = -math.inf, snapshot(module)
    epochs: list[Epoch] = []
    progress.phase("fine-tune", job.epochs * len(batches))
    start = time.perf_counter()
    for state in train(
        module,
        stages.masks,
        batches,
        options=config.finetune,
        epochs=job.epochs,
        loss=lambda outputs, targets: objective.values(outputs, targets).mean(),
        teacher=dense if share else None,
        device=job.device,
        generator=generator,
    ):
        progress.step(f"epoch {state.epoch} of {job.epochs}")
        if state.epoch_done:
            value = _validate(job, chooser, state.epoch)
            epochs.append(Epoch(state.epoch, state.epoch_loss, value, time.perf_counter() - start))
            progress.note(f"epoch {state.epoch}: loss {state.epoch_loss:.4f}, validation {config.metric} {value:.2f}")
            start = time.perf_counter()
            gain = value if config.metric != "loss" else -value
            if gain > best:
                best, best_state = gain, snapshot(module)
            watch("epoch", state.epoch, value)
    restore(module, best_state)
    return epochs


def _validate(job: Job, chooser: Batches, epoch: int) -> float:
    """The metric on the samples that choose. What is not finite now was made so by training: the dense network ran."""
    try:
        return evaluate_on(job.network.module, chooser, job.kind).metrics[job.config.metric]
    except NumericsError as error:
        raise NumericsError(
            f"after epoch {epoch} of fine-tuning {error.cause}", "lower finetune.lr, or lengthen finetune.warmup"
        ) from error


def _measure(job: Job, module: nn.Module, progress: Progress, phase: str) -> Evaluation | None:
    if job.samples is None:
        return None
    progress.phase(phase)
    batch = max(1, job.config.data.batch_size // chunks().batch)
    return evaluate_on(module, job.batches(job.samples.test, batch_size=batch), job.kind)


def _side(job: Job, module: nn.Module, found: Evaluation | None) -> Side:
    parameters, nonzero = count(module)
    work: tuple[int | None, int | None] = (None, None)
    if job.samples is not None:
        example, _ = next(iter(job.batches(job.samples.test.subset([0]))))
        work = flops(module, example)
    return Side(found.metrics if found else {}, parameters, nonzero, *work, model_bytes(module))


def _sparsity(job: Job, masks: Mapping[str, Tensor]) -> Sparsity:
    prunable = job.network.prunable
    removed = sum(int((~mask).sum()) for mask in masks.values())
    return Sparsity(job.config.prune.sparsity, removed / prunable, prunable, removed)


def _drop(job: Job, dense: Evaluation | None, pruned: Evaluation | None) -> Any:
    if dense is None or pruned is None or dense.correct is None or pruned.correct is None:
        return None
    return drop_interval(dense.correct, pruned.correct)


def _layers(job: Job, masks: Mapping[str, Tensor]) -> list[LayerOutcome]:
    found = []
    for layer in job.network.layers:
        removed = int((~masks[layer.parameter]).sum())
        shape = tuple(layer.weight.shape)
        found.append(LayerOutcome(layer.name, shape, removed, removed / layer.weight.numel()))
    return found


def hashes(job: Job) -> dict[str, str]:
    """sha256 of the checkpoint and the data's fingerprint, as far as there are any."""
    found = {}
    if job.checkpoint is not None:
        found["checkpoint"] = job.checkpoint.sha256
    if job.samples is not None:
        found["data"] = job.samples.fingerprint
    return found
