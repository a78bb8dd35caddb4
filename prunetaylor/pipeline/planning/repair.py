"""The choice of the repair: how each stage adjusts the kept weights."""

from __future__ import annotations

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.choice import Choice
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pruning.interfaces import Criterion, Repair, Solver, load_criterion, load_repair

ONE_STEP_REPAIR = "obs"
"""The repair of ``score`` in place of one that takes passes over the samples, which no single step is worth."""


def usual_repair(config: Config, method: str, criterion: Criterion) -> str:
    """Return the requested repair, or else the criterion's default. UsageError if it is impossible."""
    requested = asked(config.prune.repair)
    if requested is None:
        return criterion.default_repair
    repair = load_repair(requested)
    if repair is not None and not repair.follows_solvers and isinstance(criterion, Solver):
        raise UsageError(f"{method} moves the kept weights itself", "choose another prune.repair, or leave it at auto")
    return requested


def removal_repair(name: str) -> Repair | None:
    """Return the repair of that name if it moves the kept weights after each removal."""
    repair = load_repair(name)
    return repair if repair is not None and repair.at == "removal" else None


def one_step_repair(name: str) -> Repair | None:
    """Return the repair of single steps that are tried from the dense weights, where ``name`` is that of a run."""
    repair = removal_repair(name)
    return repair if repair is None or repair.needs_moments else load_repair(ONE_STEP_REPAIR)


def fits_samples(config: Config, method: str) -> bool:
    """Return whether anything is fitted to the calibration samples."""
    criterion = load_criterion(method)
    return criterion.needs != "nothing" or removal_repair(usual_repair(config, method, criterion)) is not None


def choose_repair(
    config: Config, facts: Facts, method: str, criterion: Criterion, *, refined: bool, nothing_to_prune: bool
) -> Choice[str]:
    """Return the repair after each stage; ``refined`` stages are refined instead."""
    key, usual, requested = "prune.repair", usual_repair(config, method, criterion), asked(config.prune.repair)
    if nothing_to_prune and requested != "none":
        return Choice(key, _possible(facts, usual), "nothing is removed", "repair: skipped (nothing is removed)")
    if refined and requested is None and asked(config.prune.refine) is None:
        # Towards labels: the dense layers' outputs are those of a network that still has to move.
        return Choice(key, "none", "each stage is refined instead", "repair: skipped; each stage is refined instead")
    if usual != _possible(facts, usual):
        reason = f"{usual} was chosen, and the network has no batch norm with running statistics"
        return Choice(key, "none", reason, f"repair: none ({reason})")
    reason = AS_ASKED if requested is not None else f"default for {method}"
    shown = usual.replace("-", " ")
    return Choice(key, usual, reason, f"repair: {shown} ({reason})" if facts.has_data else "")


def _possible(facts: Facts, name: str) -> str:
    """Return the repair, or "none" for one of batch norms in a network without any."""
    repair = load_repair(name)
    return "none" if repair is not None and repair.needs_batch_norms and not facts.batch_norms else name
