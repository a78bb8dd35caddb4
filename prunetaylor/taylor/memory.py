"""The memory of a run in bytes, stated before it starts, and the chunks in which the run works.

Each curvature, criterion and repair has functions beside it that state what it allocates, from :class:`Sizes` alone. A
criterion's ``memory(sizes)`` lists its phases as :class:`Phase`; ``pipeline/estimates/memory.py`` adds the rest of a
run, and chooses :class:`ChunkDivisors` under which the largest phase fits. Code that works in chunks calls
:func:`current_chunks` when it runs, and so do the formulas: both see the same sizes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from prunetaylor.network.layer import Layer, positions
from prunetaylor.network.network import Network
from prunetaylor.network.state import evaluating, trainable
from prunetaylor.taylor.outputs import read_outputs

FLOAT = 4
"""Bytes of the type that samples, activations and gradients are in."""
SLACK = 1.75
"""What the allocator takes for the tensors of a batch's passes, over what they are: 1.4 to 2 with glibc's.

Those of _MAPPED bytes or more it gives pages of their own, which leave no gaps: a tenth is enough for them.
"""
_MAPPED = 32 << 20
LIBRARIES = 48 << 20
"""What torch's own libraries take once they have run a network: kernels made for its shapes, work space."""


@dataclass(frozen=True)
class ChunkDivisors:
    """The factors by which chunks are smaller than usual; 1 is the usual size. Results differ by rounding only.

    Each module has its usual amount beside its code, and divides it by one of these fields. One of them does change the
    result: batch norms train on the statistics of the samples that they see at once, which ``training`` reduces.
    """

    batch: int = 1  # calibration samples in a batch
    systems: int = 1  # matrices that are factorised together, columns that are taken together
    rows: int = 1  # gradients of single samples; fewer cost more passes
    kept: int = 1  # outputs that least squares keeps so as not to compute them again
    training: int = 1  # samples that gradients are taken of together; a step is of as many as before


_divisors = ContextVar("divisors", default=ChunkDivisors())  # noqa: B039 frozen


def current_chunks() -> ChunkDivisors:
    """Return the current divisors; all are 1 outside of :func:`use_chunks`."""
    return _divisors.get()


@contextmanager
def use_chunks(chosen: ChunkDivisors) -> Iterator[None]:
    """Use the divisors ``chosen`` inside the block."""
    token = _divisors.set(chosen)
    try:
        yield
    finally:
        _divisors.reset(token)


@dataclass(frozen=True)
class LayerSize:
    """A prunable layer as a matrix of (groups, rows, columns), and what one sample makes of it, in numbers."""

    name: str
    groups: int
    rows: int
    columns: int
    positions: int = 1  # of its output
    inputs: int = 0  # values that go in
    outputs: int = 0  # values that come out
    calls: int = 1

    @property
    def weights(self) -> int:
        return self.groups * self.rows * self.columns


