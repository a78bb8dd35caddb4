"""The plan of a run: every choice, settled once, with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config
from prunetaylor.core.progress import Detail
from prunetaylor.core.results.choice import Choice
from prunetaylor.core.results.outcome import FirstOrder, removed_at
from prunetaylor.pipeline.planning.error import ErrorTerms, choose_error, explain_error
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.method import choose_epochs, choose_method, choose_workers
from prunetaylor.pipeline.planning.refinement import Refinement, choose_refinement, refine_without_pruning
from prunetaylor.pipeline.planning.repair import choose_repair, removal_repair
from prunetaylor.pipeline.planning.schedule import Schedule, choose_gradual, choose_schedule
from prunetaylor.pipeline.planning.task import explain_task
from prunetaylor.pipeline.planning.training import choose_training, choose_validation
from prunetaylor.pruning.interfaces import Repair, load_criterion, load_repair
from prunetaylor.pruning.training.settings import TrainingSettings
from prunetaylor.taylor.objective import Objective


@dataclass(frozen=True)
class PruningPlan:
    """All that a run goes by. ``choices`` lists every settled value with its reason."""

    method: str
    objective: Objective
    keep_first_order: bool  # in predictions
    repair: str  # by name, or "none"
    refinement: Refinement
    schedule: Schedule  # of the stages before any training
    epochs: int
    gradual: dict[int, float]  # sparsity to prune to, by the number of training steps done before
    training: TrainingSettings
    validation: int  # training samples held out to choose between epochs
    nothing_to_prune: bool = False  # as it was given, the network has the sparsity asked for, or more
    first_order: FirstOrder | None = None  # how far from convergence the network is; None: without labels
    choices: tuple[Choice[object], ...] = field(default=())

    @property
    def removal_repair(self) -> Repair | None:
        """Return the repair that moves the kept weights after each removal, if there is one."""
        return removal_repair(self.repair)

    @property
    def acceptance_repair(self) -> Repair | None:
        """Return the repair that follows the acceptance of each stage, if there is one."""
        repair = load_repair(self.repair)
        return repair if repair is not None and repair.at == "acceptance" else None

    @property
    def lines(self) -> list[str]:
        """Return the choices as lines for the log and the report."""
        return [choice.line for choice in self.choices if choice.line]


def make_plan(
    config: Config, facts: Facts, opened: Sequence[Choice[object]] = (), *, one_step: bool = False
) -> PruningPlan:
    """Settle everything that the configuration leaves open, and give every choice its reason.

    Args:
        opened: choices that were made to open the network and its samples.
        one_step: single steps from the dense weights are tried and taken back: nothing is refined or trained.

    Raises:
        UsageError, DataError: settings that do not fit each other or the data.
    """
    method, epochs = choose_method(config, facts), choose_epochs(config, facts)
    criterion = load_criterion(method.value)
    count = 0 if one_step else epochs.value
    pruned_already = None if one_step else _explain_nothing_to_prune(config, facts)
    nothing = pruned_already is not None
    validation = choose_validation(config, facts, count)
    held_out = validation.value if validation else 0
    terms, refinement, repair = _choose_adjustment(config, facts, method.value, count, nothing_to_prune=nothing)
    if one_step:
        refinement = Refinement()
    training, trained = choose_training(config, facts, count)
    gradual, stages = choose_gradual(config, count, (facts.training_samples or 0) - held_out)
    schedule, staged = choose_schedule(config, facts, method.value, criterion, refinement)
    whole_run = [] if one_step else [epochs, *([validation] if validation else []), *(stages or [staged])]
    choices = [
        *opened,
        *(
            [choose_workers(config, facts), explain_task(config, facts.task, facts.task_reason)]
            if facts.has_data
            else []
        ),
        method,
        *([pruned_already] if pruned_already else []),
        *whole_run,
        *_choose_samples(config, facts, held_out),
        repair,
        *(refinement.choices(config.prune) if facts.has_data and not one_step else []),
        *explain_error(config, facts, method.value, criterion, terms),
        *(trained if count else []),
        *_memory_format(facts),
    ]
    return PruningPlan(
        method=method.value,
        objective=Objective(facts.task, "task" if terms.labels else "divergence"),
        keep_first_order=terms.first_order,
        repair=repair.value,
        refinement=refinement,
        schedule=schedule,
        epochs=count,
        gradual=gradual,
        training=training,
        validation=held_out,
        nothing_to_prune=nothing,
        first_order=_first_order(facts, terms),
        choices=tuple(choices),
    )


def _choose_adjustment(
    config: Config, facts: Facts, method: str, epochs: int, *, nothing_to_prune: bool
) -> tuple[ErrorTerms, Refinement, Choice[str]]:
    """Return the error, the refinement and the repair, which depend on one another."""
    criterion, refinement = load_criterion(method), Refinement()
    terms = choose_error(config, facts, method, criterion)
    if facts.has_data:
        far = terms.labels and terms.first_order
        refinement = choose_refinement(config, facts, method, criterion, epochs=epochs, far=far)
    refined = refinement.when == "stages"
    if refined and terms.labels and asked(config.prune.first_order) is None:
        # Each stage leaves the network elsewhere on its way towards the labels: no stage starts at a minimum.
        terms = replace(terms, first_order=True)
    repair = choose_repair(config, facts, method, criterion, refined=refined, nothing_to_prune=nothing_to_prune)
    if nothing_to_prune and facts.has_data:
        refinement = refine_without_pruning(config, facts, labels=terms.labels)
    return terms, refinement, repair


def _explain_nothing_to_prune(config: Config, facts: Facts) -> Choice[float] | None:
    """Return the sparsity asked for, with the reason why nothing is removed; None where something is."""
    target = config.prune.sparsity
    if facts.zeros < removed_at(target, facts.prunable):
        return None
    zero = facts.zeros / facts.prunable
    line = f"nothing to remove: {target:.2%} was asked for, {zero:.2%} is zero already"
    return Choice("prune.sparsity", target, f"{zero:.2%} is zero already, so that nothing is removed", line)


def _choose_samples(config: Config, facts: Facts, held_out: int) -> list[Choice[object]]:
    if facts.training_samples is None:
        return []
    available, requested = facts.training_samples - held_out, config.calibration.samples
    reason = AS_ASKED if requested != type(config.calibration)().samples else "the default"
    return [
        Choice(
            "calibration.samples", min(available, requested), reason if requested <= available else "there are no more"
        )
    ]


def _memory_format(facts: Facts) -> list[Choice[object]]:
    key, reason = "memory_format", facts.plain_layout
    if reason is None:
        return [Choice(key, "channels_last", "convolutions are fastest this way")]
    if not reason:
        return [Choice(key, "contiguous", "there are no convolutions that would gain by channels last")]
    line = Detail(f"memory layout: plain (with channels last, which is faster, {reason})")
    return [Choice(key, "contiguous", f"with channels last {reason}", line)]


def _first_order(facts: Facts, terms: ErrorTerms) -> FirstOrder | None:
    if (convergence := facts.convergence) is None:
        return None
    kept = terms.labels and terms.first_order
    return FirstOrder(
        convergence.first_order_share, convergence.gradient_norm, convergence.noise_norm, kept, terms.labels
    )
