"""A job: the configuration with everything it names opened and checked, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.config.code import Trust, settings_of
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import Alert, removed_at
from prunetaylor.core.text import first_line
from prunetaylor.data.load import load_samples, workers
from prunetaylor.data.samples import Batches, Check, Checked, Samples, Split, WithTargets, check_targets
from prunetaylor.network.checkpoint.architecture.factory import known_network
from prunetaylor.network.checkpoint.architecture.resolve import resolve
from prunetaylor.network.checkpoint.read import Checkpoint, read
from prunetaylor.network.network import Network
from prunetaylor.network.state import check_present, evaluating
from prunetaylor.pipeline.validation import check_finetuning, check_pruning
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.pruning.selection.schedule import sparsities
from prunetaylor.pruning.selection.trust_region import fresh_stages
from prunetaylor.runtime.device import pick_device
from prunetaylor.runtime.processes.group import world
from prunetaylor.runtime.user_code import load_object
from prunetaylor.taylor.losses import CustomLoss
from prunetaylor.taylor.objective import Task, loss_of
from prunetaylor.taylor.passes import compute_outputs, first_batch

WORTH = {"cpu": 1e12, "mps": 1e12, "cuda": 2e13}
"""Floating-point operations, by device, that ExactOBS may take where nobody asked for it: minutes."""
_LOOKED_AT = 256
"""Targets that are looked at to tell what they are."""


@dataclass
class Job:
    """What a run works on. ``network.module`` is what it prunes, in place."""

    config: Config
    network: Network
    samples: Samples | None
    device: torch.device
    task: Task
    checkpoint: Checkpoint | None = None
    arch: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    warnings: list[Alert] = field(default_factory=list)

    @cached_property
    def method(self) -> str:
        """The criterion, ``auto`` settled: the strongest that samples, network and device allow.

        Once: a layer that turns out to take no part must not change what was chosen and said.
        """
        asked = self.config.prune.method
        if asked != "auto":
            return asked
        if self.samples is None:
            return "magnitude"
        worth = WORTH.get(self.device.type, WORTH["cpu"])
        return "obs" if self.exact_work > worth else "exact_obs"

    @property
    def exact_work(self) -> float:
        """Floating-point operations of ExactOBS in all of a run's stages, about: each falls with what is left.

        Where nobody settled them, the first goes nearly all the way and counts alone; they are many, and short, where
        each brings fresh samples to learn from.
        """
        config, drawn = self.config.prune, self.config.calibration
        stages = config.stages
        if stages == "auto" and config.schedule == "one-shot":
            learns = config.refine == "stages" or (config.refine == "auto" and drawn.labels is not False)
            fresh = drawn.resample and learns
            stages = fresh_stages(config.sparsity) if fresh else 1
        levels = sparsities(config.sparsity, stages, True)
        return load_criterion("exact_obs").work(self.network.layers) * sum(1 - level for level in [0.0, *levels[:-1]])

    @property
    def epochs(self) -> int:
        """Of fine-tuning, ``auto`` settled."""
        asked = self.config.finetune.epochs
        if asked != "auto":
            return asked
        return 3 if self.device.type == "cuda" and self.samples is not None else 0

    @property
    def epochs_reason(self) -> str:
        """One line: how many epochs, and how to have as many on every machine, as the default depends on the device."""
        if self.config.finetune.epochs != "auto":
            return f"fine-tuning: {self.epochs} epochs, as asked" if self.epochs else "fine-tuning: off, as asked"
        if self.samples is None:
            return "fine-tuning: off (there are no samples)"
        here = f"{self.epochs} epochs (automatic on a CUDA GPU" if self.epochs else "off (automatic without a CUDA GPU"
        return f"fine-tuning: {here}; --epochs {self.epochs} gives the same on every machine)"

    @property
    def labelled(self) -> bool:
        """Whether anybody but the network knows the training samples' answers."""
        return self.samples is None or self.samples.train.labelled

    def warn(self, alert: Alert, progress: Progress) -> None:
        """Tell the user, and keep it for the result."""
        self.warnings.append(alert)
        progress.warn(alert.text)

    def batches(self, split: Split, **how: Any) -> Batches:
        """A split as batches on the device."""
        assert self.samples is not None
        cfg = self.config.data
        return Batches(
            split,
            self.samples.preprocess,
            **{"batch_size": cfg.batch_size, "device": self.device, "workers": workers(cfg), **how},
        )

    def identity(self) -> dict[str, Any]:
        """What a written network says of itself, so that it can be rebuilt: arch, args, data."""
        data: dict[str, Any] = {}
        if self.samples is not None:
            cfg = self.config.data
            said = self.checkpoint.metadata.data if self.checkpoint and self.checkpoint.metadata else {}
            data = {
                "source": absolute(self.samples.source),
                "normalize": self.samples.preprocess.to_json() or "none",
                "augment": self.samples.augment,
            }
            root = cfg.root or said.get("root")
            if root is not None:
                data["root"] = str(Path(root).resolve())
            size = cfg.size or said.get("size")
            if size is not None:
                data["size"] = size
        return {"arch": absolute(self.arch) if self.arch else None, "args": self.args, "data": data}

    def plan(self) -> list[str]:
        """What a run would do, a line each."""
        cfg = self.config
        lines = [
            f"network    {self.arch or type(self.network.module).__name__}, {self.network.prunable:,} prunable weights "
            f"in {len(self.network.layers)} layers",
            f"remove     {cfg.prune.sparsity:.2%} = {removed_at(cfg.prune.sparsity, self.network.prunable):,} weights "
            f"by {self.method}",
            f"device     {self.device}",
            f"fine-tune  {self.epochs_reason.removeprefix('fine-tuning: ')}",
        ]
        if self.samples is not None:
            lines.insert(
                1,
                f"data       {self.samples.source}: {len(self.samples.train):,} training, {len(self.samples.test):,} "
                f"test samples; {min(cfg.calibration.samples, len(self.samples.train)):,} to calibrate",
            )
        lines += [f"skipped    {s.name}: {s.why}" for s in self.network.skipped]
        return lines + [f"chosen     {choice}" for choice in self.choices]


