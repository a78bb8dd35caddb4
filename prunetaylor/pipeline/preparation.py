"""The preparation of a run: the dense network is probed, the plan is made once, and the memory is checked.

The order: one test sample tells in which chunks the probe fits in memory; the probe collects the facts; the plan
follows from them; the memory of the whole run follows from the plan, and a run that does not fit is refused before its
first stage. A dry run ends here, so that its plan is the run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import Alert
from prunetaylor.data.samples import Split
from prunetaylor.network.network import Network
from prunetaylor.network.state import check_values, copy_module
from prunetaylor.pipeline.checks.sanity import check_quickly
from prunetaylor.pipeline.estimates.memory import MemoryPlan, MemoryPlanner
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.plan import PruningPlan, make_plan
from prunetaylor.pipeline.probe import Probe, probe
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pipeline.sampling.validation_split import training_split
from prunetaylor.taylor.memory import ChunkDivisors, use_chunks


@dataclass(frozen=True)
class RunChunks:
    """The chunks of the probe and those of the rest of the run; a resumed run rounds alike only with the same ones."""

    probe: ChunkDivisors
    run: ChunkDivisors

    def state_dict(self) -> dict[str, dict[str, int]]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RunChunks:
        """Restore the chunks of an interrupted run."""
        return cls(ChunkDivisors(**state["probe"]), ChunkDivisors(**state["run"]))


@dataclass(frozen=True)
class Preparation:
    """Everything that is known and drawn before the first stage.

    Attributes:
        dense: a copy of the network that stays as it is.
        training: the samples for calibration and fine-tuning; None without data.
        validation: the samples that choose between epochs; None where nothing is trained.
        sampler: holds the calibration samples; None without data.
        generator: gives all random numbers of the stages.
        checked: the warnings of a check on some of the test samples.
    """

    job: Job
    dense: Network
    training: Split | None
    validation: Split | None
    sampler: Sampler | None
    generator: torch.Generator
    probe: Probe
    checked: tuple[Alert, ...]
    plan: PruningPlan
    chunks: RunChunks
    memory: MemoryPlan

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the probe's notes and the plan's choices, as lines for the log and the report."""
        return (*self.probe.notes, *self.plan.lines)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Return the warnings so far: of opening the job, of its samples, and of the draws, which may go on."""
        drawn = () if self.sampler is None else self.sampler.alerts
        return (*self.job.warnings, *self.checked, *self.probe.alerts, *drawn)


def copy_network(job: Job) -> Network:
    """Return a copy of the job's network, which stays as it is."""
    return Network.from_module(copy_module(job.network.module), job.config.prune.include, job.config.prune.exclude)


def prepare(
    job: Job,
    dense: Network,
    progress: Progress,
    *,
    measured: bool = False,
    one_step: bool = False,
    chunks: RunChunks | None = None,
) -> Preparation:
    """Probe ``dense``, make the plan, and check that the run fits in memory.

    Args:
        measured: the dense network is measured on all test samples; otherwise some of them are checked here.
        one_step: single steps from the dense weights are tried and taken back: nothing is refined or trained.
        chunks: those of the interrupted run that is resumed.

    Raises:
        UsageError: the run does not fit in memory, or its settings contradict each other.
        NumericsError: a weight or an output is not finite.
        DataError: the samples are too few, or do not fit the network.
    """
    check_values(dense.module)
    memory = MemoryPlanner(job, "score" if one_step else "prune")
    training, validation = training_split(job, 0 if one_step else job.epochs)
    generator = torch.Generator().manual_seed(job.config.seed)
    sampler = None if training is None else Sampler(job, dense, training, generator, progress)
    probe_chunks = memory.plan_probe() if chunks is None else chunks.probe
    with use_chunks(probe_chunks):
        checked = () if measured else check_quickly(job, progress)
        probed = probe(job, dense, sampler, progress)
    plan = make_plan(job.config, probed.facts, job.choices, one_step=one_step)
    planned = memory.plan_run(plan, probed.facts)
    if chunks is not None:
        planned = replace(planned, divisors=chunks.run)
    with use_chunks(planned.divisors):
        if sampler is not None and planned.divisors.batch != probe_chunks.batch:
            sampler.load_state_dict(sampler.state_dict())  # the same samples in other batches
        return Preparation(
            job,
            dense,
            training,
            validation,
            sampler,
            generator,
            probed,
            checked,
            plan,
            RunChunks(probe_chunks, planned.divisors),
            planned,
        )
