"""Gradients of single samples, computed from each layer's inputs and output gradients, which hooks record.

For y = W x at positions p the gradient of one sample is sum_p dy_p x_p', a matrix product. Nothing is written into the
user's ``p.grad``. If the first dimension of a layer's input does not hold the samples one after another, samples pass
one at a time (:func:`sample_cuts`), so that each gradient belongs to a known sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from prunetaylor.core.errors import DataError
from prunetaylor.data.samples import Inputs
from prunetaylor.network.geometry import Geometry
from prunetaylor.network.layer import Call, Layer
from prunetaylor.network.observation import observing
from prunetaylor.taylor.passes import Watch, first_batch, forward_one
from prunetaylor.taylor.risk import Risk


def chunk_elements(device: torch.device) -> int:
    """Return how many elements of per-sample gradients and unfolded inputs are computed at a time.

    On a CPU 4 MiB, which stay in its caches: 16 MiB take a third longer (ResNet-20). Elsewhere 256 MiB, for few and
    large kernels.
    """
    return 1 << 20 if device.type == "cpu" else 1 << 26


@dataclass
class LayerCall:
    """One use of a layer in one forward pass."""

    layer: Layer
    geometry: Geometry
    groups: tuple[int, int]  # of the layer's groups, those that the call computes
    x: Tensor  # with a first dimension of entries
    y: GradientEdge  # of the output as the layer gave it: an activation may overwrite the tensor

    def gradient(self, g: Tensor) -> Tensor:
        """Return the gradient of the outputs with a first dimension of entries."""
        return self.geometry.arrange_outputs(g)


@dataclass
class Tape:
    """The calls of layers in one pass. Calls between :meth:`outputs` and :meth:`clear` are not recorded.

    They are those of a backward pass, which calls layers again if the network checkpoints their activations.
    """

    calls: list[LayerCall] = field(default_factory=list)
    open: bool = True

    def outputs(self) -> list[GradientEdge]:
        """Return the outputs of all calls, and stop recording."""
        self.open = False
        return [call.y for call in self.calls]

    def clear(self) -> None:
        """Forget the calls, and record those of the next pass."""
        self.calls.clear()
        self.open = True


@contextmanager
def recording(layers: Sequence[Layer]) -> Iterator[Tape]:
    """Record the input and output of every call of the layers; the tape is to be cleared before each pass."""
    tape = Tape()

    def record(call: Call) -> None:
        # A call without a graph has no part in any gradient.
        if tape.open and call.y.requires_grad:
            x, y = call.inputs.detach(), get_gradient_edge(call.y)
            tape.calls.append(LayerCall(call.layer, call.geometry, call.groups, x, y))

    with observing(layers, record):
        yield tape


_ROUNDING = 1e-2  # of the norm: smaller differences are rounding, such as that of TF32


def sample_cuts(risk: Risk, layers: Sequence[Layer]) -> Sequence[int]:
    """Return where batches must be split so that layers read their rows sample by sample: nowhere or everywhere.

    A network may transpose its batch, (time, batch, features), select the samples that a layer sees, or add rows that
    belong to no sample. The first batch shows it: its first and its last sample must have the same rows in it as in a
    pass of their own.
    """
    x, _ = first_batch(risk.batches)
    if not reads_sample_by_sample(risk.module, layers, x):
        return range(risk.batches.samples + 1)
    return ()


def reads_sample_by_sample(module: nn.Module, layers: Sequence[Layer], x: Inputs) -> bool:
    """Return True if each layer's input has the rows of the samples ``x`` one sample after another."""
    if len(x) == 1:
        return True
    first, last = (_inputs(module, layers, x.rows(slice(i, i + 1))) for i in (0, len(x) - 1))
    whole = iter(zip(first, last, strict=False))
    same = len(first) == len(last)

    def compare(entries: Tensor) -> None:
        nonlocal same
        a, b = next(whole, (None, None))
        same = (
            same
            and a is not None
            and b is not None
            and len(a) == len(b) == len(entries) / len(x)
            and all(are_close(entries[some], own) for some, own in ((slice(len(a)), a), (slice(-len(b), None), b)))
        )

    _inputs(module, layers, x, compare)
    return same and next(whole, None) is None


def _inputs(
    module: nn.Module, layers: Sequence[Layer], x: Inputs, visit: Callable[[Tensor], object] | None = None
) -> list[Tensor]:
    """Return the layers' inputs, call by call; with ``visit`` they are passed to it and not kept."""
    inputs: list[Tensor] = []

    def add(start: int, samples: int, call: Call) -> None:
        (visit or inputs.append)(call.inputs)

    forward_one(module, x, Watch(layers, add))
    return inputs