def open_job(config: Config, *, trust: Trust, progress: Progress) -> Job:
    """Read the checkpoint, build its network, find the samples and check that they fit together.

    ``trust`` is the code that may be imported though only a file names it.
    """
    if config.model.checkpoint is None:
        raise UsageError("no checkpoint given", "prunetaylor prune MODEL")
    trust.require(settings_of(config.model_dump()), "the configuration")
    device, reason = pick_device(config.device)
    progress.phase("open")
    checkpoint = read(config.model.checkpoint)
    found = resolve(config.model.arch, config.model.args, checkpoint, trust=trust)
    said = checkpoint.metadata.data if checkpoint.metadata else None
    samples = load_samples(config.data, recorded=said, trust=trust, seed=config.seed)
    config = with_loss(config, checkpoint)
    choices = [f"network: {found.reason}", f"device: {device} ({reason})", *checkpoint.notes]
    wide = next(found.module.parameters()).dtype
    stored = {t.dtype for t in checkpoint.state.values() if t.is_floating_point()}
    if others := stored - {t.dtype for t in found.module.state_dict().values()}:
        choices.append(f"weights: {' and '.join(map(str, sorted(others, key=str)))} in the file, {wide} from here on")
    return make_job(
        config, found.module, samples, device, checkpoint=checkpoint, arch=found.spec, args=found.args, choices=choices
    )


def with_loss(config: Config, *checkpoints: Checkpoint) -> Config:
    """The configuration with the loss that one of the files says it was trained with, where none was asked for."""
    recorded = [one.metadata.extra.get("loss") for one in checkpoints if one.metadata is not None]
    known = [one for one in recorded if one in ("cross-entropy", "bce", "mse")]
    return config.model_copy(update={"loss": known[0]}) if known and config.loss == "auto" else config


