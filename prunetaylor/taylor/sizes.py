"""The sizes of a run, and the bytes that its passes, fits and systems take, in one place.

These grow with the samples and the layers in ways that no short measurement shows: chunks have upper limits, and what
is fitted to all samples is seen at the end only. Everything that one sample shows is measured
(``pipeline/estimates/sizes.py``), and so is the memory that a criterion works in (``pipeline/estimates/demand.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prunetaylor.taylor.curvature.fisher import ROW_ELEMENTS
from prunetaylor.taylor.curvature.gram import BLOCK_ROWS, POSITIONS
from prunetaylor.taylor.curvature.solve import BATCH_ELEMENTS, BLOCK
from prunetaylor.taylor.memory import chunk_size

FLOAT = 4
"""Bytes of the type that samples, activations and gradients are in."""
_GAPS = 1.75
"""What the allocator takes for the tensors of a batch's passes, over what they are: 1.4 to 2 with glibc's.

Those of _MAPPED bytes or more it gives pages of their own, which leave no gaps: a tenth is enough for them.
"""
_MAPPED = 32 << 20


@dataclass(frozen=True)
class LayerSize:
    """A prunable layer as a matrix of (groups, rows, columns), and what one sample makes of it, in numbers."""

    name: str
    groups: int
    rows: int
    columns: int
    positions: int = 0  # of its output
    inputs: int = 0  # values that go in
    outputs: int = 0  # values that come out

    @property
    def weights(self) -> int:
        return self.groups * self.rows * self.columns


@dataclass(frozen=True)
class SampleBytes:
    """The bytes that one sample needs in a pass.

    Attributes:
        x: the sample itself, as the network takes it.
        module: the inputs and outputs of one module, at most.
        forward: tensors that are alive at a time in a pass without gradients.
        backward: tensors that a forward pass leaves for the backward pass.
        forward_mode: tensors that are alive at a time in a forward-mode pass.
        replayed: outputs that ``pruning/activation_cache.py`` stores while one layer is solved, at most.
    """

    x: int = 0
    module: int = 0
    forward: int = 0
    backward: int = 0
    forward_mode: int = 0
    replayed: int = 0


@dataclass(frozen=True)
class Sizes:
    """The sizes in all estimates. ``samples`` are fitted, ``batch`` of them at a time."""

    layers: tuple[LayerSize, ...]
    state: int  # bytes of the network's parameters and buffers
    parameters: int  # floating-point ones, prunable or not
    samples: int = 0
    held_out: int = 0
    batch: int = 1
    outputs: int = 1  # of the network
    sample: SampleBytes = field(default_factory=SampleBytes)
    wide: int = 8  # bytes of the widest type of the device
    gradients: int = 1 << 22  # bytes of gradients of single samples that are made at a time
    cached: bool = False  # whether fits are kept on disk

    @property
    def weights(self) -> int:
        """The number of prunable weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def largest(self) -> int:
        """The number of weights in the largest layer."""
        return max(layer.weights for layer in self.layers)


@dataclass(frozen=True)
class Phase:
    """A phase of a run: bytes by purpose. ``layer`` is the one that needs the most, if a single one does."""

    name: str
    parts: Mapping[str, int]
    layer: str | None = None

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.parts.values())

    def plus(self, *more: Mapping[str, int]) -> Phase:
        """Return the phase with more of some parts."""
        parts = dict(self.parts)
        for name, size in (item for one in more for item in one.items()):
            parts[name] = parts.get(name, 0) + size
        return Phase(self.name, parts, self.layer)


def forward(sizes: Sizes) -> int:
    """Return the bytes of a batch in a pass without gradients: its samples, and the tensors of a module.

    Three times as much as a module shows, since kernels allocate memory that no tensor shows.
    """
    return _of_batch(sizes, 2 * sizes.sample.x + max(3 * sizes.sample.module, sizes.sample.forward))


def graph(sizes: Sizes) -> int:
    """Return the bytes that a batch's forward pass keeps for the backward pass."""
    return _of_batch(sizes, sizes.sample.x + sizes.sample.backward)


def backward(sizes: Sizes) -> int:
    """Return the bytes of a batch with its graph, and of the gradients of all layers' outputs."""
    outputs = FLOAT * sum(layer.outputs for layer in sizes.layers)
    return forward(sizes) + graph(sizes) + _of_batch(sizes, outputs)


