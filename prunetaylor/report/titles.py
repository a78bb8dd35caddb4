"""The names of a result's fields in columns and at axes."""

from __future__ import annotations

from prunetaylor.core.results.metric import describe_metric
from prunetaylor.core.text import neutral

_LONGEST = 60
_NAMES = {
    "sparsity": "sparsity",
    "nonzero": "non-zero",
    "parameters": "parameters",
    "flops": "FLOPs",
    "flops_nonzero": "FLOPs, non-zero",
    "bytes": "file size",
    "seconds": "time",
}
_AXES = {
    "nonzero": "non-zero parameters",
    "flops_nonzero": "FLOPs, non-zero weights only",
    "seconds": "time of the run",
}


def title(field: str) -> str:
    """Return a column's heading: ``nonzero`` is "non-zero"; names that are not ours stay."""
    return _NAMES.get(field) or neutral(describe_metric(field).title, _LONGEST)


def axis_title(field: str) -> str:
    """Return an axis's label, with the unit."""
    unit = describe_metric(field).unit
    return _AXES.get(field, f"{title(field)}, {unit}" if unit else title(field))