def make_job(
    config: Config,
    module: nn.Module,
    samples: Samples | None,
    device: torch.device,
    *,
    choices: list[str],
    checkpoint: Checkpoint | None = None,
    arch: str | None = None,
    args: dict[str, Any] | None = None,
) -> Job:
    """Put a job together from opened parts, and check them against each other."""
    check_present(module)
    network = Network.from_module(module.to(device).eval(), config.prune.include, config.prune.exclude)
    job = Job(config, network, samples, device, "classification", checkpoint, arch, args or {}, choices)
    if world() > 1:
        job.choices.append(f"processes: {world()}, sharing the samples")
    criterion = load_criterion(job.method)
    if config.prune.schedule != "one-shot" and not job.epochs:
        raise UsageError(
            f"prune.schedule={config.prune.schedule} prunes during fine-tuning, and there are no epochs",
            "give --epochs, or leave prune.schedule at one-shot",
        )
    if samples is None:
        if criterion.needs != "nothing":
            raise UsageError(f"{job.method} needs samples", "name them with --data, or use --method magnitude")
        if job.epochs:
            raise UsageError("fine-tuning needs samples", "name them with --data, or set --epochs 0")
        job.choices += check_pruning(config, criterion, data=False)
        job.choices += check_finetuning(config, job.epochs, job.task, labelled=False)
        job.choices.append(
            f"method: {job.method} (no data: accuracy drop, FLOPs and the error's change cannot be measured)"
        )
        return job
    if not samples.test.labelled:
        raise DataError(
            "the test samples have no labels, so nothing can be measured",
            "give test samples with labels; training samples need none",
        )
    job.choices += samples.choices
    if config.prune.method == "auto":
        much = f"{job.exact_work / 1e12:,.2f} TFLOP"
        why = "automatic: most accurate in our benchmarks"
        if job.method == "obs":
            why = f"automatic: exact_obs is more accurate, and would take {much} on the {device.type}"
        job.choices.append(f"method: {job.method} ({why})")
    job.task = _task(job, samples)
    job.choices += check_pruning(config, criterion, data=True)
    job.choices += check_finetuning(config, job.epochs, job.task, labelled=job.labelled)
    if not job.labelled:
        _do_without_labels(job, criterion.needs)
    return job


def _do_without_labels(job: Job, needs: str) -> None:
    """The dense network answers for the training samples. UsageError where labels are asked for."""
    config, samples = job.config, job.samples
    assert samples is not None
    none, weight = "the training samples have no labels", config.finetune.distill.weight
    if needs == "labels":
        raise UsageError(f"{none}, and {job.method} needs them", "choose another method, or leave --method at auto")
    if config.calibration.labels is True:
        raise UsageError(f"calibration.labels=true, but {none}", "leave it at auto")
    if job.epochs and weight not in ("auto", 1):
        raise UsageError(
            f"finetune.distill.weight={weight:g} trains towards labels too, but {none}",
            "leave it at auto: the dense network is the only teacher then",
        )
    if job.task != "classification":
        # of the kind that a value is
        zeros = torch.zeros(len(samples.train), 1)
        job.samples = replace(samples, train=WithTargets(samples.train, zeros, labelled=False))
    job.choices.append(f"labels: {none}; the dense network's outputs are used instead")


def _task(job: Job, samples: Samples) -> Task:
    """What the outputs are, or the user's loss; the samples are checked against it, the outputs and the metric."""
    x, y = first_batch(job.batches(samples.test.subset([0])))
    with evaluating(job.network.module), torch.no_grad():
        outputs = _first_outputs(job.network.module, x)
    task = _asked_task(job.config.loss, outputs, y, samples)
    correct = loss_of(task).correct(outputs, y)
    if correct is None and job.config.metric == "top1":
        raise UsageError("the targets are not classes, so there is no top-1 accuracy", "set metric=loss")
    if task == "classification":
        job.samples = _checked(samples, lambda targets, name, at: check_targets(targets, outputs.shape[1], name, at))
    elif task == "binary":
        job.samples = _checked(samples, _check_binary)
    else:
        loss_of(task).values(outputs, y)  # says what is wrong with a function of the user's
    return task


