"""What a run holds in memory, in bytes, said before it starts; and how much of everything is held at a time.

Each curvature, criterion and repair has functions beside it that state what it holds, from :class:`Sizes` alone. A
criterion's ``memory(sizes)`` lists its moments as :class:`Phase`; ``pipeline/memory_plan.py`` adds what a run holds
besides, and chooses :class:`ChunkDivisors` under which the largest phase fits. The code that works in chunks asks
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
from prunetaylor.taylor.objective import outputs_of

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
    """How many times less than usual is held at a time; 1 is as usual. No result depends on it beyond rounding.

    Each module has its usual amount beside its code, and divides it by the field that it asks for. One does change the
    result: batch norms train on the statistics of the samples that they see together, which ``training`` makes fewer.
    """

    batch: int = 1  # calibration samples in a batch
    systems: int = 1  # matrices that are factorised together, columns that are taken together
    rows: int = 1  # gradients of single samples; fewer cost more passes
    kept: int = 1  # outputs that least squares keeps so as not to compute them again
    training: int = 1  # samples that gradients are taken of together; a step is of as many as before


_chunks = ContextVar("chunks", default=ChunkDivisors())  # noqa: B039 frozen


def current_chunks() -> ChunkDivisors:
    """What holds now; the usual amounts outside of :func:`use_chunks`."""
    return _chunks.get()


@contextmanager
def use_chunks(chosen: ChunkDivisors) -> Iterator[None]:
    """``chosen`` holds inside."""
    token = _chunks.set(chosen)
    try:
        yield
    finally:
        _chunks.reset(token)


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
    """Bytes that one sample needs in a pass."""

    sample: int = 0  # itself, as the network takes it
    kept: int = 0  # what a forward pass leaves for the backward one
    live: int = 0  # what goes in and out of one module, at most
    settled: tuple[
        int, ...
    ] = ()  # outputs kept by ``pruning/repair/activation_cache.py`` while each of the layers is solved
    passing: int = 0  # what is alive at a time in a pass without gradients, between modules and inside of them
    moving: int = 0  # the same in a forward-mode pass

    @property
    def at_work(self) -> int:
        """In a pass without gradients: what goes in and out of one module, or a third of what is alive if that is more.

        Three times that is what is planned: kernels take room that no tensor shows.
        """
        return max(self.live, self.passing // 3)


@dataclass(frozen=True)
class Sizes:
    """All that the formulas are made of. ``samples`` are those that are fitted, ``batch`` of them at a time."""

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
    """A moment of a run: bytes by what they are for. ``layer`` is the one that asks for the most, where one does."""

    name: str
    parts: Mapping[str, int]
    layer: str | None = None

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def plus(self, *more: Mapping[str, int]) -> Phase:
        """With more of some parts."""
        parts = dict(self.parts)
        for name, size in (item for one in more for item in one.items()):
            parts[name] = parts.get(name, 0) + size
        return Phase(self.name, parts, self.layer)


def forward(sizes: Sizes) -> int:
    """A batch in a pass without gradients: its samples, a module at work and what waits beside it."""
    return _of_batch(sizes, 2 * sizes.activations.sample + 3 * sizes.activations.at_work)


def backward(sizes: Sizes) -> int:
    """A batch with its graph, and the gradients of all layers' outputs."""
    outputs = FLOAT * sum(layer.outputs for layer in sizes.layers)
    return forward(sizes) + graph(sizes) + _of_batch(sizes, outputs)


def graph(sizes: Sizes) -> int:
    """What a batch's forward pass leaves for the backward one."""
    return _of_batch(sizes, sizes.activations.kept)


def sample_gradients(sizes: Sizes) -> int:
    """Backward passes that take gradients of single samples from every layer, some at a time.

    Those of one layer, and its unfolded inputs and outputs.
    """
    each = FLOAT * max(max(layer.weights, _unfolded(layer)) for layer in sizes.layers)
    return backward(sizes) + 3 * min(sizes.batch * each, max(sizes.gradients, each))


def _unfolded(layer: LayerSize) -> int:
    return layer.groups * layer.columns * layer.positions


