"""The metric of a run and its drop, from report.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunetaylor.core.results.metric import MetricDescription, describe_metric
from prunetaylor.core.results.outcome import Drop


def measured_drop(document: Mapping[str, Any]) -> tuple[MetricDescription, Drop | None]:
    """Return the run's metric and its drop; a report of an earlier version has the drop of a share only."""
    stated = document["metric"]
    described = describe_metric(stated["name"])
    described = replace(described, goal=stated["goal"], unit=stated.get("unit", described.unit))
    drop = document.get("drop", document["drop_pp"] if described.is_share else None)
    return described, None if drop is None else Drop(*(_finite_or_inf(drop[key]) for key in ("value", "low", "high")))


def _finite_or_inf(value: float | None) -> float:
    return math.inf if value is None else value
