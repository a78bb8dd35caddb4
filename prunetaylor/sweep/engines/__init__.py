"""The engines that run the trials of a sweep: one module each, found by its name."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from prunetaylor.core import registry
from prunetaylor.core.config.schema import Section
from prunetaylor.sweep.engine_context import EngineContext, EngineMonitor


@runtime_checkable
class Engine(Protocol):
    """An engine starts workers, which claim trials from the study until none waits."""

    Options: type[Section]
    """The keys of ``engine:`` in a sweep's file, besides the name."""

    def run(self, context: EngineContext, monitor: EngineMonitor) -> None:
        """Start workers, call ``monitor`` a few times a second, and return when no trial is left to run."""


@runtime_checkable
class ClusterEngine(Engine, Protocol):
    """An engine of a cluster, whose client runs in a process of its own (``_driver.py``)."""

    def drive(self, context: EngineContext, monitor: EngineMonitor) -> None:
        """Run in the driver's process what ``run`` runs in the leader's."""


def load_engine(name: str) -> Engine:
    """Return the engine of that name; UsageError if there is none."""
    return registry.load(registry.ENGINES, Engine, name)
