"""Layers as matrices: the only place where weights become rows and columns, and inputs become rows of samples.

Every prunable layer is, at each output position p of each group g,

    y[g, p] = W[g] x[g, p] + b[g]        W: (rows, columns),  x: (columns,)

with rows = output channels of the group and columns = the inputs of one output: features, or input channels x kernel
positions. Shape suffixes below: G groups, R rows, C columns, B inputs in a batch, L positions in one input,
P sampled positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Prunable = nn.Linear | _ConvNd


@dataclass(frozen=True)
class Layer:
    """One prunable weight tensor and the modules that use it (more than one where the tensor is tied)."""

    name: str
    modules: tuple[Prunable, ...]

    @property
    def module(self) -> Prunable:
        """Return the first module that uses the weight."""
        return self.modules[0]

    @property
    def parameter(self) -> str:
        """Return the name of the weight in the network's state."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def weight(self) -> nn.Parameter:
        """Return the weight tensor."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def groups(self) -> int:
        """Return the groups of a convolution; 1 for a linear layer."""
        return self.module.groups if isinstance(self.module, _ConvNd) else 1

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape (weights, mask, scores) as (G, R, C); a view if strides allow it."""
        groups = self.groups
        if isinstance(self.module, _ConvTransposeNd):
            # (in, out/G, k...) -> (G, out/G, in/G * k)
            split = tensor.reshape(groups, tensor.shape[0] // groups, tensor.shape[1], -1)
            return split.transpose(1, 2).flatten(2)
        return tensor.reshape(groups, tensor.shape[0] // groups, -1)

    def tensor(self, matrix: Tensor) -> Tensor:
        """Return (G, R, C) in the weight's shape: the inverse of :meth:`matrix`."""
        shape = self.weight.shape
        if isinstance(self.module, _ConvTransposeNd):
            split = matrix.reshape(self.groups, shape[1], shape[0] // self.groups, -1)
            return split.transpose(1, 2).reshape(shape)
        return matrix.reshape(shape)

    def rows(self, vector: Tensor) -> Tensor:
        """Return a vector over output channels (a bias) as (G, R)."""
        return vector.reshape(self.groups, -1)


def with_entries(module: Prunable, tensor: Tensor) -> Tensor:
    """Return an input or output of a module with a first dimension of entries, which a single entry may lack."""
    dims = 1 if isinstance(module, nn.Linear) else len(module.kernel_size) + 1
    return tensor.unsqueeze(0) if tensor.dim() == dims else tensor


def shapes_match(module: Prunable, x: Tensor, y: Tensor) -> bool:
    """Return True if ``y`` has the shape of a call with ``x``, perhaps with SAME padding; both with entries."""
    if isinstance(module, nn.Linear):
        return x.shape[-1] == module.in_features and y.shape == (*x.shape[:-1], module.out_features)
    axes = len(module.kernel_size)
    if not x.dim() == y.dim() == axes + 2 or (len(x), module.out_channels) != tuple(y.shape[:2]):
        return False
    for i in range(axes):
        reach, stride, size_out = module.dilation[i] * (module.kernel_size[i] - 1), module.stride[i], y.shape[2 + i]
        if isinstance(module, _ConvTransposeNd):
            least = (x.shape[2 + i] - 1) * stride + reach + 1 - 2 * int(module.padding[i])
            # output_padding, or an output_size in the call, may add up to a step
            if not least <= size_out < least + max(stride, module.dilation[i]):
                return False
        else:
            size, pad = x.shape[2 + i], module._reversed_padding_repeated_twice[2 * (axes - 1 - i) :][:2]
            if size_out not in ((size + sum(pad) - reach - 1) // stride + 1, -(-size // stride)):
                return False
    return x.shape[1] == module.in_channels


def positions(module: Prunable, x: Tensor, y: Tensor) -> int:
    """Return L, the number of output positions in one entry of ``x``'s first dimension."""
    if isinstance(module, nn.Linear):
        return prod(y.shape[1:-1])
    return prod(y.shape[-(len(module.kernel_size)) :])


def input_rows(module: Prunable, x: Tensor, entries: Tensor, at: Tensor, out_spatial: torch.Size) -> Tensor:
    """Return the inputs of the sampled outputs, (G, P, C).

    ``entries`` (P,) picks the entry of ``x``'s first dimension, ``at`` (P,) the flat output position in it;
    ``out_spatial`` is the spatial shape of the output (unused for a linear layer).
    """
    if isinstance(module, nn.Linear):
        return x.reshape(x.shape[0], -1, x.shape[-1])[entries, at].unsqueeze(0)
    padded, stride = _padded(module, x, out_spatial)
    grid = _patch_index(module, padded.shape[2:], out_spatial, stride, at)  # (P, K) flat positions in the padded input
    flat = padded.flatten(2)  # (B, I, S)
    patches = flat[entries.unsqueeze(1), :, grid]  # (P, K, I)
    count, taps, channels = patches.shape
    split = patches.reshape(count, taps, module.groups, channels // module.groups)
    return split.permute(2, 0, 3, 1).reshape(module.groups, count, -1)


def output_rows(module: Prunable, y: Tensor, entries: Tensor, at: Tensor) -> Tensor:
    """Return the sampled outputs, (G, P, R)."""
    if isinstance(module, nn.Linear):
        return y.reshape(y.shape[0], -1, y.shape[-1])[entries, at].unsqueeze(0)
    chosen = y.flatten(2)[entries, :, at]  # (P, O)
    return chosen.reshape(len(at), module.groups, -1).transpose(0, 1)


def input_columns(module: Prunable, x: Tensor, out_spatial: torch.Size) -> Tensor:
    """Return the inputs of every output, (B, G, C, L): :func:`input_rows` of all positions, transposed, at less cost.

    It is a view of ``x`` for linear layers, and for 1 x 1 kernels without stride or padding.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(x.shape[0], -1, x.shape[-1]).mT.unsqueeze(1)
    padded, stride = _padded(module, x, out_spatial)
    step = padded.stride()[2:]
    taps = [s * d for s, d in zip(step, module.dilation, strict=True)]
    moves = [s * n for s, n in zip(step, stride, strict=True)]
    windows = padded.as_strided(  # (B, I, *kernel, *out)
        (*padded.shape[:2], *module.kernel_size, *out_spatial), (*padded.stride()[:2], *taps, *moves)
    )
    if isinstance(module, _ConvTransposeNd):
        windows = windows.flip(*range(2, 2 + len(step)))
    channels = padded.shape[1] // module.groups
    return windows.reshape(len(x), module.groups, channels * prod(module.kernel_size), prod(out_spatial))


def output_columns(module: Prunable, y: Tensor) -> Tensor:
    """Return all outputs, (B, G, R, L)."""
    if isinstance(module, nn.Linear):
        return y.reshape(y.shape[0], -1, y.shape[-1]).mT.unsqueeze(1)
    return y.reshape(y.shape[0], module.groups, y.shape[1] // module.groups, -1)


def _padded(module: _ConvNd, x: Tensor, out: torch.Size) -> tuple[Tensor, tuple[int, ...]]:
    """Return the padded input, and the stride of the plain patches that the kernel is multiplied with."""
    if isinstance(module, _ConvTransposeNd):
        # A transposed convolution is a plain one, of stride 1 and with the kernel turned round, over the input with
        # stride - 1 zeros between its entries (Dumoulin & Visin 2016, section 4).
        spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], module.stride, strict=True)))
        every: tuple[Any, ...] = (..., *(slice(None, None, s) for s in module.stride))
        spread[every] = x
        pad: list[int] = []
        for i in reversed(range(len(module.kernel_size))):
            reach = module.dilation[i] * (module.kernel_size[i] - 1)
            edge = reach - int(module.padding[i])
            # The last output's patch ends here, whatever output_padding or output_size added.
            pad += [edge, out[i] + reach - edge - spread.shape[2 + i]]
        return nn.functional.pad(spread, pad), (1,) * len(module.kernel_size)
    pad = list(module._reversed_padding_repeated_twice)
    for i, n in enumerate(reversed(out)):
        # Zeros that a module's own forward method adds (TensorFlow's SAME padding), more of them at the end.
        reach, size = module.dilation[-1 - i] * (module.kernel_size[-1 - i] - 1) + 1, x.shape[-1 - i]
        lack = max(0, (n - 1) * module.stride[-1 - i] + reach - size - pad[2 * i] - pad[2 * i + 1])
        pad[2 * i] += lack // 2
        pad[2 * i + 1] += lack - lack // 2
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return (nn.functional.pad(x, pad, mode=mode) if any(pad) else x), tuple(module.stride)


def _patch_index(module: _ConvNd, padded: torch.Size, out: torch.Size, stride: tuple[int, ...], at: Tensor) -> Tensor:
    """Return the flat positions (P, K) in the padded input of the K kernel taps, in the weight's order."""
    corner = torch.zeros_like(at)
    tap = torch.zeros(1, dtype=at.dtype, device=at.device)
    rest = at
    coordinates: list[Tensor] = []
    for n in reversed(out):
        coordinates.insert(0, rest % n)
        rest = rest // n
    for i, n in enumerate(padded):
        taps = torch.arange(module.kernel_size[i], device=at.device) * module.dilation[i]
        if isinstance(module, _ConvTransposeNd):
            taps = taps.flip(0)
        corner = corner * n + coordinates[i] * stride[i]
        tap = (tap.unsqueeze(1) * n + taps).flatten()
    return corner.unsqueeze(1) + tap
