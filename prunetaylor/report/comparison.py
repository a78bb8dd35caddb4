"""Several runs side by side, from their report.json, as plain rows and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prunetaylor.core.results.metric import describe_metric
from prunetaylor.report.formats import count, drop_amount, number, percent, size
from prunetaylor.report.html.page import flat
from prunetaylor.report.json_report import SCHEMA_VERSION
from prunetaylor.report.measured_drop import measured_drop
from prunetaylor.report.titles import title

Document = Mapping[str, Any]

_DROP = "drop (95 %)"
_HEAD = ["run", "method", "sparsity", "metric", _DROP, "FLOPs, non-zero", "file", "time", "gate"]
_UNEQUAL = {"model.checkpoint", "output"}
"""Settings that say where, not how."""


def compare(names: Sequence[str], documents: Sequence[Document]) -> dict[str, Any]:
    """Return what ``compare --json`` prints: the runs' numbers in the order given, differing settings, and notes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [_run(name, one) for name, one in zip(names, documents, strict=True)],
        "settings": differing(documents),
        "notes": [*notes(documents), *_warned(names, documents)],
    }


def _run(name: str, one: Document) -> dict[str, Any]:
    metric = one["metric"]["name"]
    described, drop = measured_drop(one)
    return {
        "name": name,
        "method": one.get("method") or (one["configuration"].get("prune") or {}).get("method"),
        "metric": metric,
        "dense": one["dense"]["metrics"].get(metric),
        "pruned": one["pruned"]["metrics"].get(metric),
        "drop": None if drop is None else {**asdict(drop), "unit": described.change_unit},
        "drop_pp": one["drop_pp"],
        "sparsity": one["sparsity"]["obtained"],
        "flops_nonzero": one["pruned"]["flops_nonzero"],
        "flops": one["pruned"]["flops"],
        "bytes": one["pruned"]["bytes"],
        "seconds": one["seconds"].get("total"),
        "seed": one["seed"],
        "stages": len(one["stages"]),
        "epochs": len(one["epochs"]),
        "verdict": (one.get("gate") or {}).get("verdict"),
        "hashes": one["hashes"],
    }


def differing(documents: Sequence[Document]) -> dict[str, list[str]]:
    """Return the settings that differ, by dotted key, with each run's value; a dash if a run has none."""
    settings = [dict(flat(one["configuration"])) for one in documents]
    keys = dict.fromkeys(key for one in settings for key in one)
    values = {key: [one.get(key, "-") for one in settings] for key in keys if key not in _UNEQUAL}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _warned(names: Sequence[str], documents: Sequence[Document]) -> list[str]:
    return [
        f"{name}: warning: {alert['text']}"
        for name, one in zip(names, documents, strict=True)
        for alert in one.get("warnings") or []
    ]


def notes(documents: Sequence[Document]) -> list[str]:
    """Return the reasons why these runs may not be comparable."""
    lines = []
    for what, why in (
        ("data", "the runs were measured on different samples"),
        ("checkpoint", "the runs pruned different networks"),
    ):
        if len({one["hashes"].get(what) for one in documents}) > 1:
            lines.append(f"{why} (their {what} hashes differ)")
    if len({one["metric"]["name"] for one in documents}) > 1:
        lines.append("the runs were measured by different metrics")
    return lines


def head(comparison: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns, with the metric and the unit of drops if all runs share them."""
    drop = f"{_DROP}, pp" if _in_points(comparison) else _DROP
    return [{"metric": _metric_title(comparison), _DROP: drop}.get(name, name) for name in _HEAD]


def rows(comparison: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of text for each run, in the order of ``head``."""
    return [
        (
            run["name"],
            run["method"] or "-",
            percent(run["sparsity"]),
            _metric(run["metric"], run["pruned"]),
            _drop(run["drop"], with_unit=not _in_points(comparison)),
            count(run["flops_nonzero"]),
            size(run["bytes"]),
            f"{number(run['seconds'], 3)} s",
            run["verdict"] or "-",
        )
        for run in comparison["runs"]
    ]


def _metric_title(comparison: Mapping[str, Any]) -> str:
    """Return the metric's name if all runs share it."""
    names = {run["metric"] for run in comparison["runs"]}
    return title(names.pop()) if len(names) == 1 else "metric"


def _metric(name: str, value: float | None) -> str:
    return f"{value:.2f} %" if describe_metric(name).is_share and value is not None else number(value)


def _in_points(comparison: Mapping[str, Any]) -> bool:
    """Return whether every drop is in percentage points."""
    return all(run["drop"] is None or run["drop"]["unit"] == "pp" for run in comparison["runs"])


def _drop(drop: Mapping[str, Any] | None, *, with_unit: bool) -> str:
    if drop is None:
        return "-"
    unit = "%" if drop["unit"] == "pp" else ""
    value, low, high = (drop_amount(drop[key], unit).removesuffix(" pp") for key in ("value", "low", "high"))
    return f"{value}{' pp' if with_unit and unit else ''} ({low} to {high})"