def _asked_task(asked: str, outputs: Tensor, y: Tensor, samples: Samples) -> Task:
    """For outputs (1, K) and the targets y of the same sample."""
    ids = not y.is_floating_point() and y.dim() == 1
    if ":" in asked:
        if not samples.train.labelled:
            raise UsageError(
                f"the training samples have no labels, and loss={asked} does not define what the dense network answers",
                "use loss=cross-entropy, bce or mse",
            )
        return CustomLoss.from_function(asked, load_object(asked))
    if asked == "cross-entropy" or (asked == "auto" and ids and outputs.shape[1] > 1):
        if ids:
            return "classification"
    elif y.numel() == outputs.numel():
        if asked != "auto":
            return "binary" if asked == "bce" else "regression"
        if ids or _zeros_and_ones(samples.test):
            raise UsageError(
                "targets of zeros and ones may be binary labels or values",
                "set loss=bce if the outputs are logits, loss=mse if the network was trained with squared errors",
            )
        if y.is_floating_point():
            return "regression"
    raise DataError(
        f"targets of shape {tuple(y.shape[1:])} and type {y.dtype} do not fit outputs of {outputs.shape[1]} values"
        + ("" if asked == "auto" else f" and loss={asked}"),
        "give one class id a sample, or floating-point targets of the outputs' size; or set loss=FILE.py:FUNCTION",
    )


def _zeros_and_ones(split: Split) -> bool:
    """Whether the first targets are nothing else."""
    _, y = split.fetch(range(min(len(split), _LOOKED_AT)))
    return bool(((y == 0) | (y == 1)).all())


def _check_binary(targets: Tensor, name: str, indices: Sequence[int] | None) -> None:
    wrong = ((targets != 0) & (targets != 1)).nonzero()
    if len(wrong):
        at = wrong[0].tolist()
        value, sample = float(targets[tuple(at)]), at[0] if indices is None else indices[at[0]]
        raise DataError(
            f"{name}: {value:g} of sample {sample} is neither 0 nor 1",
            "loss=bce needs targets of 0 or 1",
        )


def _checked(samples: Samples, check: Check) -> Samples:
    """The samples with their targets checked: now where they are known, else when they are read."""

    def one(split: Split, name: str) -> Split:
        targets = split.targets()
        if not split.labelled:
            return split
        if targets is None:
            return Checked(split, check, name)
        check(targets, name, None)
        return split

    validation = samples.validation
    return replace(
        samples,
        train=one(samples.train, "training targets"),
        test=one(samples.test, "test targets"),
        validation=None if validation is None else one(validation, "validation targets"),
    )


def _first_outputs(module: nn.Module, x: Tensor) -> Tensor:
    try:
        return compute_outputs(module, x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        text = first_line(error)
        others = {p.dtype for p in module.parameters() if p.is_floating_point()} - {x.dtype}
        if others:
            raise DataError(
                f"the network's weights are {' and '.join(sorted(map(str, others)))}, and its inputs {x.dtype}: {text}",
                f"convert the weights to {x.dtype} first (model.float())",
            ) from error
        raise DataError(
            f"the network does not take inputs of shape {tuple(x.shape[1:])}: {text}",
            "is this the data that the network was trained on? See --data and data.size",
        ) from error


def absolute(spec: str) -> str:
    """A spec that names a file or folder, wherever it is read again."""
    scheme, _, rest = spec.partition(":")
    if known_network(spec):
        return spec
    if scheme in ("folder", "arrays"):
        return f"{scheme}:{Path(rest).resolve()}"
    if scheme.endswith(".py"):
        return f"{Path(scheme).resolve()}:{rest}"
    return spec
