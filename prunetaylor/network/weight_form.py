"""A weight form says which dimensions of a weight count groups, rows and columns of its matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

from torch import Tensor


@dataclass(frozen=True)
class WeightForm:
    """A weight, reshaped to ``sizes``, has one role a dimension: g counts groups, r rows and c columns.

    A convolution's weight has (groups, out, in x kernel) and grc, a transposed one's gcrc, the matrix in x @ W cr.
    """

    sizes: tuple[int, ...]
    roles: str

    @classmethod
    def of(cls, sizes: Sequence[int], roles: str) -> WeightForm:
        """Return the shortest equal form: dimensions of one entry are left out, neighbours with one role are one."""
        merged: list[tuple[int, str]] = []
        for size, role in zip(sizes, roles, strict=True):
            if size == 1:
                continue
            if merged and merged[-1][1] == role:
                merged[-1] = (merged[-1][0] * size, role)
            else:
                merged.append((size, role))
        return cls(tuple(size for size, _ in merged), "".join(role for _, role in merged))

    @property
    def groups(self) -> int:
        """Return G, the number of groups."""
        return self._count("g")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (G, R, C)."""
        return self._count("g"), self._count("r"), self._count("c")

    @cached_property
    def _order(self) -> tuple[int, ...]:
        return tuple(i for role in "grc" for i, one in enumerate(self.roles) if one == role)

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as (G, R, C); a view if strides allow it."""
        return tensor.reshape(self.sizes).permute(self._order).reshape(self.shape)

    def tensor(self, matrix: Tensor) -> Tensor:
        """Return (G, R, C) in the order of the weight's entries, as ``sizes``: the inverse of :meth:`matrix`."""
        permuted = matrix.reshape([self.sizes[i] for i in self._order])
        return permuted.permute([self._order.index(i) for i in range(len(self.sizes))])

    def _count(self, role: str) -> int:
        return prod(size for size, one in zip(self.sizes, self.roles, strict=True) if one == role)


@dataclass(frozen=True)
class WeightBlock:
    """The part of a weight that one product reads: its entries from ``start`` on, in their order, have this form."""

    start: int
    form: WeightForm

    @property
    def size(self) -> int:
        """Return the number of entries."""
        return prod(self.form.sizes)


def common_form(blocks: Sequence[WeightBlock], size: int) -> WeightForm | None:
    """Return the form of a weight of ``size`` entries of which products read these blocks; None if they disagree.

    Blocks of rows that are multiplied with inputs of their own, as the queries' and the keys' in one projection, are
    groups. They are all as large: the largest size of which the blocks are made.
    """
    base = gcd(size, *(n for block in blocks for n in (block.start, block.size)))
    forms = {_split(block, base) for block in blocks}
    if len(forms) != 1:
        return None
    (form,) = forms
    return None if form is None else WeightForm.of((size // base, *form.sizes), f"g{form.roles}")


def has_form(block: WeightBlock, form: WeightForm, size: int) -> bool:
    """Return whether a product that reads this block of a weight of ``size`` entries reads it in the given form."""
    base = size // form.sizes[0] if form.roles.startswith("g") else size
    if block.size % base:
        return False
    part = _split(block, base)
    return part is not None and form == WeightForm.of((size // base, *part.sizes), f"g{part.roles}")


def _split(block: WeightBlock, base: int) -> WeightForm | None:
    """Return the form of each of the parts of ``base`` entries into which a block is cut; None: they cut a row."""
    count, sizes, roles = block.size // base, block.form.sizes, block.form.roles
    if count == 1:
        return block.form
    if roles[0] == "c" or sizes[0] % count:
        return None
    return WeightForm.of((sizes[0] // count, *sizes[1:]), roles)
