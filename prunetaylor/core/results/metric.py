"""A metric as reports need to know it: its title, its unit, and whether larger values are better."""

from __future__ import annotations

from dataclasses import dataclass

from prunetaylor.core import registry


@dataclass(frozen=True)
class MetricDescription:
    """A metric in plain values.

    Attributes:
        name: its name in a configuration and in JSON.
        goal: "max" if larger values are better, else "min".
        unit: "%" for a share, empty for a plain number.
        title: its name in reports.
    """

    name: str
    goal: str = "max"
    unit: str = ""
    title: str = ""

    @property
    def sign(self) -> int:
        """1 if larger values are better, else -1."""
        return 1 if self.goal == "max" else -1

    @property
    def is_share(self) -> bool:
        """Return whether it is stated in percent, and its changes in percentage points."""
        return self.unit == "%"

    @property
    def change_unit(self) -> str:
        """The unit of a change: "pp" for a share, else the metric's own."""
        return "pp" if self.is_share else self.unit


def describe_metric(name: str) -> MetricDescription:
    """Return the description of a metric by name; one that no registry has is a plain number, larger being better."""
    if name not in registry.names(registry.METRICS):
        return MetricDescription(name, title=name)
    if registry.is_own(registry.METRICS, name):
        stated = registry.literals(registry.METRICS, name)
    else:
        metric = registry.load(registry.METRICS, object, name)
        stated = {key: getattr(metric, key) for key in ("goal", "unit", "title") if hasattr(metric, key)}
    known = {key: stated[key] for key in ("goal", "unit", "title") if key in stated}
    return MetricDescription(name, **{"title": name, **known})
