"""The columns of a table: those that are inputs, and the one that holds the targets."""

from __future__ import annotations

from collections.abc import Sequence

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError, close_match
from prunetaylor.core.text import neutral
from prunetaylor.data.datasets import TARGET_NAMES

CHOOSE = "choose the inputs with data.columns=[...], and the column of the targets with data.target"


def choose_columns(columns: Sequence[str], cfg: DataSection, source: str) -> tuple[list[str], str | None]:
    """Return the columns of the inputs and that of the targets; None for the latter if there are no labels.

    Raises UsageError: the table lacks a column that is named; DataError: no column remains for the inputs.
    """
    for key, names in (("data.target", [cfg.target] if cfg.target else []), ("data.columns", cfg.columns or [])):
        for name in names:
            if name not in columns:
                known = neutral(", ".join(columns))
                raise UsageError(
                    f"{key}: {source} has no column {name!r}{close_match(name, columns)}", f"it has {known}"
                )
    target = cfg.target or next((name for name in TARGET_NAMES if name in columns), None)
    inputs = [name for name in cfg.columns or columns if name != target]
    if not inputs:
        raise DataError(f"{source} has no column besides the targets", CHOOSE)
    return inputs, target
