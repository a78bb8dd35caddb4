"""A geometry turns the inputs and outputs of one call of a layer into rows of samples.

A call computes y[g, p] = W[g] x[g, p] + b[g] at each output position p of each group g. Which entries of the inputs an
output position reads depends on the call: its stride and padding, or the dimensions that it contracts. Shape suffixes:
B entries of the first dimension, L positions in one entry, G groups, R rows, C columns, P sampled positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Geometry(Protocol):
    """The way in which a call reads its inputs. All methods but the first two take tensors that those returned."""

    @property
    def channels(self) -> int | None:
        """The dimension of the call's outputs, from the end, that counts the rows; None: there is no single one."""

    def arrange_inputs(self, x: Tensor) -> Tensor:
        """Return the inputs with a first dimension of entries."""

    def arrange_outputs(self, y: Tensor) -> Tensor:
        """Return the outputs, or their gradient, with a first dimension of entries."""

    def positions(self, y: Tensor) -> int:
        """Return L, the number of output positions in one entry."""

    def input_rows(self, x: Tensor, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
        """Return the inputs (G, P, C) of the outputs at flat positions ``at`` (P,) of ``entries`` (P,)."""

    def output_rows(self, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
        """Return the sampled outputs, (G, P, R)."""

    def input_columns(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the inputs of every output, (B, G, C, L), at less cost than :meth:`input_rows` of all positions."""

    def output_columns(self, y: Tensor) -> Tensor:
        """Return all outputs, (B, G, R, L)."""


@dataclass(frozen=True)
class Contraction:
    """A product over some dimensions of the inputs, named by letters as in an einsum.

    ``batch`` letters are in inputs and outputs, ``groups`` in the weight too, ``columns`` in inputs and weight,
    ``rows`` in weight and outputs.
    """

    inputs: str
    outputs: str
    batch: str
    groups: str
    columns: str
    rows: str

    @property
    def channels(self) -> int | None:
        is_single = len(self.rows) == 1 and not self.groups
        return self.outputs.index(self.rows) - len(self.outputs) if is_single else None

    def arrange_inputs(self, x: Tensor) -> Tensor:
        """Return (B, L, G, C)."""
        return self._arrange(x, self.inputs, self.columns)

    def arrange_outputs(self, y: Tensor) -> Tensor:
        """Return (B, L, G, R)."""
        return self._arrange(y, self.outputs, self.rows)

    def _arrange(self, tensor: Tensor, letters: str, last: str) -> Tensor:
        order = [letters.index(one) for one in self.batch + self.groups + last]
        size = dict(zip(letters, tensor.shape, strict=True))
        first = size[self.batch[0]] if self.batch else 1
        shape = [prod(size[one] for one in part) for part in (self.batch[1:], self.groups, last)]
        return tensor.permute(order).reshape(first, *shape)

    def positions(self, y: Tensor) -> int:
        return y.shape[1]

    def input_rows(self, x: Tensor, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
        return x[entries, at].transpose(0, 1)

    def output_rows(self, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
        return y[entries, at].transpose(0, 1)

    def input_columns(self, x: Tensor, y: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)

    def output_columns(self, y: Tensor) -> Tensor:
        return y.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Convolution:
    """A convolution, or a transposed one, with all its sizes by axis; ``padding`` is (before, after)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False

    @property
    def channels(self) -> int | None:
        return -1 - len(self.kernel)

    def arrange_inputs(self, x: Tensor) -> Tensor:
        """Return (B, channels, ...)."""
        return x if x.dim() == len(self.kernel) + 2 else x.unsqueeze(0)

    def arrange_outputs(self, y: Tensor) -> Tensor:
        """Return (B, channels, ...)."""
        return self.arrange_inputs(y)

    def positions(self, y: Tensor) -> int:
        return prod(y.shape[2:])

    def input_rows(self, x: Tensor, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
        padded, stride = self._padded(x, y.shape[2:])
        grid = self._patch_index(padded.shape[2:], y.shape[2:], stride, at)  # (P, K) flat positions in the padded input
        flat = padded.flatten(2)  # (B, I, S)
        patches = flat[entries.unsqueeze(1), :, grid]  # (P, K, I)
        count, taps, channels = patches.shape
        split = patches.reshape(count, taps, self.groups, channels // self.groups)
        return split.permute(2, 0, 3, 1).reshape(self.groups, count, -1)

    def output_rows(self, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
        chosen = y.flatten(2)[entries, :, at]  # (P, O)
        return chosen.reshape(len(at), self.groups, -1).transpose(0, 1)

    def input_columns(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B, G, C, L): a view of ``x`` for 1 x 1 kernels without stride or padding."""
        out = y.shape[2:]
        padded, stride = self._padded(x, out)
        step = padded.stride()[2:]
        taps = [s * d for s, d in zip(step, self.dilation, strict=True)]
        moves = [s * n for s, n in zip(step, stride, strict=True)]
        windows = padded.as_strided(  # (B, I, *kernel, *out)
            (*padded.shape[:2], *self.kernel, *out), (*padded.stride()[:2], *taps, *moves)
        )
        if self.transposed:
            windows = windows.flip(*range(2, 2 + len(step)))
        channels = padded.shape[1] // self.groups
        return windows.reshape(len(x), self.groups, channels * prod(self.kernel), prod(out))

    def output_columns(self, y: Tensor) -> Tensor:
        return y.reshape(y.shape[0], self.groups, y.shape[1] // self.groups, -1)

    def _padded(self, x: Tensor, out: torch.Size) -> tuple[Tensor, tuple[int, ...]]:
        """Return the padded input, and the stride of the plain patches that the kernel is multiplied with."""
        pad: list[int] = []
        if self.transposed:
            # A transposed convolution is a plain one, of stride 1 and with the kernel turned round, over the input with
            # stride - 1 zeros between its entries (Dumoulin & Visin 2016, section 4).
            size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)]
            spread = x.new_zeros(*x.shape[:2], *size)
            every: tuple[Any, ...] = (..., *(slice(None, None, s) for s in self.stride))
            spread[every] = x
            for i in reversed(range(len(self.kernel))):
                reach = self.dilation[i] * (self.kernel[i] - 1)
                edge = reach - self.padding[i][0]
                # The last output's patch ends here, whatever output_padding or output_size added.
                pad += [edge, out[i] + reach - edge - spread.shape[2 + i]]
            return nn.functional.pad(spread, pad), (1,) * len(self.kernel)
        for before, after in reversed(self.padding):
            pad += [before, after]
        return (nn.functional.pad(x, pad) if any(pad) else x), self.stride

    def _patch_index(self, padded: torch.Size, out: torch.Size, stride: tuple[int, ...], at: Tensor) -> Tensor:
        """Return the flat positions (P, K) in the padded input of the K kernel taps, in the weight's order."""
        corner = torch.zeros_like(at)
        tap = torch.zeros(1, dtype=at.dtype, device=at.device)
        rest = at
        coordinates: list[Tensor] = []
        for n in reversed(out):
            coordinates.insert(0, rest % n)
            rest = rest // n
        for i, n in enumerate(padded):
            taps = torch.arange(self.kernel[i], device=at.device) * self.dilation[i]
            if self.transposed:
                taps = taps.flip(0)
            corner = corner * n + coordinates[i] * stride[i]
            tap = (tap.unsqueeze(1) * n + taps).flatten()
        return corner.unsqueeze(1) + tap


@dataclass(frozen=True)
class RowBlocks:
    """A call whose rows belong to ``count`` of a layer's groups, which all read its inputs."""

    whole: Geometry
    count: int

    @property
    def channels(self) -> int | None:
        return self.whole.channels

    def arrange_inputs(self, x: Tensor) -> Tensor:
        return self.whole.arrange_inputs(x)

    def arrange_outputs(self, y: Tensor) -> Tensor:
        return self.whole.arrange_outputs(y)

    def positions(self, y: Tensor) -> int:
        return self.whole.positions(y)

    def input_rows(self, x: Tensor, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
        return self.whole.input_rows(x, y, entries, at).repeat_interleave(self.count, 0)

    def output_rows(self, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
        rows = self.whole.output_rows(y, entries, at)[0]
        return rows.reshape(len(rows), self.count, -1).transpose(0, 1)

    def input_columns(self, x: Tensor, y: Tensor) -> Tensor:
        return self.whole.input_columns(x, y).repeat_interleave(self.count, 1)

    def output_columns(self, y: Tensor) -> Tensor:
        return self._split(self.whole.output_columns(y))

    def _split(self, columns: Tensor) -> Tensor:
        return columns.reshape(len(columns), self.count, -1, columns.shape[3])
