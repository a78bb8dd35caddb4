"""Sequences of different lengths become a batch, padded by a tokenizer's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The class of tokens that do not count, in PyTorch's losses."""


@dataclass(frozen=True)
class Padding:
    """A function of samples, dictionaries of token sequences, that returns a batch: each entry is a tensor (B, T).

    Entries that are no sequences become tensors (B, ...). ``values`` fills an entry up; labels are filled with -100,
    and others, such as the mask, with 0.
    """

    values: Mapping[str, int] = field(default_factory=dict)
    side: str = "right"

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for name in samples[0]:
            parts = [torch.as_tensor(sample[name]) for sample in samples]
            batch[name] = torch.stack(parts) if parts[0].dim() != 1 else self._padded(name, parts)
        return batch

    def _padded(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        value = self.values.get(name, IGNORED if name.startswith("label") else 0)
        padded = parts[0].new_full((len(parts), max(map(len, parts))), value)
        for row, part in zip(padded, parts, strict=True):
            start = len(row) - len(part) if self.side == "left" else 0
            row[start : start + len(part)] = part
        return padded