def are_close(a: Tensor, b: Tensor) -> bool:
    """Return True if two tensors have the same shape and values, up to rounding."""
    if a.shape != b.shape:
        return False
    a, b = a.float(), b.float()
    return bool((a - b).norm() <= _ROUNDING * torch.maximum(a.norm(), b.norm()))


def summed_gradients(tape: Tape, grads: Sequence[Tensor | None]) -> Iterator[tuple[Layer, Tensor]]:
    """Yield (layer, its gradient (G, R, C) summed over samples), from the outputs' ``grads``."""
    for layer, uses in _by_layer(tape, grads).values():
        yield layer, _sum_of_calls(uses, 0, 1, 1)[0]


def layer_gradients(tape: Tape, grads: Sequence[Tensor | None], samples: int) -> Iterator[tuple[Layer, int, Tensor]]:
    """Yield (layer, index of the first sample, gradients (B, G, R, C) of the next B samples).

    They are computed from the outputs' ``grads``.

    The calls of one layer are summed. Each chunk has at least one sample.
    """
    for layer, uses in _by_layer(tape, grads).values():
        for low, high in _sample_ranges(layer, uses, samples):
            yield layer, low, _sum_of_calls(uses, low, high, samples)


def layer_squares(tape: Tape, grads: Sequence[Tensor | None], samples: int) -> Iterator[tuple[Layer, Tensor]]:
    """Yield (layer, sum over samples of the squared gradients of single samples (G, R, C)).

    Where a layer is called once with one position a sample, its gradient is the product of two vectors, and the sum of
    their squares is one matrix product. Otherwise gradients are made as in :func:`layer_gradients`.
    """
    for layer, uses in _by_layer(tape, grads).values():
        for low, high in _sample_ranges(layer, uses, samples):
            outs, inputs = _factors(*uses[0], low, high, samples)
            if len(uses) == 1 and outs.shape[3] == 1 and not layer.by_group:
                rows, columns = (part.squeeze(3).transpose(0, 1).square() for part in (outs, inputs))  # (G, B, .)
                yield layer, rows.mT @ columns
            else:
                yield layer, _sum_of_calls(uses, low, high, samples).square_().sum(0)


def _by_layer(tape: Tape, grads: Sequence[Tensor | None]) -> dict[str, tuple[Layer, list[tuple[LayerCall, Tensor]]]]:
    """Return the calls that have a gradient, by the name of the weight they use."""
    by_parameter: dict[str, tuple[Layer, list[tuple[LayerCall, Tensor]]]] = {}
    for call, g in zip(tape.calls, grads, strict=True):
        if g is not None:
            by_parameter.setdefault(call.layer.parameter, (call.layer, []))[1].append((call, call.gradient(g)))
    return by_parameter


def _sample_ranges(layer: Layer, uses: list[tuple[LayerCall, Tensor]], samples: int) -> Iterator[tuple[int, int]]:
    largest = max(layer.weight.numel(), *(_row_elements(c, g, samples) for c, g in uses))
    step = max(1, chunk_elements(layer.weight.device) // largest)
    for low in range(0, samples, step):
        yield low, min(samples, low + step)


def _row_elements(call: LayerCall, g: Tensor, samples: int) -> int:
    """Return the elements of one sample's unfolded input. Raises DataError: rows cannot be assigned to samples."""
    entries = call.x.shape[0]
    if entries % samples:
        raise DataError(
            f"{call.layer.name}: the {entries} rows of its input cannot be assigned to {samples} samples",
            "exclude it (prune.exclude), or choose a criterion that needs no gradients of single samples",
        )
    groups, _, columns = call.layer.form.shape
    return entries // samples * call.geometry.positions(g) * columns * groups


def _sum_of_calls(uses: list[tuple[LayerCall, Tensor]], low: int, high: int, samples: int) -> Tensor:
    """Return the gradients (B, G, R, C) of samples low..high, in memory of their own."""
    total: Tensor | None = None
    for call, g in uses:
        outs, inputs = _factors(call, g, low, high, samples)
        each = outs @ inputs.mT
        if call.layer.by_group:
            part = each
            each = part.new_zeros(len(part), *call.layer.form.shape)
            each[:, slice(*call.groups)] = part
        total = each if total is None else total.add_(each)
    assert total is not None
    return total


def _factors(call: LayerCall, g: Tensor, low: int, high: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the gradients of samples low..high: dy (B, G, R, L) and x (B, G, C, L), in float32."""
    per = call.x.shape[0] // samples  # entries of the first dimension that belong to one sample
    x, y = call.x[low * per : high * per].float(), g[low * per : high * per].float()
    pair = call.geometry.output_columns(y), call.geometry.input_columns(x, y)
    if per == 1:
        return pair
    # Entries of one sample are more positions.
    outs, inputs = (part.reshape(-1, per, *part.shape[1:]).permute(0, 2, 3, 1, 4).flatten(3) for part in pair)
    return outs, inputs
