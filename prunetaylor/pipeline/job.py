"""A job: the configuration with everything it names opened and checked, before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from prunetaylor.core.config.asked import asked
from prunetaylor.core.config.code import Trust, settings_of
from prunetaylor.core.config.paths import rooted
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Progress
from prunetaylor.core.results.choice import Choice
from prunetaylor.core.results.outcome import Alert, removed_at
from prunetaylor.data.load import load_samples, settings_to_record
from prunetaylor.data.samples import Batches, Samples, Split, WithTargets
from prunetaylor.measure.metric import Metric
from prunetaylor.measure.metrics import load_metric
from prunetaylor.network.checkpoint.architecture.build import build_network
from prunetaylor.network.checkpoint.huggingface.pretrained import tokenizer_folder
from prunetaylor.network.checkpoint.read import Checkpoint, read
from prunetaylor.network.network import Network
from prunetaylor.network.precision import NumberTypes, types_in
from prunetaylor.network.state import check_present
from prunetaylor.pipeline.checks.channels_last import find_obstacle, would_gain
from prunetaylor.pipeline.checks.inputs import fit_inputs
from prunetaylor.pipeline.checks.settings import check_needs, check_settings
from prunetaylor.pipeline.checks.task import find_task
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.method import choose_device, choose_epochs, choose_method, choose_workers
from prunetaylor.pipeline.planning.task import with_recorded_loss
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.pruning.repairs import batch_norm
from prunetaylor.runtime.device import half_precision
from prunetaylor.runtime.processes.group import own_cores, world
from prunetaylor.taylor.objective import Task
from prunetaylor.taylor.passes import first_batch, forward_one

OBSERVED = 8
"""Test samples that show how the network uses its weights."""


@dataclass(frozen=True)
class Job:
    """The subject of a run: the network, which is pruned in place, its samples, and the facts about both.

    ``types`` are those that the user's network has its numbers in, where the run computes in others.
    ``choices`` were made to open it; ``notes`` and ``warnings`` are remarks and doubts from opening it.
    """

    config: Config
    network: Network
    samples: Samples | None
    device: torch.device
    facts: Facts
    checkpoint: Checkpoint | None = None
    arch: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    choices: tuple[Choice[object], ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[Alert, ...] = ()
    types: NumberTypes = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """Return the task of the network."""
        return self.facts.task

    @property
    def metric(self) -> Metric:
        """Return the metric whose drop is measured."""
        return load_metric(self.config.metric)

    @property
    def labelled(self) -> bool:
        """Return whether the training samples have labels."""
        return self.facts.labelled

    @property
    def method(self) -> str:
        """Return the name of the criterion."""
        return choose_method(self.config, self.facts).value

    @property
    def epochs(self) -> int:
        """Return the number of epochs of fine-tuning."""
        return choose_epochs(self.config, self.facts).value

    def with_metric(self, metric: str) -> Job:
        """Return the job measured by another metric."""
        return replace(self, config=self.config.model_copy(update={"metric": metric}))

    def with_samples(self, samples: Samples, *notes: str) -> Job:
        """Return the job on other samples of the same kind."""
        facts = replace(self.facts, training_samples=len(samples.train), has_validation=samples.validation is not None)
        return replace(self, samples=samples, facts=facts, notes=(*self.notes, *notes))

    def batches(self, split: Split, **how: Any) -> Batches:
        """Return a split as batches on the device."""
        assert self.samples is not None
        return _batches(self.config, self.facts, self.samples, self.device, split, **how)

    def describe_network(self) -> dict[str, Any]:
        """Return the metadata from which a written network can be rebuilt: arch, args, data."""
        data: dict[str, Any] = {}
        if self.samples is not None:
            cfg = self.config.data
            recorded = self.checkpoint.metadata.data if self.checkpoint and self.checkpoint.metadata else {}
            data = {
                "source": rooted("data.source", self.samples.source),
                "normalize": self.samples.preprocess.to_json() or "none",
                "augment": self.samples.augment,
            }
            data |= settings_to_record(cfg, recorded)
        return {"arch": rooted("model.arch", self.arch), "args": self.args, "data": data}

    def describe(self) -> list[str]:
        """The network, its data and what is to be removed, a line each."""
        sparsity = self.config.prune.sparsity
        lines = [
            f"network    {self.arch or type(self.network.module).__name__}, {self.network.prunable:,} prunable weights "
            f"in {len(self.network.layers)} layers",
            f"remove     {sparsity:.2%} = {removed_at(sparsity, self.network.prunable):,} weights",
        ]
        if self.samples is not None:
            train, test = len(self.samples.train), len(self.samples.test)
            lines.insert(1, f"data       {self.samples.source}: {train:,} training, {test:,} test samples")
        skipped = [f"skipped    {one.name}: {one.why}" for one in self.network.skipped]
        return [*lines, *skipped, *(f"note       {note}" for note in self.notes)]


def open_job(config: Config, *, trust: Trust, progress: Progress) -> Job:
    """Read the checkpoint, build its network, find the samples and check that they fit together.

    ``trust`` is the code that may be imported though only a file names it.
    """
    if config.model.checkpoint is None:
        raise UsageError("no checkpoint given", "prunetaylor prune MODEL")
    trust.require(settings_of(config.model_dump()), "the configuration")
    device, chosen = choose_device(config)
    progress.phase("open")
    checkpoint = read(config.model.checkpoint)
    built = build_network(config.model.arch, config.model.args, checkpoint, trust=trust)
    recorded = checkpoint.metadata.data if checkpoint.metadata else None
    tokenizer = tokenizer_folder(built.spec)
    samples = load_samples(config.data, recorded=recorded, tokenizer=tokenizer, trust=trust, seed=config.seed)
    config = with_recorded_loss(config, [checkpoint])
    notes = [f"network: {built.reason}", *checkpoint.notes]
    types = types_in(checkpoint.state, built.module)
    if types:
        names = " and ".join(sorted(str(one).removeprefix("torch.") for one in set(types.values())))
        notes.append(f"weights: {names} in the file and in the output, computed in float32")
    return make_job(
        config,
        built.module,
        samples,
        device,
        checkpoint=checkpoint,
        arch=built.spec,
        args=built.args,
        choices=[chosen],
        notes=notes,
        types=types,
    )


def make_job(
    config: Config,
    module: nn.Module,
    samples: Samples | None,
    device: torch.device,
    *,
    choices: Sequence[Choice[object]] = (),
    notes: Sequence[str] = (),
    checkpoint: Checkpoint | None = None,
    arch: str | None = None,
    args: dict[str, Any] | None = None,
    types: NumberTypes | None = None,
) -> Job:
    """Put a job together from opened parts, and check them against each other.

    ``types``: those that the network's numbers had in the file.

    Raises:
        UsageError, DataError: settings that contradict each other, or do not fit the network or the samples.
    """
    check_present(module)
    module = module.to(device).eval()
    facts, notes, types = _facts(module, samples, device), list(notes), dict(types or {})
    run: Callable[[nn.Module], object] | None = None
    if samples is None:
        config = config.model_copy(update={"metric": asked(config.metric) or "top1"})
    else:
        fitted = fit_inputs(config.data, module, samples, device)
        types |= fitted.types
        task = find_task(config, module, fitted.samples, partial(_batches, config, facts, fitted.samples, device))
        choices = [*choices, *samples.choices, *fitted.choices, *task.choices]
        samples, config = task.samples, config.model_copy(update={"metric": task.metric})
        facts = replace(facts, task=task.task, task_reason=task.reason)
        some = samples.test.subset(range(min(OBSERVED, len(samples.test))))
        observed, _ = first_batch(_batches(config, facts, samples, device, some, workers=0))
        run = partial(forward_one, x=observed)
        if would_gain(module, device):
            facts = replace(facts, plain_layout=find_obstacle(module, observed.rows(slice(2))))
        if not facts.labelled and task.task != "classification":
            # of the kind that a value is
            zeros = torch.zeros(len(samples.train), 1)
            samples = replace(samples, train=WithTargets(samples.train, zeros, labelled=False))
    network = Network.from_module(module, config.prune.include, config.prune.exclude, run)
    work = load_criterion("exact_obs").work(network.layers)
    facts = replace(facts, prunable=network.prunable, elimination_work=work)
    check_needs(config, facts)
    notes += check_settings(config, facts)
    if world() > 1:
        notes.append(f"processes: {world()}, sharing the samples")
    told = tuple(choices), tuple(notes), tuple(_warn_of_the_rest(config, network))
    return Job(config, network, samples, device, facts, checkpoint, arch, args or {}, *told, types=types)


def _warn_of_the_rest(config: Config, network: Network) -> Iterator[Alert]:
    """Yield a warning if most parameters cannot be pruned, unless the user leaves out layers."""
    share = network.prunable_share
    if share < 0.5 and list(config.prune.include) == ["*"] and not config.prune.exclude:
        rest = ", ".join(f"{name} {part:.0%}" for name, part in list(network.rest_by_class().items())[:4])
        yield Alert(
            "mostly_not_prunable",
            f"only {share:.0%} of the parameters can be pruned, so the whole network becomes little sparser; the rest: "
            f"{rest}",
        )


def _facts(module: nn.Module, samples: Samples | None, device: torch.device) -> Facts:
    return Facts(
        device=device.type,
        half_precision=half_precision(device),
        batch_norms=bool(batch_norm.norms(module)),
        cores=own_cores(),
        decodes=samples is not None and any(split.lazy for split in samples.splits),
        training_samples=None if samples is None else len(samples.train),
        labelled=samples is None or samples.train.labelled,
        test_labelled=samples is None or samples.test.labelled,
        has_validation=samples is not None and samples.validation is not None,
    )


def _batches(config: Config, facts: Facts, samples: Samples, device: torch.device, split: Split, **how: Any) -> Batches:
    usual = {"batch_size": config.data.batch_size, "device": device, "workers": choose_workers(config, facts).value}
    return Batches(split, samples.preprocess, **{**usual, **how})
