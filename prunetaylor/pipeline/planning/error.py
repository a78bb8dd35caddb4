"""The choice of the error to prune by: with labels or without, and with its first-order term or without."""

from __future__ import annotations

from dataclasses import dataclass

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Detail
from prunetaylor.core.results.choice import Choice
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pruning.interfaces import Criterion
from prunetaylor.taylor.convergence import Convergence
from prunetaylor.taylor.objective import Objective


@dataclass(frozen=True)
class ErrorTerms:
    """The terms of the error: ``labels`` uses the loss with labels, ``first_order`` keeps its gradient term."""

    labels: bool
    first_order: bool


def choose_error(config: Config, facts: Facts, method: str, criterion: Criterion) -> ErrorTerms:
    """Return whether labels and the first-order term are used, from the settings and the network's convergence.

    Raises:
        UsageError: the criterion needs labels, and the configuration forbids them.
    """
    first_order = config.prune.first_order != "drop"
    requested = asked(config.calibration.labels)
    needed = criterion.needs == "labels"
    if needed and requested is False:
        raise UsageError(
            f"{method} needs labels: without them the error has no gradient at the dense weights",
            "leave calibration.labels at auto, or choose another prune.method",
        )
    if facts.convergence is None:
        return ErrorTerms(False, first_order)
    labels = needed or (facts.convergence.first_order_matters if requested is None else requested)
    if labels and not needed and asked(config.prune.first_order) is None:
        # Who asks for labels wants the network to learn from them: then any gradient beyond noise is enough.
        seen = requested is True and facts.convergence.gradient_is_significant
        first_order = facts.convergence.first_order_matters or seen
    return ErrorTerms(labels, first_order)


def explain_error(
    config: Config, facts: Facts, method: str, criterion: Criterion, terms: ErrorTerms
) -> list[Choice[object]]:
    """Return the choices of labels and of the first-order term, with their reasons."""
    objective = Objective(facts.task, "task" if terms.labels else "divergence")
    error = objective.describe()
    kept = "keep" if terms.first_order else "drop"
    if not facts.has_data:
        return []
    if facts.convergence is None:
        line = f"labels: none; pruning keeps the dense network's outputs ({error})"
        reason = "without labels it is zero at the dense weights"
        return [
            Choice("calibration.labels", False, "the training samples have no labels", line),
            Choice("prune.first_order", kept, _as_asked(config.prune.first_order) or reason),
        ]
    requested = asked(config.calibration.labels)
    why = _first_order_reason(method, criterion, terms)
    shown = f"first-order term: {'kept' if terms.first_order else 'not kept'}{why and f'; {why}'}"
    measured = facts.convergence.describe()
    reason = _as_asked(config.prune.first_order) or why or measured
    if terms.first_order and criterion.needs == "labels" and asked(config.prune.first_order) is None:
        reason = f"{method} is made of it"
    return [
        Choice(
            "calibration.labels",
            terms.labels,
            _labels_reason(facts.convergence, terms.labels, requested, method, criterion),
            _convergence_line(facts.convergence, terms.labels, requested),
        ),
        Choice("error", error, "labels are used" if terms.labels else "labels are not used",
               Detail(f"error: {error}; {measured}")),
        Choice("prune.first_order", kept, reason, Detail(shown)),
    ]  # fmt: skip


def _as_asked(value: str) -> str:
    return "" if asked(value) is None else AS_ASKED


def _labels_reason(
    convergence: Convergence, labels: bool, requested: bool | None, method: str, criterion: Criterion
) -> str:
    if requested is not None:
        return AS_ASKED
    if criterion.needs == "labels":
        return f"{method} needs them"
    return "the network is not converged" if labels else f"the network is converged: {_state(convergence)[1]}"


def _state(convergence: Convergence) -> tuple[str, str]:
    """Return whether the network is converged, in a word, and its gradient compared with sampling noise."""
    above = convergence.first_order_matters or convergence.gradient_is_significant
    not_quite = convergence.gradient_is_significant and not convergence.first_order_matters
    state = "not quite" if not_quite else "no" if above else "yes"
    noise = "above" if above else "indistinguishable from"
    return state, f"gradient {convergence.gradient_norm:.2g}, {noise} sampling noise"


def _convergence_line(convergence: Convergence, labels: bool, requested: bool | None) -> str:
    """Return a line about the network's convergence, and about the error that pruning therefore uses."""
    state, gradient = _state(convergence)
    if labels:
        return f"converged: {state} ({gradient}) - pruning keeps the loss with labels"
    ignored = "; labels are not needed"
    if requested is False and state != "yes":
        ignored = " (calibration.labels=false)"
    return f"converged: {state} ({gradient}) - pruning keeps the dense network's outputs{ignored}"


def _first_order_reason(method: str, criterion: Criterion, terms: ErrorTerms) -> str:
    if not terms.labels:
        return "without labels it is zero at the dense weights"
    if terms.first_order and not criterion.uses_gradient:
        return f"{method} chooses without it"
    if not terms.first_order and criterion.needs == "labels":
        return f"{method} chooses by it alone"
    return ""
