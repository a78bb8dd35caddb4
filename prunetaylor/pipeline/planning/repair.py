"""The choice of the repair: how each stage adjusts the kept weights."""

from __future__ import annotations

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.choice import Choice
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pruning.interfaces import Criterion, Solver

SOLVING = ("least-squares", "obs")
"""Repairs that solve fitted Gram matrices for the kept weights."""


def usual_repair(config: Config, method: str, criterion: Criterion) -> str:
    """Return the requested repair, or else the criterion's default. UsageError if it is impossible."""
    requested = asked(config.prune.repair)
    if requested is None:
        return str(criterion.default_repair)
    if requested == "obs" and isinstance(criterion, Solver):
        raise UsageError(f"{method} moves the kept weights itself", "choose another prune.repair, or leave it at auto")
    return requested


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
        reason = "batch-norm was chosen, and the network has no batch norm with running statistics"
        return Choice(key, "none", reason, f"repair: none ({reason})")
    reason = AS_ASKED if requested is not None else f"default for {method}"
    shown = usual.replace("least-squares", "least squares")
    return Choice(key, usual, reason, f"repair: {shown} ({reason})" if facts.has_data else "")


def _possible(facts: Facts, repair: str) -> str:
    """Return the repair, or "none" for a batch-norm correction without batch norms."""
    return "none" if repair == "batch-norm" and not facts.batch_norms else repair
