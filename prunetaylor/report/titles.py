"""The names of a result's fields in columns and at axes."""

from __future__ import annotations

from prunetaylor.core.text import neutral

_LONGEST = 60
_NAMES = {
    "top1": "top-1",
    "loss": "loss",
    "sparsity": "sparsity",
    "nonzero": "non-zero",
    "parameters": "parameters",
    "flops": "FLOPs",
    "flops_nonzero": "FLOPs, non-zero",
    "bytes": "file size",
    "seconds": "time",
}
_AXES = {
    "top1": "top-1, %",
    "nonzero": "non-zero parameters",
    "flops_nonzero": "FLOPs, non-zero weights only",
    "seconds": "time of the run",
}


def title(field: str) -> str:
    """Return a column's heading: ``nonzero`` is "non-zero"; names that are not ours stay."""
    return _NAMES.get(field) or neutral(field, _LONGEST)


def axis_title(field: str) -> str:
    """Return an axis's label, with the unit."""
    return _AXES.get(field, title(field))