def directional(sizes: Sizes) -> int:
    """A batch in a forward-mode pass: values and derivatives, batch norm as plain arithmetic."""
    at_work = max(sizes.activations.at_work, sizes.activations.moving // 6)
    return _of_batch(sizes, 2 * sizes.activations.sample + 6 * at_work, at_work)


def _of_batch(sizes: Sizes, each: int, at_work: int = 0) -> int:
    """So many bytes a sample. Tensors of a pass come and go in all sizes, and leave gaps between them."""
    mapped = sizes.batch * max(at_work, sizes.activations.at_work) >= 2 * _MAPPED
    return int((1.1 if mapped else SLACK) * sizes.batch * each)


def largest_of(layers: Sequence[LayerSize], need: Callable[[LayerSize], int]) -> tuple[int, str]:
    """The most that a layer needs, and its name."""
    most = max(layers, key=need)
    return need(most), most.name


def measure(network: Network, x: Tensor, settled: Callable[[Mapping[nn.Module, int]], Sequence[int]]) -> _Measured:
    """What one sample ``x`` (1, ...) needs, from one forward pass with its graph and one look at what it left.

    ``settled`` makes of every module's output bytes what repair keeps while each layer is solved. What is alive inside
    of modules is for ``live_memory.py`` to say.
    """
    module, owner = network.module, {m: layer.name for layer in network.layers for m in layer.modules}
    live, outputs = 0, dict[nn.Module, int]()
    found: dict[str, LayerSize] = {layer.name: _size(layer) for layer in network.layers}

    def look(m: nn.Module, inputs: tuple[object, ...], y: object) -> None:
        nonlocal live
        outputs[m] = outputs.get(m, 0) + _bytes(y)
        if not any(True for _ in m.children()):
            live = max(live, _bytes(inputs) + _bytes(y))
        if m in owner and isinstance(y, Tensor) and inputs and isinstance(inputs[0], Tensor):
            layer, into = found[owner[m]], inputs[0]
            # A first dimension that is a multiple of the batch counts as more positions of a sample.
            each = len(into) * positions(m, into, y) if into.dim() > 1 else 1
            found[owner[m]] = LayerSize(
                layer.name,
                layer.groups,
                layer.rows,
                layer.columns,
                each + (layer.positions if layer.inputs else 0),
                layer.inputs + into.numel(),
                layer.outputs + y.numel(),
                layer.calls + (1 if layer.inputs else 0),
            )

    handles = [m.register_forward_hook(look) for m in module.modules()]
    try:
        kept, answer = _left_for_backward(module, x.clone())  # it may be a view of many samples
    finally:
        for handle in handles:
            handle.remove()
    activations = Activations(x.numel() * max(FLOAT, x.element_size()), kept, live, tuple(settled(outputs)))
    return _Measured(tuple(found.values()), activations, answer.shape[1])


@dataclass(frozen=True)
class _Measured:
    layers: tuple[LayerSize, ...]
    activations: Activations
    outputs: int


def _size(layer: Layer) -> LayerSize:
    groups, rows, columns = layer.matrix(layer.weight.detach()).shape
    return LayerSize(layer.name, groups, rows, columns)


def layer_sizes(network: Network) -> tuple[LayerSize, ...]:
    """The layers as matrices, where no sample says more."""
    return tuple(_size(layer) for layer in network.layers)


def _left_for_backward(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """(bytes that a forward pass leaves for the backward one, parameters and buffers aside; the outputs)."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    left: dict[int, int] = {}
    alive = []  # an address stands for one tensor only as long as that lives

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            left[storage.data_ptr()] = storage.nbytes()
            alive.append(t)
        return t

    with (
        evaluating(module),
        trainable(p for p in module.parameters() if p.is_floating_point()),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        answer = outputs_of(module(x)).detach()
    return sum(left.values()), answer


def _bytes(value: object) -> int:
    """Of the tensors in what goes in or out of a module."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0


def state_bytes(module: nn.Module) -> int:
    """Of the parameters and buffers, each counted once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(prod(t.shape) * t.element_size() for t in tensors.values())


def release() -> None:
    """Give the system back what was freed: the C library keeps it otherwise, and the next phase's tensors add to it."""
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that tensors found no room: torch has a class for it on CUDA only."""
    said = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(one in str(error) for one in said)