@dataclass(frozen=True)
class Activations:
    """The bytes that one sample needs in a pass."""

    sample: int = 0  # itself, as the network takes it
    kept: int = 0  # what a forward pass leaves for the backward one
    live: int = 0  # what goes in and out of one module, at most
    repair_outputs: tuple[
        int, ...
    ] = ()  # outputs kept by ``pruning/activation_cache.py`` while each of the layers is solved
    passing: int = 0  # what is alive at a time in a pass without gradients, between modules and inside of them
    moving: int = 0  # the same in a forward-mode pass

    @property
    def peak(self) -> int:
        """Return the bytes in a pass without gradients: a module's input and output, or a third of the live tensors if
        larger.

        The plan counts three times as much, since kernels allocate memory that no tensor shows.
        """
        return max(self.live, self.passing // 3)


@dataclass(frozen=True)
class Sizes:
    """The sizes in all formulas. ``samples`` are fitted, ``batch`` of them at a time."""

    layers: tuple[LayerSize, ...]
    state: int  # bytes of the network's parameters and buffers
    parameters: int  # floating-point ones, prunable or not
    samples: int = 0
    held_out: int = 0
    batch: int = 1
    outputs: int = 1  # of the network
    activations: Activations = field(default_factory=Activations)
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
    """Return the bytes of a batch in a pass without gradients: its samples, and the tensors of a module."""
    return _of_batch(sizes, 2 * sizes.activations.sample + 3 * sizes.activations.peak)


def backward(sizes: Sizes) -> int:
    """Return the bytes of a batch with its graph, and of the gradients of all layers' outputs."""
    outputs = FLOAT * sum(layer.outputs for layer in sizes.layers)
    return forward(sizes) + graph(sizes) + _of_batch(sizes, outputs)


def graph(sizes: Sizes) -> int:
    """Return the bytes that a batch's forward pass keeps for the backward pass."""
    return _of_batch(sizes, sizes.activations.kept)


def sample_gradients(sizes: Sizes) -> int:
    """Return the bytes of backward passes that compute gradients of single samples, some at a time.

    They are those of one layer, with its unfolded inputs and outputs.
    """
    each = FLOAT * max(max(layer.weights, _unfolded(layer)) for layer in sizes.layers)
    return backward(sizes) + 3 * min(sizes.batch * each, max(sizes.gradients, each))


def _unfolded(layer: LayerSize) -> int:
    return layer.groups * layer.columns * layer.positions


def directional(sizes: Sizes) -> int:
    """Return the bytes of a batch in a forward-mode pass: values, derivatives, and batch norm as plain arithmetic."""
    peak = max(sizes.activations.peak, sizes.activations.moving // 6)
    return _of_batch(sizes, 2 * sizes.activations.sample + 6 * peak, peak)


def _of_batch(sizes: Sizes, each: int, peak: int = 0) -> int:
    """Return the bytes of a batch. Tensors of a pass have all sizes, and leave gaps in memory."""
    mapped = sizes.batch * max(peak, sizes.activations.peak) >= 2 * _MAPPED
    return int((1.1 if mapped else SLACK) * sizes.batch * each)


def largest_of(layers: Sequence[LayerSize], need: Callable[[LayerSize], int]) -> tuple[int, str]:
    """Return the most that a layer needs, and its name."""
    most = max(layers, key=need)
    return need(most), most.name


def measure(
    network: Network, x: Tensor, repair_outputs: Callable[[Mapping[nn.Module, int]], Sequence[int]]
) -> _Measured:
    """Return what one sample ``x`` (1, ...) needs, from one forward pass with its graph.

    ``repair_outputs`` computes from every module's output bytes what repair keeps while each layer is solved.
    ``live_memory.py`` measures the tensors inside of modules.
    """
    module, owner = network.module, {m: layer.name for layer in network.layers for m in layer.modules}
    live, outputs = 0, dict[nn.Module, int]()
    layers: dict[str, LayerSize] = {layer.name: _size(layer) for layer in network.layers}

    def record(m: nn.Module, inputs: tuple[object, ...], y: object) -> None:
        nonlocal live
        outputs[m] = outputs.get(m, 0) + _bytes(y)
        if not any(True for _ in m.children()):
            live = max(live, _bytes(inputs) + _bytes(y))
        if m in owner and isinstance(y, Tensor) and inputs and isinstance(inputs[0], Tensor):
            layer, into = layers[owner[m]], inputs[0]
            # A first dimension that is a multiple of the batch counts as more positions of a sample.
            each = len(into) * positions(m, into, y) if into.dim() > 1 else 1
            layers[owner[m]] = LayerSize(
                layer.name,
                layer.groups,
                layer.rows,
                layer.columns,
                each + (layer.positions if layer.inputs else 0),
                layer.inputs + into.numel(),
                layer.outputs + y.numel(),
                layer.calls + (1 if layer.inputs else 0),
            )

    handles = [m.register_forward_hook(record) for m in module.modules()]
    try:
        kept, answer = _left_for_backward(module, x.clone())  # it may be a view of many samples
    finally:
        for handle in handles:
            handle.remove()
    activations = Activations(x.numel() * max(FLOAT, x.element_size()), kept, live, tuple(repair_outputs(outputs)))
    return _Measured(tuple(layers.values()), activations, answer[0].numel())


@dataclass(frozen=True)
class _Measured:
    layers: tuple[LayerSize, ...]
    activations: Activations
    outputs: int


def _size(layer: Layer) -> LayerSize:
    groups, rows, columns = layer.matrix(layer.weight.detach()).shape
    return LayerSize(layer.name, groups, rows, columns)


def layer_sizes(network: Network) -> tuple[LayerSize, ...]:
    """Return the layers as matrices, without what only a sample shows."""
    return tuple(_size(layer) for layer in network.layers)


def _left_for_backward(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """Return (bytes kept for the backward pass, without parameters and buffers; the outputs)."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}
    tensors = []  # an address stands for one tensor only as long as that lives

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            tensors.append(t)
        return t

    with (
        evaluating(module),
        trainable(p for p in module.parameters() if p.is_floating_point()),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        answer = read_outputs(module, module(x)).detach()
    return sum(sizes.values()), answer


def _bytes(value: object) -> int:
    """Return the bytes of the tensors in a module's inputs or outputs."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0


def state_bytes(module: nn.Module) -> int:
    """Return the bytes of the parameters and buffers, each counted once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(prod(t.shape) * t.element_size() for t in tensors.values())


def release() -> None:
    """Return freed memory to the system: the C library keeps it otherwise, and the next phase's tensors add to it."""
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch has a class for that on CUDA only."""
    messages = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(one in str(error) for one in messages)
