"""The contents of a checkpoint file as plain frozen values: its tensors, and the metadata that prunetaylor writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CheckpointMetadata:
    """The description that prunetaylor writes into a checkpoint.

    ``arch`` may name code: ask whether it is trusted before importing it.
    """

    arch: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, dict[str, int]] = field(default_factory=dict)  # by parameter name: {"size", "kept"} counts
    classes: int | None = None
    tied: dict[str, str] = field(default_factory=dict)  # tensor names stored under another name
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint file."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32"
    elements: int
    nonzero: int
    nonfinite: int  # NaN or infinite values
    tied_to: str | None  # the name under which the same values are listed first

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, in [0, 1]; 0 for an empty tensor."""
        return 1 - self.nonzero / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Inspection:
    """A file and its tensors. Totals count tied tensors once, and buffers too: a file does not tell them apart."""

    path: Path
    form: str  # "state_dict", "training dict", "safetensors" or "prunetaylor"
    container: str  # "zip" or "legacy" (torch.save), or "safetensors"
    bytes: int
    sha256: str
    tensors: tuple[TensorInfo, ...]
    elements: int
    nonzero: int
    metadata: CheckpointMetadata | None  # None if the file has none
    prefix_removed: str
    notes: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of zeros over all tensors, in [0, 1]."""
        return 1 - self.nonzero / self.elements if self.elements else 0.0
