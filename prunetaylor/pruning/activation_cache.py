"""The outputs of modules whose layers are final are stored, so that later passes do not compute them again.

While layers are solved in the order in which they run, everything that ran before the current one is final. A module
all of whose prunable layers are solved gives the same outputs in every pass to come: they are stored, and replayed in
place of the module. A pass then costs the part of the network that is new, instead of all of it up to the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from prunetaylor.network.layer import Layer
from prunetaylor.taylor.memory import chunk_size
from prunetaylor.taylor.passes import OutputHook, hooked

KEPT_BYTES = 1 << 29
"""For the outputs that are kept at one time; what does not fit is computed again, which costs time and nothing else."""


def bytes_by_layer(module: nn.Module, layers: Sequence[Layer], outputs: Mapping[nn.Module, int]) -> list[int]:
    """Return the bytes stored for one sample while each layer is solved, from the bytes of each module's outputs."""
    replay, sizes, before = ActivationCache(module, layers, 1), [], set[nn.Module]()
    for layer in layers:
        final = set(replay._largest_final())
        # What a pass adds is kept beside what it replaces until the pass is done.
        sizes.append(sum(outputs.get(m, 0) for m in final | before))
        before = final
        replay.freeze(layer)
    return sizes


class ActivationCache:
    """Outputs of final modules, by batch. Only modules that are called once a pass and return a tensor are stored."""

    def __init__(self, module: nn.Module, layers: Sequence[Layer], batches: int) -> None:
        self._module, self._batches = module, batches
        self._inside: dict[nn.Module, set[str]] = {}
        users: dict[nn.Module, set[str]] = {}
        for layer in layers:
            for name in layer.modules:
                users.setdefault(module.get_submodule(name), set()).add(layer.name)
        for child in module.modules():
            names = set().union(*(users[m] for m in child.modules() if m in users))
            if names and child is not module:
                self._inside[child] = names
        self._frozen: set[str] = set()
        self._kept: dict[nn.Module, list[Tensor]] = {}
        self._coming: dict[nn.Module, int] = {}  # bytes of what the pass at work keeps
        # Modules that share a weight are settled with the first of them, when what feeds the others may be yet to come.
        shared = {module.get_submodule(m) for layer in layers if len(layer.modules) > 1 for m in layer.modules}
        self._refused = {child for child in self._inside if not shared.isdisjoint(child.modules())}

    def freeze(self, layer: Layer) -> None:
        """Declare the layer final."""
        self._frozen.add(layer.name)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Replay the stored outputs during one pass over the batches, and store those that have become final."""
        batch = _BatchCounter()
        final = self._largest_final()
        fresh: dict[nn.Module, list[Tensor]] = {m: [] for m in final if m not in self._kept}
        replayed = [m for m in final if m in self._kept]
        # What stands in for a fresh module until it is kept itself.
        replayed += [m for m in self._kept if m not in final and any(m in set(f.modules()) for f in fresh)]
        own = {m: vars(m)["forward"] for m in replayed if "forward" in vars(m)}  # somebody else's stand-in
        for m in replayed:
            m.forward = _Replayed(self._kept[m], batch)
        keepers = {m: self._keeper(into, batch) for m, into in fresh.items()}
        try:
            with hooked(keepers, before={self._module: batch}):
                yield
        finally:
            for m in replayed:
                del m.forward
            for m, forward in own.items():
                m.forward = forward
        self._coming = {}
        for m, outputs in fresh.items():
            if m not in self._refused and len(outputs) == self._batches:
                inside = set(m.modules())
                self._kept = {n: o for n, o in self._kept.items() if n not in inside}
                self._kept[m] = outputs

    def _largest_final(self) -> list[nn.Module]:
        """Return the final modules that may be stored and lie in no other such module."""
        final = [m for m, names in self._inside.items() if names <= self._frozen and m not in self._refused]
        inner = {child for m in final for child in m.modules() if child is not m}
        return [m for m in final if m not in inner]

    def _keeper(self, into: list[Tensor], batch: _BatchCounter) -> OutputHook:
        def store(module: nn.Module, _: Any, output: Any) -> None:
            called_once = len(into) == batch.value
            if module in self._refused:
                return
            if not isinstance(output, Tensor) or not called_once or (not into and not self._fits(module, output)):
                self._refused.add(module)
                self._coming.pop(module, None)
                into.clear()
            else:
                into.append(output.clone())

        return store

    def _fits(self, module: nn.Module, output: Tensor) -> bool:
        inside = set(module.modules())
        others = sum(o.numel() * o.element_size() for m, kept in self._kept.items() if m not in inside for o in kept)
        size = output.numel() * output.element_size() * self._batches
        if others + sum(self._coming.values()) + size > chunk_size("kept", KEPT_BYTES):
            return False
        self._coming[module] = size
        return True


class _BatchCounter:
    """A hook that counts the calls of the network: the index of the current batch."""

    value = -1

    def __call__(self, *_: Any) -> None:
        self.value += 1


class _Replayed:
    def __init__(self, outputs: list[Tensor], batch: _BatchCounter) -> None:
        self._outputs, self._batch = outputs, batch

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        # A copy: whoever reads it may change it in place.
        return self._outputs[self._batch.value].clone()