def sample_gradients(sizes: Sizes) -> int:
    """Return the bytes of backward passes that compute gradients of single samples, some at a time.

    They are those of one layer, with its unfolded inputs and outputs.
    """
    unfolded = (max(layer.weights, layer.groups * layer.columns * layer.positions) for layer in sizes.layers)
    each = FLOAT * max(unfolded)
    return backward(sizes) + 3 * min(sizes.batch * each, max(sizes.gradients, each))


def directional(sizes: Sizes) -> int:
    """Return the bytes of a batch in a forward-mode pass: values, derivatives, and batch norm as plain arithmetic."""
    sample = sizes.sample
    each = max(6 * sample.module, 2 * sample.forward, sample.forward_mode)
    return _of_batch(sizes, 2 * sample.x + each, each // 6)


def predicting(sizes: Sizes) -> int:
    """Return the bytes that a prediction needs: a displacement of the whole state and a forward-mode batch."""
    return sizes.state + directional(sizes)


def _of_batch(sizes: Sizes, each: int, tensor: int = 0) -> int:
    """Return the bytes of a batch. Tensors of a pass have all sizes, and leave gaps in memory."""
    tensor = max(tensor, sizes.sample.module, sizes.sample.forward // 3)
    return int((1.1 if sizes.batch * tensor >= 2 * _MAPPED else _GAPS) * sizes.batch * each)


def moments_bytes(layer: LayerSize, wide: int) -> int:
    """Return the bytes of a layer's ``Moments``."""
    return wide * layer.groups * ((layer.columns + 1) ** 2 + layer.rows * (layer.columns + 2))


def fitting_bytes(layer: LayerSize, sizes: Sizes) -> int:
    """Return the bytes that adding a batch to a layer's moments needs: its inputs three times, its outputs twice."""
    count = sizes.batch * min(POSITIONS, layer.positions)
    values = layer.groups * (3 * (layer.columns + 1) + 2 * layer.rows) + layer.columns
    return FLOAT * (count * values + sizes.batch * layer.inputs + layer.groups * BLOCK_ROWS * (layer.columns + 1))


def fits(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Return (bytes, and those needed to fit them) of each fit of a Taylor model, by the attribute's name."""
    grams = sum(moments_bytes(layer, sizes.wide) for layer in sizes.layers)
    fitting = forward(sizes) + max(fitting_bytes(layer, sizes) for layer in sizes.layers)
    vector, rows = FLOAT * sizes.weights, FLOAT * sizes.samples * sizes.weights
    largest = FLOAT * sizes.samples * sizes.largest
    at_once = max(largest, FLOAT * chunk_size("rows", ROW_ELEMENTS))
    squares = FLOAT * sizes.batch * max(layer.outputs for layer in sizes.layers)
    return {
        "moments": (grams, max(fitting, grams if sizes.cached else 0)),  # a copy for the cache
        "gradient": (vector, backward(sizes) + vector),
        "diagonal": (vector, sample_gradients(sizes)),
        "sensitivity": (sizes.wide * sum(one.groups * one.rows for one in sizes.layers), backward(sizes) + squares),
        # Whoever goes through the rows may still hold those of a layer when the next pass starts.
        "fisher_rows": (rows if rows <= at_once else at_once + largest, sample_gradients(sizes)),
    }


def system_entries(layer: LayerSize) -> int:
    """Return the entries of a layer's row-wise systems that are factorised together, while none of its rows is pruned.

    A matrix wider than BLOCK is taken in blocks of columns.
    """
    width = -(-layer.columns // -(-layer.columns // BLOCK))
    return width**2 * min(layer.rows, max(1, chunk_size("systems", BATCH_ELEMENTS) // width**2))


def solving_bytes(layer: LayerSize, wide: int) -> int:
    """Return the bytes of a layer's least squares: covariances, systems, factors; wide rows all at once."""
    square, vectors = layer.columns**2, layer.rows * layer.columns
    at_once = square + 8 * vectors if layer.columns > BLOCK else 0
    width = min(layer.columns, BLOCK)
    batch = int(2.5 * system_entries(layer)) + 2 * width**2 + 3 * layer.groups * vectors
    return wide * (3 * layer.groups * square + max(at_once, batch))


def largest_of(layers: Sequence[LayerSize], need: Callable[[LayerSize], int]) -> tuple[int, str]:
    """Return the most that a layer needs, and its name."""
    most = max(layers, key=need)
    return need(most), most.name
