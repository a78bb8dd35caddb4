"""A run as one JSON object: report.json, and what ``--json`` prints. core/results/outcome.py gives the units."""

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
    from prunetaylor.core.results.choice import Choice
    from prunetaylor.core.results.inspection import Inspection
    from prunetaylor.core.results.metric import MetricDescription
    from prunetaylor.core.results.outcome import Alert, Drop, NetworkStats, PruneResult
    from prunetaylor.core.results.scores import Scores
    from prunetaylor.core.results.verdict import Verdict

SCHEMA_VERSION = 1


def to_json(
    outcome: PruneResult, files: Mapping[str, str], configuration: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the report of a run, with null for numbers that are not finite, as JSON has no other word for them.

    ``files`` names the files that were written; ``configuration`` is the resolved one, nested.
    """
    report = {
        "schema_version": SCHEMA_VERSION,
        "verdict": None if outcome.verdict is None else asdict(outcome.verdict),
        "warnings": [asdict(alert) for alert in outcome.warnings],
        "method": outcome.method,
        "metric": _metric(outcome.metric, outcome.goal, outcome.unit),
        "dense": asdict(outcome.dense),
        "pruned": asdict(outcome.pruned),
        "constant": dict(outcome.constant),
        "sparsity": asdict(outcome.sparsity),
        "drop": _drop(outcome.drop, outcome.unit),
        "drop_pp": asdict(outcome.drop) if outcome.drop is not None and outcome.unit == "%" else None,
        "loss_rise": None if outcome.loss_rise is None else asdict(outcome.loss_rise),
        "stages": [asdict(stage) for stage in outcome.stages],
        "believed_to": believed_to(outcome.stages),
        "prediction_check": asdict(prediction_check(outcome.stages)) if outcome.stages else None,
        "first_order": None if outcome.first_order is None else asdict(outcome.first_order),
        "layers": [asdict(layer) for layer in outcome.layers],
        "skipped": [asdict(one) for one in outcome.skipped],
        "epochs": [asdict(epoch) for epoch in outcome.epochs],
        "choices": list(outcome.choices),
        "plan": plan_to_json(outcome.plan),
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
    cleaned: dict[str, Any] = finite(report)
    return cleaned


def plan_to_json(plan: Sequence[Choice[object]]) -> list[dict[str, Any]]:
    """Return every settled setting with its reason."""
    return [{"key": choice.key, "value": choice.value, "reason": choice.reason} for choice in plan]


def side_to_json(
    side: NetworkStats, metric: MetricDescription, seconds: float, device: str, warnings: Sequence[Alert] = ()
) -> dict[str, Any]:
    """Return one network's numbers as ``eval --json`` prints them."""
    described = _metric(metric.name, metric.goal, metric.unit)
    head = {"metric": described, "warnings": [asdict(alert) for alert in warnings]}
    fields = {"schema_version": SCHEMA_VERSION, **head, **asdict(side)}
    cleaned: dict[str, Any] = finite({**fields, "seconds": seconds, "device": device, "versions": versions()})
    return cleaned


def scores_to_json(scores: Scores, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores as ``score --json`` prints them; ``configuration`` is the resolved one, nested."""
    fields = {**asdict(scores), "versions": versions(), "configuration": dict(configuration)}
    cleaned: dict[str, Any] = finite({"schema_version": SCHEMA_VERSION, **fields})
    return cleaned


def verdict_to_json(verdict: Verdict, configuration: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the verdict as ``check --json`` prints it, by docs/verdict.schema.json.

    ``configuration`` is the resolved one, nested.
    """
    fields = asdict(verdict)
    checks = [{**asdict(check), "bound": check.bound} for check in verdict.checks]
    head = {"schema_version": SCHEMA_VERSION, "verdict": verdict.status, "exit_code": verdict.exit_code}
    metric = _metric(*(fields.pop(key) for key in ("metric", "goal", "unit")))
    fields["drop"] = _drop(verdict.drop, verdict.unit)
    whole = {**head, **fields, "metric": metric, "checks": checks, "versions": versions()}
    cleaned: dict[str, Any] = finite({**whole, "configuration": dict(configuration or {})})
    return cleaned


def _metric(name: str, goal: str, unit: str) -> dict[str, str]:
    """Return a metric's name, the direction in which it improves, and "%" for a share, else an empty unit."""
    return {"name": name, "goal": goal, "unit": unit}


def _drop(drop: Drop | None, unit: str) -> dict[str, Any] | None:
    """Return the drop of a metric, with the unit of a change: "pp" for a share, else the metric's own."""
    return None if drop is None else {**asdict(drop), "unit": "pp" if unit == "%" else unit}


def versions() -> dict[str, str | None]:
    """Return the versions of everything that the numbers depend on; null for what is not installed."""
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
    """Return a copy of nested plain values with null for NaN and the infinities, and lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def inspection_to_json(inspection: Inspection) -> dict[str, Any]:
    """Return a file's contents as ``inspect --json`` prints them."""
    tensors = [{**asdict(tensor), "sparsity": tensor.sparsity} for tensor in inspection.tensors]
    fields = {"said" if key == "metadata" else key: value for key, value in asdict(inspection).items()}
    fields |= {"path": str(inspection.path), "tensors": tensors, "sparsity": inspection.sparsity}
    cleaned: dict[str, Any] = finite({"schema_version": SCHEMA_VERSION, **fields})
    return cleaned
