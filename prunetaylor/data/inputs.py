"""The inputs of a network for a batch of samples: a tensor, or any nesting of tensors.

A tensor is one positional argument of the network; a tuple or list holds positional arguments, a mapping keyword
arguments. torch's own pytree does the nesting (``torch.utils._pytree``, which ``torch.func`` and ``torch.export`` use).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from prunetaylor.core.errors import DataError

Rows = slice | Sequence[int]
"""Some of the samples of a batch, in an order of their own."""

Collate = Callable[[list[Any]], Any]
"""A function of a list of samples that returns a batch, as the ``collate_fn`` of a DataLoader."""


@dataclass(frozen=True)
class Collated:
    """The samples that a batch was collated from, so that some of them can be collated again.

    ``collate`` is None where the batch has come from another process, which no function of a user's can.
    ``changes`` were made to the batch's parts since.
    """

    samples: list[Any]
    collate: Collate | None
    changes: tuple[Callable[[object], object], ...] = ()

    def rows(self, rows: Rows) -> Inputs:
        """Return the inputs of some of the samples."""
        assert self.collate is not None
        chosen = self.samples[rows] if isinstance(rows, slice) else [self.samples[i] for i in rows]
        inputs = Inputs.of(self.collate(chosen), len(chosen), replace(self, samples=chosen, changes=()))
        for change in self.changes:
            inputs = inputs.change(change)
        return inputs


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of ``count`` samples.

    Tensors of a batch have the samples along their first dimension. Other parts (a number, None, a string, a tensor of
    another length) belong to every sample. Where such parts do not allow a batch to be cut, as where the nodes of many
    graphs lie in one tensor, the samples in ``collated`` are combined again.
    """

    tree: object
    count: int
    collated: Collated | None = None

    @classmethod
    def of(cls, tree: object, count: int | None = None, collated: Collated | None = None) -> Inputs:
        """Return nested tensors as inputs; without ``count`` they have as many samples as their first tensor has rows.

        Mappings of any class become dictionaries. Raises DataError: there is no tensor to count.
        """
        tree = _plain(tree)
        if count is None:
            first = next((leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.dim()), None)
            if first is None:
                raise DataError("the inputs contain no tensor with a batch dimension", "give tensors (N, ...)")
            count = len(first)
        return cls(tree, count, collated)

    @classmethod
    def cat(cls, parts: Sequence[Inputs]) -> Inputs:
        """Join batches of one structure. Raises DataError: their tensors do not fit together."""
        if len(parts) == 1:
            return parts[0]
        count = sum(part.count for part in parts)
        collated = _joined([part.collated for part in parts])
        leaves, specs = zip(*(tree_flatten(part.tree) for part in parts), strict=True)
        shapes = {tuple(t.shape[1:] if isinstance(t, Tensor) else None for t in one) for one in leaves}
        same = len(set(map(str, specs))) == 1 and len(shapes) == 1
        if same and all(part.divisible for part in parts):
            joined = [torch.cat(some) if isinstance(some[0], Tensor) else some[0] for some in zip(*leaves, strict=True)]
            return cls(tree_unflatten(joined, specs[0]), count, collated)
        if collated is None or collated.collate is None:
            raise DataError("inputs of different shapes cannot be joined", "pad them to one length")
        return collated.rows(slice(None))

    def __len__(self) -> int:
        return self.count

    @property
    def tensor(self) -> Tensor | None:
        """Return the only tensor, where the inputs are no more than that."""
        return self.tree if isinstance(self.tree, Tensor) else None

    @property
    def divisible(self) -> bool:
        """Return whether every part has one row for each sample, or belongs to every sample as it is."""
        if isinstance(self.tree, Tensor):
            return True
        return all(_is_divisible(leaf, self.count) for leaf in tree_leaves(self.tree))

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def elements(self) -> int:
        """The numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors())

    @property
    def device(self) -> torch.device:
        """The device of the first tensor."""
        return next((tensor.device for tensor in self.tensors()), torch.device("cpu"))

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors, in their order."""
        if isinstance(self.tree, Tensor):
            yield self.tree
        else:
            yield from (leaf for leaf in tree_leaves(self.tree) if isinstance(leaf, Tensor))

    def rows(self, rows: Rows) -> Inputs:
        """Return the inputs of some of the samples; a slice gives views where the batch can be cut."""
        count = len(range(self.count)[rows]) if isinstance(rows, slice) else len(rows)
        if isinstance(rows, slice) and rows.step is None and count == self.count:
            return self
        if not self.divisible and self.collated is not None and self.collated.collate is not None:
            return self.collated.rows(rows)
        at = rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long, device=self.device)

        def cut(leaf: object) -> object:
            if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != self.count:
                return leaf
            return leaf[at] if isinstance(at, slice) else leaf.index_select(0, at.to(leaf.device))

        collated = self.collated
        if collated is not None:
            some = collated.samples
            collated = replace(collated, samples=some[rows] if isinstance(rows, slice) else [some[i] for i in rows])
        return Inputs(_map(cut, self.tree), count, collated)

    def split(self, parts: int) -> list[Inputs]:
        """Return the samples in ``parts`` of about equal size, the larger ones first, as ``Tensor.tensor_split``."""
        edges = torch.arange(self.count).tensor_split(parts)
        return [self.rows(slice(int(part[0]), int(part[-1]) + 1)) if len(part) else self.rows([]) for part in edges]

    def change(self, change: Callable[[object], object]) -> Inputs:
        """Return inputs whose parts ``change`` has replaced, tensors and others, sample by sample."""
        collated = self.collated
        if collated is not None:
            collated = replace(collated, changes=(*collated.changes, change))
        return Inputs(_map(change, self.tree), self.count, collated)

    def change_tensors(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return inputs whose tensors ``change`` has replaced, sample by sample."""
        return self.change(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)

    def to(self, device: torch.device | str) -> Inputs:
        """Return the inputs on a device; what is no tensor is moved by its own method ``to``, if it has one."""

        def move(leaf: object) -> object:
            if isinstance(leaf, Tensor):
                return leaf.to(device, non_blocking=True)
            move_leaf = getattr(leaf, "to", None)
            return move_leaf(device) if callable(move_leaf) else leaf

        return self.change(move)

    def sendable(self) -> Inputs:
        """Return the inputs as another process can receive them: without the user's function."""
        return self if self.collated is None else replace(self, collated=replace(self.collated, collate=None))

    def collated_by(self, collate: Collate | None) -> Inputs:
        """Return inputs that another process has sent, with the function that their samples were collated by."""
        return self if self.collated is None else replace(self, collated=replace(self.collated, collate=collate))

    def is_finite(self) -> bool:
        """Return whether all numbers are finite."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors())

    def call(self, module: nn.Module, state: Mapping[str, Tensor] | None = None) -> object:
        """Return what the network computes from the inputs; ``state`` replaces parameters and buffers by name."""
        positional, named = self.arguments(module)
        if state is None:
            return module(*positional, **named)
        return functional_call(module, dict(state), positional, named)

    def arguments(self, module: nn.Module) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return the positional and the keyword arguments for a call of ``module``.

        A tuple or a mapping is a single argument for a network whose signature allows nothing else.
        """
        if isinstance(self.tree, tuple | list):
            call: tuple[tuple[object, ...], dict[str, object]] = (tuple(self.tree), {})
        elif isinstance(self.tree, dict):
            call = (), self.tree
        else:
            return (self.tree,), {}
        whole: tuple[tuple[object, ...], dict[str, object]] = ((self.tree,), {})
        return whole if not _accepts(module, *call) and _accepts(module, *whole) else call

    def describe(self) -> str:
        """Return the types and shapes of one sample: ``uint8 (3, 32, 32)``, ``{ids: int64 (6,), mask: bool (6,)}``."""
        return _describe(self.tree)


def _plain(value: object) -> object:
    """Return nested values with dictionaries for mappings of any class: pytree would take others for single values."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return tuple(map(_plain, value)) if type(value) is tuple else value  # a named tuple stays one


def _map(change: Callable[[object], object], tree: object) -> object:
    return change(tree) if isinstance(tree, Tensor) else tree_map(change, tree)


def _is_divisible(leaf: object, count: int) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.dim() > 0 and len(leaf) == count
    return leaf is None or isinstance(leaf, str | bytes | bool | int | float)


def _joined(parts: Sequence[Collated | None]) -> Collated | None:
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return replace(known[0], samples=[sample for part in known for sample in part.samples])


def _accepts(module: nn.Module, positional: tuple[object, ...], named: dict[str, object]) -> bool:
    try:
        inspect.signature(module.forward).bind(*positional, **named)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape[1:])}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_describe(part)}" for key, part in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_describe, value)) + ")"
    return type(value).__name__
