"""What is in a checkpoint file, found without its network and without running any of its code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunetaylor.network.checkpoint.metadata import CheckpointMetadata
from prunetaylor.network.checkpoint.read import nonfinite, open_file

_UNSIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@dataclass(frozen=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32"
    elements: int
    nonzero: int
    nonfinite: int  # NaN or infinite values
    tied_to: str | None  # the name under which the same values are listed first

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1]; 0 for an empty tensor."""
        return 1 - self.nonzero / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Inspection:
    """A file and its tensors. Totals count tied tensors once, and buffers too: a file does not tell them apart."""

    path: Path
    form: str  # as Checkpoint.form
    container: str
    bytes: int
    sha256: str
    tensors: tuple[TensorInfo, ...]
    elements: int
    nonzero: int
    said: CheckpointMetadata | None
    prefix_removed: str
    notes: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all tensors, in [0, 1]."""
        return 1 - self.nonzero / self.elements if self.elements else 0.0


def inspect_file(path: str | Path) -> Inspection:
    """Look into a checkpoint or a run's folder.

    Raises UsageError (no such file) and CheckpointRefused, whose text says what the file is: a pickled module, a
    TorchScript archive, damaged. NaN and infinite values are counted, not refused.
    """
    found = open_file(path)
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    infos = []
    for name, tensor in found.state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        tied = first.setdefault(place, name) if tensor.numel() else name
        infos.append(_info(name, tensor, None if tied == name else tied))
    own = [t for t in infos if t.tied_to is None]
    return Inspection(
        path=found.path,
        form=found.form,
        container=found.container,
        bytes=found.size,
        sha256=found.sha256,
        tensors=tuple(infos),
        elements=sum(t.elements for t in own),
        nonzero=sum(t.nonzero for t in own),
        said=found.said,
        prefix_removed=found.prefix_removed,
        notes=found.notes,
    )


def _info(name: str, tensor: Tensor, tied_to: str | None) -> TensorInfo:
    values = tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 2 else tensor
    if values.dtype in _UNSIGNED:  # torch cannot count their zeros
        values = values.view(_UNSIGNED[values.dtype])
    return TensorInfo(
        name=name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        elements=tensor.numel(),
        nonzero=int(values.count_nonzero()),
        nonfinite=nonfinite(tensor),
        tied_to=tied_to,
    )
