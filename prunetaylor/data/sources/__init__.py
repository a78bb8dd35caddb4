"""Data sources: a module each, found by its name, with a function ``read``. Other packages add theirs by entry points
of the group ``prunetaylor.sources``, which name such a module or a class that has the method ``read``."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from prunetaylor.core import registry
from prunetaylor.core.config.schema import DataSection
from prunetaylor.data.samples import RawSource


@runtime_checkable
class Source(Protocol):
    """A data source reads the samples that ``data.source`` names."""

    def read(self, argument: str, cfg: DataSection, seed: int) -> RawSource:
        """Return the samples of ``NAME:argument``; DataError if they cannot be read."""


def load_source(name: str) -> Source:
    """Return the data source of that name; UsageError if there is none."""
    return registry.load(registry.SOURCES, Source, name)
