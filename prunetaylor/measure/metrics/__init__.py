"""The metrics, one file each, whose name is the metric's. ``measure/metric.py`` has their interface."""

from __future__ import annotations

from prunetaylor.core import registry
from prunetaylor.measure.custom_metric import CustomMetric
from prunetaylor.measure.metric import Metric
from prunetaylor.measure.torchmetrics_metric import PREFIX, TorchmetricsMetric
from prunetaylor.runtime.user_code import load_object


def load_metric(name: str) -> Metric:
    """Return the metric of that name, that ``torchmetrics:NAME`` names, or the user's of FILE.py:FUNCTION.

    Raises UsageError: there is none, it is no function, or torchmetrics is not installed.
    """
    if name.startswith(PREFIX):
        return TorchmetricsMetric.by_name(name)
    if ":" in name:
        return CustomMetric.from_function(name, load_object(name))
    return registry.load(registry.METRICS, Metric, name)
