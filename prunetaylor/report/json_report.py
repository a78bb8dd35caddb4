"""A run as one JSON object: report.json, and what ``--json`` prints. Units are those of ``core/results/outcome.py``."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prunetaylor._version import __version__
from prunetaylor.core.results.judgement import prediction_check
from prunetaylor.core.results.outcome import believed_to

if TYPE_CHECKING:
    from prunetaylor.core.results.inspection import Inspection
    from prunetaylor.core.results.outcome import Alert, NetworkStats, PruneResult
    from prunetaylor.core.results.scores import Scores
    from prunetaylor.core.results.verdict import Verdict

SCHEMA_VERSION = 1


def to_json(
    outcome: PruneResult, files: Mapping[str, str], configuration: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The report of a run. A number that is not finite is null: JSON has no other word for it.

    ``files`` names what was written; ``configuration`` is the resolved one, nested.
    """
    found = {
        "schema_version": SCHEMA_VERSION,
        "verdict": None if outcome.verdict is None else asdict(outcome.verdict),
        "warnings": [asdict(alert) for alert in outcome.warnings],
        "method": outcome.method,
        "metric": {"name": outcome.metric, "goal": outcome.goal},
        "dense": asdict(outcome.dense),
        "pruned": asdict(outcome.pruned),
        "constant": dict(outcome.constant),
        "sparsity": asdict(outcome.sparsity),
        "drop_pp": None if outcome.drop is None else asdict(outcome.drop),
        "loss_rise": None if outcome.loss_rise is None else asdict(outcome.loss_rise),
        "stages": [asdict(stage) for stage in outcome.stages],
        "believed_to": believed_to(outcome.stages),
        "prediction_check": asdict(prediction_check(outcome.stages)) if outcome.stages else None,
        "first_order": None if outcome.first_order is None else asdict(outcome.first_order),
        "layers": [asdict(layer) for layer in outcome.layers],
        "skipped": [asdict(one) for one in outcome.skipped],
        "epochs": [asdict(epoch) for epoch in outcome.epochs],
        "choices": list(outcome.choices),
        "seconds": dict(outcome.seconds),
        "memory": None if outcome.memory is None else asdict(outcome.memory),
        "time": None if outcome.time is None else asdict(outcome.time),
        "flips": None if outcome.flips is None else asdict(outcome.flips),
        "classes": [asdict(one) for one in outcome.classes],
        "histogram": None if outcome.histogram is None else asdict(outcome.histogram),
        "unfinished": None if outcome.unfinished is None else asdict(outcome.unfinished),
        "gate": None,  # the verdict, where limits are set: it comes after the report's numbers are final
        "files": dict(files),
        "seed": outcome.seed,
        "device": outcome.device,
        "versions": versions(),
        "hashes": dict(outcome.hashes),
        "configuration": dict(configuration or {}),
    }
    cleaned: dict[str, Any] = finite(found)
    return cleaned


def side_to_json(
    side: NetworkStats, metric: str, seconds: float, device: str, warnings: Sequence[Alert] = ()
) -> dict[str, Any]:
    """Return what ``eval --json`` prints of one network."""
    told = {"metric": {"name": metric, "goal": goal(metric)}, "warnings": [asdict(alert) for alert in warnings]}
    found = {"schema_version": SCHEMA_VERSION, **told, **asdict(side)}
    cleaned: dict[str, Any] = finite({**found, "seconds": seconds, "device": device, "versions": versions()})
    return cleaned


def scores_to_json(scores: Scores, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What ``score --json`` prints; ``configuration`` is the resolved one, nested."""
    found = {**asdict(scores), "versions": versions(), "configuration": dict(configuration)}
    cleaned: dict[str, Any] = finite({"schema_version": SCHEMA_VERSION, **found})
    return cleaned


def verdict_to_json(verdict: Verdict, configuration: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what ``check --json`` prints (docs/reference/verdict.schema.json).

    ``configuration`` is the resolved one, nested.
    """
    found = asdict(verdict)
    checks = [{**asdict(check), "bound": check.bound} for check in verdict.checks]
    head = {"schema_version": SCHEMA_VERSION, "verdict": verdict.status, "exit_code": verdict.exit_code}
    metric = {"name": found.pop("metric"), "goal": found.pop("goal")}
    whole = {**head, **found, "metric": metric, "checks": checks, "versions": versions()}
    cleaned: dict[str, Any] = finite({**whole, "configuration": dict(configuration or {})})
    return cleaned


def goal(metric: str) -> str:
    """Which way a metric is better."""
    return "min" if metric == "loss" else "max"


def versions() -> dict[str, str | None]:
    """Of everything that the numbers depend on; null for what is not installed."""
    return {
        "prunetaylor": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def finite(value: Any) -> Any:
    """A copy of nested plain values with null for NaN and the infinities, and lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def inspection_to_json(inspection: Inspection) -> dict[str, Any]:
    """What ``inspect --json`` prints of a file."""
    tensors = [{**asdict(tensor), "sparsity": tensor.sparsity} for tensor in inspection.tensors]
    fields = {"said" if key == "metadata" else key: value for key, value in asdict(inspection).items()}
    fields |= {"path": str(inspection.path), "tensors": tensors, "sparsity": inspection.sparsity}
    cleaned: dict[str, Any] = finite({"schema_version": SCHEMA_VERSION, **fields})
    return cleaned
