"""Engines, which run the trials of a sweep: a module each, found by its name."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from prunetaylor.core import registry
from prunetaylor.core.config.schema import Section
from prunetaylor.sweep.engine_context import EngineContext, Watch


@runtime_checkable
class Engine(Protocol):
    """An engine starts workers, which take trials from the study until none is waiting."""

    Options: type[Section]
    """What ``engine:`` in a sweep's file may say besides the name."""

    def run(self, crew: EngineContext, watch: Watch) -> None:
        """Start workers, call ``watch`` a few times a second, and return when no worker has anything left to do."""


@runtime_checkable
class ClusterEngine(Engine, Protocol):
    """An engine of a cluster, whose client runs in a process of its own (``_driver.py``)."""

    def drive(self, crew: EngineContext, watch: Watch) -> None:
        """Do in that process what ``run`` does in the leader's."""


def load_engine(name: str) -> Engine:
    """Return the engine of that name; UsageError if there is none."""
    return registry.load(registry.ENGINES, Engine, name)
