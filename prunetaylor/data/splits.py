"""A split is raw samples by index: a tensor in memory, a view of another split, or any map-style data set.

``fetch`` returns the same content for the same indices every time, even with random transforms of a data set: they draw
from generators seeded by ``variant`` and the index. So calibration and measuring see fixed samples, and each epoch of
training asks for its own variant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from prunetaylor.core.errors import DataError
from prunetaylor.data.inputs import Collate, Inputs
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.runtime.processes.group import gather_objects, own_range, world


class Split(ABC):
    """Samples by index before preprocessing: inputs, such as a tensor (B, ...), and targets (B, ...), on the CPU."""

    #: decoding is so expensive that worker processes help, and nothing is kept in memory
    lazy: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        """Return B inputs and targets (B, ...) in the order of ``indices``; DataError names a bad sample."""

    @property
    def labelled(self) -> bool:
        """Return whether the samples have targets; without labels, targets are zeros."""
        return True

    def targets(self) -> Tensor | None:
        """Return the targets of all samples (N, ...) if they are known without decoding, else None."""
        return None

    def nbytes(self) -> int | None:
        """Return the bytes of all inputs once in memory, if that is known without decoding, else None."""
        return None

    def sizes(self) -> Tensor | None:
        """Return the bytes of each sample's file (N,), which reveal changes without decoding, or None."""
        return None

    @property
    def is_in_memory(self) -> bool:
        """Return whether all inputs are in memory, so that fetching one decodes nothing."""
        return False

    @property
    def collate(self) -> Collate | None:
        """Return the user's function that combines samples, if there is one."""
        return None

    def subset(self, indices: Sequence[int]) -> Split:
        """Return a view of these samples in this order, without a copy."""
        return Subset(self, indices)

    def origin(self, index: int) -> int:
        """Return the sample's index in the source."""
        return index

    def in_memory(self) -> TensorSplit:
        """Return all samples, decoded once."""
        inputs, targets = self.fetch(range(len(self)))
        return TensorSplit(inputs, targets if self.labelled else None)


class TensorSplit(Split):
    """Inputs of N samples and targets (N, ...) in memory; without targets the samples are not labelled."""

    def __init__(self, inputs: Tensor | Inputs, targets: Tensor | None = None) -> None:
        self._labelled = targets is not None
        if isinstance(inputs, Tensor) and inputs.ndim == 0:
            raise DataError("the inputs are a single number", "give a tensor (N, ...)")
        self.inputs = inputs if isinstance(inputs, Inputs) else Inputs.of(inputs)
        if targets is None:
            targets = torch.zeros(len(self.inputs), dtype=torch.long)
        if targets.ndim == 0 or len(self.inputs) != len(targets):
            counts = f"{len(self.inputs)} and {len(targets) if targets.ndim else tuple(targets.shape)}"
            raise DataError(f"inputs and targets differ in length: {counts}", "give as many targets as inputs")
        self._targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labelled(self) -> bool:
        return self._labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        if isinstance(indices, range) and indices.step == 1:
            part = slice(indices.start, indices.stop)
            return self.inputs.rows(part), self._targets[part]
        at = torch.as_tensor(indices, dtype=torch.long, device=self._targets.device)
        return self.inputs.rows(indices), self._targets.index_select(0, at)

    def targets(self) -> Tensor:
        return self._targets

    def nbytes(self) -> int:
        return self.inputs.nbytes

    @property
    def is_in_memory(self) -> bool:
        return True

    def in_memory(self) -> TensorSplit:
        return self

    def to(self, device: torch.device) -> TensorSplit:
        """Return the split on another device."""
        return TensorSplit(self.inputs.to(device), self._targets.to(device) if self.labelled else None)


class WithTargets(Split):
    """The inputs of another split with other targets (N, ...), or without labels."""

    def __init__(self, parent: Split, targets: Tensor, labelled: bool = True) -> None:
        self._parent, self._targets, self._labelled = parent, targets, labelled
        self.lazy = parent.lazy

    def __len__(self) -> int:
        return len(self._parent)

    @property
    def labelled(self) -> bool:
        return self._labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        return self._parent.fetch(indices, variant)[0], self._targets[torch.as_tensor(indices, dtype=torch.long)]

    def origin(self, index: int) -> int:
        return self._parent.origin(index)

    def targets(self) -> Tensor:
        return self._targets

    def nbytes(self) -> int | None:
        return self._parent.nbytes()

    def sizes(self) -> Tensor | None:
        return self._parent.sizes()

    @property
    def is_in_memory(self) -> bool:
        return self._parent.is_in_memory

    @property
    def collate(self) -> Collate | None:
        return self._parent.collate


class WithTargetArgument(Split):
    """Another split whose targets are a keyword argument of the network, ``name``, too."""

    def __init__(self, parent: Split, name: str) -> None:
        self._parent, self._name = parent, name
        self.lazy = parent.lazy

    def __len__(self) -> int:
        return len(self._parent)

    @property
    def labelled(self) -> bool:
        return self._parent.labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        inputs, targets = self._parent.fetch(indices, variant)
        assert isinstance(inputs.tree, dict)
        return Inputs.of({**inputs.tree, self._name: targets}, len(inputs)), targets

    def targets(self) -> Tensor | None:
        return self._parent.targets()

    def origin(self, index: int) -> int:
        return self._parent.origin(index)

    def nbytes(self) -> int | None:
        return self._parent.nbytes()

    @property
    def is_in_memory(self) -> bool:
        return self._parent.is_in_memory


def decode_sharded(split: Split) -> TensorSplit:
    """Return all samples in memory on every process of a run; each process decodes its part of lazy data."""
    if not split.lazy or world() == 1:
        return split.in_memory()
    own = own_range(len(split))
    inputs, targets = split.fetch(own or range(1))
    known = gather_rows(targets[: len(own)])
    labels = known if split.labelled else None
    if (tensor := inputs.tensor) is not None and inputs.collated is None:
        return TensorSplit(gather_rows(tensor[: len(own)]), labels)
    parts = gather_objects(inputs.sendable() if own else None)
    return TensorSplit(Inputs.cat([part.collated_by(split.collate) for part in parts if part is not None]), labels)


class Subset(Split):
    """Some samples of another split, in an order of their own."""

    def __init__(self, parent: Split, indices: Sequence[int]) -> None:
        self._parent = parent
        self._indices = list(indices)
        self.lazy = parent.lazy

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labelled(self) -> bool:
        return self._parent.labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        return self._parent.fetch([self._indices[i] for i in indices], variant)

    def origin(self, index: int) -> int:
        return self._parent.origin(self._indices[index])

    def targets(self) -> Tensor | None:
        targets = self._parent.targets()
        return None if targets is None else targets[torch.tensor(self._indices, dtype=torch.long)]

    def nbytes(self) -> int | None:
        whole = self._parent.nbytes()
        return None if whole is None else whole * len(self) // max(1, len(self._parent))

    def sizes(self) -> Tensor | None:
        whole = self._parent.sizes()
        return None if whole is None else whole[torch.tensor(self._indices, dtype=torch.long)]

    @property
    def is_in_memory(self) -> bool:
        return self._parent.is_in_memory

    @property
    def collate(self) -> Collate | None:
        return self._parent.collate
