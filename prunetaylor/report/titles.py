"""What the numbers of a result are called where people read them."""

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
    """The heading of a column: ``nonzero`` is "non-zero"; names that are somebody else's stay."""
    return _NAMES.get(field) or neutral(field, _LONGEST)


def axis_title(field: str) -> str:
    """What stands at an axis, with the unit."""
    return _AXES.get(field, title(field))
