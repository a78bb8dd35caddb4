"""Samples as the rest of the package sees them: raw splits and the facts about them. Import them from here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunetaylor.core.errors import DataError
from prunetaylor.core.results.choice import Choice
from prunetaylor.data.batches import Batches, BatchShard
from prunetaylor.data.datasets import DatasetSplit
from prunetaylor.data.inputs import Collate, Inputs
from prunetaylor.data.preprocess import Preprocess
from prunetaylor.data.splits import Split, Subset, TensorSplit, WithTargetArgument, WithTargets, decode_sharded
from prunetaylor.data.transforms import Named

__all__ = [
    "BatchShard",
    "Batches",
    "ChangedTargets",
    "DatasetSplit",
    "Inputs",
    "Preprocess",
    "RawSource",
    "Samples",
    "Split",
    "Subset",
    "TargetChange",
    "TensorSplit",
    "WithTargetArgument",
    "WithTargets",
    "check_targets",
    "decode_sharded",
    "draw",
    "fingerprint",
    "with_changed_targets",
]


@dataclass(frozen=True)
class RawSource:
    """The result of a source: raw splits, and the source's usual normalisation and augmentation."""

    train: Split
    test: Split
    validation: Split | None
    classes: int | None  # None where the targets are no class ids, or unknown
    normalize: str = "none"  # the usual normalisation, by name
    augment: str = "usual"  # the usual augmentation, by name


@dataclass(frozen=True)
class Samples:
    """A data set that is ready for a run. Splits are raw; ``preprocess`` makes them inputs of the network."""

    source: str  # as given to --data
    train: Split
    test: Split  # for reporting only; nothing is chosen on it
    validation: Split | None  # the source's own
    classes: int | None
    preprocess: Preprocess
    augment: str | Named  # a name or list for augment.load_augmentation, never "usual"
    fingerprint: str  # sha256, hexadecimal
    choices: tuple[Choice[object], ...] = ()  # normalisation and augmentation, with their reasons

    @property
    def splits(self) -> tuple[Split, ...]:
        """Return the splits that there are: training, test and validation samples."""
        return (self.train, self.test, *([] if self.validation is None else [self.validation]))


def draw(split: Split, n: int, generator: torch.Generator) -> list[int]:
    """Return ``n`` distinct indices in random order; all of them if there are fewer."""
    order = torch.randperm(len(split), generator=generator, device=generator.device)
    return [int(index) for index in order[:n].tolist()]


TargetChange = Callable[[Tensor, str, Sequence[int] | None], Tensor]
"""A function of (targets, their name, the samples' indices or None for all) that returns them checked and arranged.

It raises DataError if they are wrong.
"""


class ChangedTargets(Split):
    """A split whose targets are checked and arranged as they are read, because they are unknown until then."""

    def __init__(self, parent: Split, change: TargetChange, name: str) -> None:
        self._parent, self._change, self._name = parent, change, name
        self.lazy = parent.lazy

    def __len__(self) -> int:
        return len(self._parent)

    @property
    def labelled(self) -> bool:
        return self._parent.labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        inputs, targets = self._parent.fetch(indices, variant)
        return inputs, self._change(targets, self._name, indices)

    def origin(self, index: int) -> int:
        return self._parent.origin(index)

    def nbytes(self) -> int | None:
        return self._parent.nbytes()

    @property
    def is_in_memory(self) -> bool:
        return self._parent.is_in_memory

    @property
    def collate(self) -> Collate | None:
        return self._parent.collate


def with_changed_targets(samples: Samples, change: TargetChange) -> Samples:
    """Return the samples with changed targets: at once if they are in memory, otherwise batch by batch."""

    def one(split: Split, name: str) -> Split:
        targets = split.targets()
        if not split.labelled:
            return split
        if targets is None:
            return ChangedTargets(split, change, name)
        changed = change(targets, name, None)
        return split if changed is targets else WithTargets(split, changed)

    validation = samples.validation
    return replace(
        samples,
        train=one(samples.train, "training targets"),
        test=one(samples.test, "test targets"),
        validation=None if validation is None else one(validation, "validation targets"),
    )


def check_targets(targets: Tensor, outputs: int, name: str = "targets", indices: Sequence[int] | None = None) -> None:
    """Raise DataError unless class ids (any shape) are whole numbers in [0, outputs); it names the first wrong one.

    ``indices`` are the samples' indices in the split, if the targets are not those of all samples.
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise DataError(
            f"{name} are of type {targets.dtype}, not class ids", "give whole numbers from 0, one for each sample"
        )
    wrong = ((targets < 0) | (targets >= outputs)).nonzero()
    if len(wrong):
        at = [int(i) for i in wrong[0].tolist()]
        value = int(targets[tuple(at)])
        at[0] = at[0] if indices is None else indices[at[0]]
        where = at[0] if len(at) == 1 else tuple(at)
        raise DataError(
            f"{name}: class {value} at index {where} is out of range for a network with {outputs} outputs",
            f"class ids must lie in 0..{outputs - 1}; is this the data set that the network was trained on?",
        )


_CHUNK = 1024
"""Samples that are hashed at a time, since fetching copies them."""


def fingerprint(*splits: Split | None, probes: int = 16) -> str:
    """Return the sha256 of each split's size, targets (if known without decoding), file sizes and inputs.

    It covers all inputs that are in memory, and ``probes`` evenly spaced ones of those that must be decoded.
    """
    digest = hashlib.sha256()
    for split in splits:
        if split is None:
            digest.update(b"none;")
            continue
        count = len(split)
        digest.update(f"{count};".encode())
        targets = split.targets()
        for known in (targets, split.sizes()):
            if known is not None:
                _update(digest, known)
        probed = count if split.is_in_memory else min(count, probes)
        for first in range(0, probed, _CHUNK):
            indices = [i * count // probed for i in range(first, min(first + _CHUNK, probed))]
            inputs, read = split.fetch(indices)
            for tensor in (*inputs.tensors(), read):
                _update(digest, tensor)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
    if tensor.dtype == torch.bfloat16:  # numpy does not know it
        tensor = tensor.float()
    digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
