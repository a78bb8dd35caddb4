"""What a run takes for the error, and what repairs with regard to it: settled once, by a look at the dense network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn

from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Detail
from prunetaylor.core.results.outcome import FirstOrder
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.stages.refinement import Refinement, alone, settle
from prunetaylor.pruning.interfaces import Criterion, Solver, load_criterion
from prunetaylor.pruning.repair import batch_norm
from prunetaylor.taylor.convergence import Convergence, check_convergence
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.passes import Risk, first_batch


@dataclass(frozen=True)
class Aim:
    """``keep_first``: predictions keep the first-order term; ``said``: what was decided, and why."""

    objective: Objective
    keep_first: bool
    repair: str
    refinement: Refinement = field(default_factory=Refinement)
    first_order: FirstOrder | None = None  # None: nobody looked
    said: tuple[str, ...] = ()

    @property
    def solves(self) -> bool:
        """Each stage's repair moves the kept weights: it solves the fitted Gram matrices for them."""
        return self.repair in ("least-squares", "obs")


def unseen(job: Job, criterion: Criterion) -> Aim:
    """Before the dense network was looked at, or without data. UsageError for a repair that the criterion rules out."""
    return Aim(Objective(job.task, "divergence"), job.config.prune.first_order != "drop", usual_repair(job, criterion))


def look(
    job: Job,
    criterion: Criterion,
    calibration: Calibration,
    dense: nn.Module,
    model: Callable[[Risk], TaylorModel],
    *,
    nothing_to_prune: bool = False,
    refines: bool = True,
) -> Aim:
    """Labels or not, first-order term or not, from what the user forces and the convergence check.

    Args:
        model: the Taylor model of the dense network for an error.
        idle: nothing is to be removed.
        refines: whether what follows refines; a single step that is tried is not.

    Raises:
        UsageError: the criterion needs labels, and they are ruled out.
    """
    config, task = job.config, Objective(job.task, "task")
    example = first_batch(calibration.holdout.batches)[0]
    if not job.labelled:
        usual = unseen(job, criterion)
        refinement = settle(job, criterion.default_repair, far=False, example=example)
        if nothing_to_prune:
            refinement = alone(job, labelled=False)
        error = f"labels: none; pruning keeps the dense network's outputs ({usual.objective.describe()})"
        said = (_repair_said(job, usual.repair, nothing_to_prune), *_said(refinement, refines), error)
        repair = _possible(job, usual.repair)
        return replace(usual, repair=repair, refinement=refinement if refines else Refinement(), said=said)
    found = check_convergence(model(calibration.fit.risk(dense, task)))
    usual, labels = unseen(job, criterion), config.calibration.labels
    needed = criterion.needs == "labels"
    if needed and labels is False:
        raise UsageError(
            f"{job.method} needs labels: without them the error has no gradient at the dense weights",
            "leave calibration.labels at auto, or choose another prune.method",
        )
    labelled = needed or (found.first_order_matters if labels == "auto" else labels)
    keep_first = usual.keep_first
    if labelled and not needed and config.prune.first_order == "auto":
        # Who asks for labels wants what they say: then a gradient that is there is enough.
        keep_first = found.first_order_matters or (labels is True and found.gradient_is_significant)
    refinement, repair = settle(job, criterion.default_repair, labelled and keep_first, example), usual.repair
    if refinement.when == "stages":
        if config.prune.refine == "auto" and config.prune.repair == "auto":
            # Towards labels: the dense layers' outputs are those of a network that still has to move.
            repair = "none"
        if labelled and config.prune.first_order == "auto":
            # Each stage leaves the network elsewhere on its way towards the labels: no stage starts at a minimum.
            keep_first = True
    if nothing_to_prune:
        refinement = alone(job, labelled)
    objective = task if labelled else usual.objective
    return Aim(
        objective,
        keep_first,
        _possible(job, repair),
        refinement if refines else Refinement(),
        FirstOrder(found.first_order_share, found.gradient_norm, found.noise_norm, labelled and keep_first, labelled),
        (
            _repair_said(job, repair, nothing_to_prune),
            *_said(refinement, refines),
            _convergence_said(found, labelled, labels),
            Detail(f"error: {objective.describe()}; {found.describe()}"),
            Detail(_first_order_said(job, criterion, labelled, keep_first)),
        ),
    )


def _convergence_said(found: Convergence, labelled: bool, asked: bool | str) -> str:
    """How far from a minimum the network is, and what pruning therefore keeps to."""
    settled = found.first_order_matters or found.gradient_is_significant
    state = (
        "not quite" if found.gradient_is_significant and not found.first_order_matters else "no" if settled else "yes"
    )
    noise = "above" if settled else "indistinguishable from"
    gradient = f"gradient {found.gradient_norm:.2g}, {noise} sampling noise"
    if labelled:
        return f"converged: {state} ({gradient}) - pruning keeps the loss with labels"
    ignored = " (calibration.labels=false)" if asked is False and settled else "; labels are not needed"
    return f"converged: {state} ({gradient}) - pruning keeps the dense network's outputs{ignored}"


def _first_order_said(job: Job, criterion: Criterion, labelled: bool, kept: bool) -> str:
    text = f"first-order term: {'kept' if kept else 'not kept'}"
    if not labelled:
        return f"{text}; without labels it is zero at the dense weights"
    if kept and not criterion.uses_gradient:
        return f"{text} in what is predicted; {job.method} chooses without it"
    if not kept and criterion.needs == "labels":
        return f"{text} in what is predicted; {job.method} chooses by it alone"
    return text


def _said(refinement: Refinement, refines: bool) -> list[str]:
    if not refines:
        return []
    if refinement.when == "none":
        return [f"refinement: off ({refinement.why})"]
    towards = "matching the dense layers' outputs" if refinement.by == "features" else "by Gauss-Newton"
    when = "after the last stage" if refinement.when == "last" else "after each stage"
    return [f"refinement: {refinement.steps} steps {when}, {towards} ({refinement.why})"]


def _possible(job: Job, repair: str) -> str:
    """None in place of a correction of batch norms where there are none."""
    return "none" if repair == "batch-norm" and not batch_norm.norms(job.network.module) else repair


def _repair_said(job: Job, repair: str, nothing_to_prune: bool) -> str:
    """What each stage is repaired by, and what decided."""
    shown = repair.replace("least-squares", "least squares")
    if nothing_to_prune and job.config.prune.repair != "none":
        return "repair: skipped (nothing is removed)"
    if repair != _possible(job, repair):
        return "repair: none (batch-norm was chosen, and the network has no batch norm with running statistics)"
    if job.config.prune.repair != "auto":
        return f"repair: {shown} (as asked)"
    if repair == load_criterion(job.method).default_repair:
        return f"repair: {shown} (default for {job.method})"
    return "repair: skipped; each stage is refined instead"


def usual_repair(job: Job, criterion: Criterion) -> str:
    """What is asked for, or the criterion's own. UsageError where it cannot be done."""
    asked = job.config.prune.repair
    if asked == "auto":
        return str(criterion.default_repair)
    if asked == "obs" and isinstance(criterion, Solver):
        raise UsageError(
            f"{job.method} moves the kept weights itself", "choose another prune.repair, or leave it at auto"
        )
    return asked
