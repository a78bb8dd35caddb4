"""Small sets of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunetaylor.data.samples import Batches, Inputs, Preprocess, Split, TensorSplit

Pair = tuple[Tensor, Tensor]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(x: Tensor, y: Tensor | None = None, size: int = 4) -> Batches:
    y = torch.zeros(len(x), dtype=torch.long) if y is None else y
    return Batches(TensorSplit(x, y), Preprocess(), batch_size=size, device="cpu")


def quadrants(n: int, seed: int) -> Pair:
    """Noisy images (N, 1, 6, 6) and which of their quadrants is bright (N,)."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.6 * torch.randn(n, 1, 6, 6, generator=generator)
    y = torch.randint(4, (n,), generator=generator)
    for i, label in enumerate(y.tolist()):
        x[i, 0, 3 * (label // 2) : 3 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += 1
    return x, y


def curve(n: int, seed: int) -> Pair:
    """Features (N, 6) and three smooth functions of them (N, 3)."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, torch.stack([x[:, 0].sin() + x[:, 1], x[:, 2] * x[:, 3].tanh(), x[:, 4] - x[:, 5]], dim=1)


class Recording(Dataset[Any]):
    """Samples that record the indices that are read, in ``seen``."""

    def __init__(self, data: Pair) -> None:
        self.data = data
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.seen.append(index)
        return self.data[0][index], int(self.data[1][index])


def fetch(split: Split, indices: Sequence[int], variant: int = 0) -> tuple[Tensor, Tensor]:
    """Return the samples of a split whose inputs are a tensor."""
    inputs, targets = split.fetch(indices, variant)
    assert inputs.tensor is not None
    return inputs.tensor, targets


def tensors(batches: Iterable[tuple[Inputs, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return batches whose inputs are a tensor."""
    return [(x.tensor, y) for x, y in batches if x.tensor is not None]
