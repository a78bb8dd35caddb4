"""The preparation of a run: the dense network is probed, the plan is made once, and the memory is checked.

The order: one test sample tells in which chunks the probe fits in memory; in these the dense network is measured and
probed; the plan follows from the facts that this gives; the memory of the whole run follows from the plan, and a run
that does not fit is refused before its first stage. A dry run ends here, so that its plan is the run's.
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
from prunetaylor.network.state import check_values
from prunetaylor.pipeline.estimates.memory import MemoryPlan, MemoryPlanner
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.plan import PruningPlan, make_plan
from prunetaylor.pipeline.probe import Probe, probe
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pipeline.sampling.validation_split import training_split
from prunetaylor.taylor.memory import ChunkDivisors, current_chunks, use_chunks


@dataclass(frozen=True)
class RunDivisors:
    """The chunk divisors of the probe and of the rest of the run; a resumed run needs the same ones to round alike."""

    probe: ChunkDivisors
    run: ChunkDivisors

    def state_dict(self) -> dict[str, dict[str, int]]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RunDivisors:
        """Restore the divisors of an interrupted run."""
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
    """

    job: Job
    dense: Network
    training: Split | None
    validation: Split | None
    sampler: Sampler | None
    generator: torch.Generator
    probe: Probe
    plan: PruningPlan
    divisors: RunDivisors
    memory: MemoryPlan

    @property
    def calibration(self) -> Calibration:
        """Return the calibration samples of a run with data."""
        assert self.sampler is not None  # whoever asks has data
        return self.sampler.calibration

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the probe's notes and the plan's choices, as lines for the log and the report."""
        return (*self.probe.notes, *self.plan.lines)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Return the warnings so far: of opening the job, of its samples, and of the draws, which may go on."""
        drawn = () if self.sampler is None else self.sampler.alerts
        return (*self.job.warnings, *self.probe.alerts, *drawn)


def copy_network(job: Job) -> Network:
    """Return a copy of the job's network, which stays as it is. NumericsError: a weight is not finite."""
    check_values(job.network.module)
    return job.network.copy()


def prepare(
    job: Job,
    dense: Network,
    memory: MemoryPlanner,
    progress: Progress,
    *,
    one_step: bool = False,
    resumed: RunDivisors | None = None,
) -> Preparation:
    """Probe ``dense`` in the current chunks, make the plan, and check that the run fits in memory.

    Args:
        one_step: single steps from the dense weights are tried and taken back: nothing is refined or trained.
        resumed: the divisors of the interrupted run that goes on.

    Raises:
        UsageError: the run does not fit in memory, or its settings contradict each other.
        NumericsError: an output is not finite.
        DataError: the samples are too few, or do not fit the network.
    """
    training, validation = training_split(job, 0 if one_step else job.epochs)
    generator = torch.Generator().manual_seed(job.config.seed)
    sampler = None if training is None else Sampler(job, dense, training, generator, progress)
    probed = probe(job, dense, sampler, progress)
    plan = make_plan(job.config, probed.facts, job.choices, one_step=one_step)
    planned = memory.plan_run(plan, probed.facts)
    if resumed is not None:
        planned = replace(planned, divisors=resumed.run)
    divisors = RunDivisors(current_chunks(), planned.divisors)
    with use_chunks(divisors.run):
        if sampler is not None and divisors.run.batch != divisors.probe.batch:
            sampler.load_state_dict(sampler.state_dict())  # the same samples in other batches
    return Preparation(
        job,
        dense,
        training,
        validation,
        sampler,
        generator,
        probed,
        plan,
        divisors,
        planned,
    )
