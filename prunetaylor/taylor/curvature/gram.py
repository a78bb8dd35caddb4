"""Layer Gram matrices are the curvature of a layer's own output error, which all its rows share.

For a layer y = W x the error of moving W by D, towards targets t = y (or another network's outputs), is

    e(D) = mean_p ||(W + D) x_p - t_p||^2,       Hessian / 2 = H = mean_p x_p x_p'   for every row

(Hassibi & Stork 1992 per layer; Dong et al. 2017; Frantar & Alistarh 2022, section 3). Some 32 positions an image are
enough: all of them cost fifty times more and change nothing. Inputs carry a last column of ones, so that means, and
with them the best intercept, are part of the same sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Batches
from prunetaylor.network.layer import Call, Layer
from prunetaylor.runtime.processes.exchange import all_sum, from_first_owner
from prunetaylor.runtime.processes.group import world
from prunetaylor.taylor.passes import Watch, forward_own

POSITIONS = 32
"""Output positions drawn from each sample, for layers that have more."""
BLOCK_ROWS = 256  # rows of a large matrix at a time: 5 MiB in float32 for the largest of ResNet-50, of 4608 columns


@dataclass
class Moments:
    """Mean products of a layer's inputs x, with a one appended, and its targets t over ``rows`` output positions.

    xx: (G, C+1, C+1),  tx: (G, R, C+1),  tt: (G, R); float64 (float32 on devices without it).
    """

    xx: Tensor
    tx: Tensor
    tt: Tensor
    rows: int

    @property
    def variance(self) -> Tensor:
        """Return the variance of the targets, (G, R)."""
        return (self.tt - self.tx[..., -1].square()).clamp_min(0)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Return the covariances (G, C, C) of x and (G, R, C) of t with x, for a layer whose intercept fits the means.

        An input whose variance is mere rounding counts as constant: its covariances are exactly zero.
        """
        products, mean = self.xx[..., :-1, :-1], self.xx[..., -1, :-1]
        h = products - _outer(mean, mean)
        cross = self.tx[..., :-1] - self.tx[..., -1:] * mean.unsqueeze(1)
        rounding = 100 * torch.finfo(h.dtype).eps * products.diagonal(dim1=-2, dim2=-1)
        is_constant = (h.diagonal(dim1=-2, dim2=-1) <= rounding).unsqueeze(1)  # (G, 1, C)
        return h.masked_fill(is_constant | is_constant.mT, 0), cross.masked_fill(is_constant, 0)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Return the second moments (G, C, C) and (G, R, C), for a layer without an intercept."""
        return self.xx[..., :-1, :-1], self.tx[..., :-1]


def pack(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """Return moments by layer name as plain tensors by name, in the same order."""
    return {
        f"{part}:{name}": tensor
        for name, m in moments.items()
        for part, tensor in (("xx", m.xx), ("tx", m.tx), ("tt", m.tt), ("rows", torch.tensor(m.rows)))
    }


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Return the moments that :func:`pack` was given."""
    moments = {}
    for name in [key.removeprefix("xx:") for key in tensors if key.startswith("xx:")]:
        xx, tx, tt, rows = (tensors[f"{part}:{name}"] for part in ("xx", "tx", "tt", "rows"))
        moments[name] = Moments(xx, tx, tt, int(rows))
    return moments


class Positions:
    """The output positions drawn from each sample: the same ones in every pass, however samples are batched.

    Each sample's positions, turned by a random amount, are split into strata with one position drawn from each: they
    are distinct, and each is as likely as any other. The draw depends on the seed and on the sample's index alone.
    """

    def __init__(self, samples: int, seed: int, per_sample: int = POSITIONS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.offsets = torch.rand(samples, per_sample, generator=generator)
        self.turns = torch.rand(samples, 1, generator=generator)
        self.per_sample = per_sample

    def pick(self, start: int, samples: int, entries: int, each: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (entries, at) of the rows drawn from a tensor of ``entries`` x ``each`` positions.

        A first dimension that is a multiple of the batch (windows, frames) counts as more positions of a sample.
        """
        if entries % samples:  # rows that belong to no sample (a learned query): all of them
            flat = torch.arange(entries * each)
        else:
            total = entries // samples * each
            if total <= self.per_sample:
                offsets = torch.arange(total).expand(samples, total)
            else:
                edges = torch.arange(self.per_sample + 1) * total // self.per_sample
                low, size = edges[:-1], edges.diff()
                drawn = low + (self.offsets[start : start + samples] * size).long()
                offsets = (drawn + (self.turns[start : start + samples] * total).long()) % total
            flat = (offsets + torch.arange(samples).unsqueeze(1) * total).flatten()
        flat = flat.to(device)
        return flat // each, flat % each


def sampled_rows(call: Call, where: Positions, start: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return inputs (G, P, C) and outputs (G, P, R) of a call at the drawn positions."""
    x, y, geometry = call.inputs, call.outputs, call.geometry
    at = where.pick(start, samples, len(x), geometry.positions(y), x.device)
    return geometry.input_rows(x, y, *at), geometry.output_rows(y, *at)


def accumulate_type(device: torch.device) -> torch.dtype:
    """Return the widest type that a device can sum and factorise in."""
    return torch.float32 if device.type == "mps" else torch.float64


class Accumulator:
    """Sums of products, turned into :class:`Moments` at the end.

    Products are of x - s and t - r, with s and r the first row of each: values with means far from zero would lose
    their covariances to rounding, and those of a constant input are exactly zero.
    """

    def __init__(self) -> None:
        self.shifts: tuple[Tensor, Tensor] | None = None  # s (G, 1, C), r (G, 1, R)
        self.sums: tuple[Tensor, Tensor, Tensor] | None = None  # of the first, blocks on and above the diagonal
        self.rows = 0

    def add(self, x: Tensor, t: Tensor) -> None:
        """Add rows of inputs (G, P, C) and of targets (G, P, R)."""
        x, t, wide = x.float(), t.float(), accumulate_type(x.device)
        (groups, count, columns), rows = x.shape, t.shape[2]
        if self.shifts is None or self.sums is None:
            self.shifts = x[:, :1].clone(), t[:, :1].clone()
            self.sums = (
                x.new_zeros((groups, columns + 1, columns + 1), dtype=wide),
                x.new_zeros((groups, rows, columns + 1), dtype=wide),
                x.new_zeros((groups, rows), dtype=wide),
            )
        with_one = x.new_ones((groups, count, columns + 1))
        torch.sub(x, self.shifts[0], out=with_one[..., :-1])
        t = t - self.shifts[1]
        xx, tx, tt = self.sums
        # Products are taken in float32, a batch at a time, and summed in the wide type; in blocks, for the lower half
        # of a symmetric matrix need not be made, nor a large one be held in two more types.
        for some in _blocks(xx):
            xx[:, some, some.start :] += with_one[..., some].mT @ with_one[..., some.start :]
        _add_products(tx, t.mT, with_one)
        tt += t.square().sum(1)
        self.rows += count

    def _move(self, s: Tensor, r: Tensor) -> None:
        """Change the sums to those of the products of x - s and t - r."""
        assert self.shifts is not None
        assert self.sums is not None
        xx, tx, tt = self.sums
        a, b = ((old.to(xx) - new.to(xx)).squeeze(1) for old, new in zip(self.shifts, (s, r), strict=True))
        a = torch.cat([a, torch.zeros_like(a[:, :1])], dim=1)  # the column of ones is not shifted
        x_sum, t_sum = xx[..., -1].clone(), tx[..., -1].clone()
        # Of the first, the last column is right above its diagonal only; it has the sums of x - s.
        _add_products(xx, torch.stack([x_sum, a], 2), torch.stack([a, x_sum + self.rows * a], 1))
        _add_products(tx, torch.stack([b, t_sum], 2), torch.stack([x_sum + self.rows * a, a], 1))
        tt += 2 * b * t_sum + self.rows * b.square()
        self.shifts = s, r

    def moments(self) -> Moments:
        """Return the means. They reuse the memory of the sums, so nothing can be added afterwards."""
        assert self.shifts is not None
        assert self.sums is not None
        xx, tx, tt = (total.div_(self.rows) for total in self.sums)
        self.sums = None
        s, r = (shift.squeeze(1).to(xx) for shift in self.shifts)
        s = torch.cat([s, torch.zeros_like(s[:, :1])], dim=1)  # the column of ones is not shifted
        x_mean, t_mean = xx[..., -1].clone(), tx[..., -1].clone()
        for some in _blocks(xx):
            xx[:, some.stop :, some] = xx[:, some, some.stop :].mT
        # (u + s)(u + s)' = uu' + s a' + a s'  with  a = u + s/2, in means;  (v + r)(u + s)' = vu' + r (u + s)' + v s'
        a = x_mean + s / 2
        _add_products(xx, torch.stack([s, a], 2), torch.stack([a, s], 1))
        _add_products(tx, torch.stack([r, t_mean], 2), torch.stack([x_mean + s, s], 1))
        return Moments(xx, tx, tt + 2 * r * t_mean + r.square(), self.rows)


def moments_of_all(sums: Mapping[str, Accumulator]) -> dict[str, Moments]:
    """Return the moments over all processes by name; the accumulators cannot be used afterwards.

    A name that one process lacks must be in another's ``sums``.
    """
    if world() == 1:
        return {name: total.moments() for name, total in sums.items()}
    shifts = {f"{part}{name}": t for name, own in sums.items() for part, t in zip("sr", own.shifts or (), strict=True)}
    common = from_first_owner(shifts)
    mine: dict[str, Tensor] = {}
    for name, own in sums.items():
        own._move(common[f"s{name}"], common[f"r{name}"])
        mine |= {f"{i}{name}": total for i, total in enumerate(own.sums or ())}
        mine[f"n{name}"] = torch.tensor(own.rows)
    whole = all_sum(mine)
    moments = {}
    for name in [key[1:] for key in whole if key[0] == "n"]:
        total = Accumulator()
        total.shifts = common[f"s{name}"], common[f"r{name}"]
        total.sums = whole[f"0{name}"], whole[f"1{name}"], whole[f"2{name}"]
        total.rows = int(whole[f"n{name}"])
        moments[name] = total.moments()
    return moments


class LayerSums:
    """Accumulators of layers. One whose calls compute only some of its groups has an accumulator for each group."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._sums: dict[str, Accumulator] = {}

    def add(self, call: Call, x: Tensor, t: Tensor) -> None:
        """Add rows of inputs (G, P, C) and of targets (G, P, R) of the groups that the call computes."""
        name = call.layer.name
        if not call.layer.by_group:
            self._sums.setdefault(name, Accumulator()).add(x, t)
            return
        for i, g in enumerate(range(*call.groups)):
            self._sums.setdefault(_key(name, g), Accumulator()).add(x[i : i + 1], t[i : i + 1])

    def moments(self) -> dict[str, Moments]:
        """Return the moments over all processes by layer name; the sums cannot be used afterwards.

        Those of a group that no sample reaches are zero.
        """
        moments = moments_of_all(self._sums)
        for name, layer in self._layers.items():
            if layer.by_group and (known := [g for g in range(layer.groups) if _key(name, g) in moments]):
                some = moments[_key(name, known[0])]
                none = Moments(torch.zeros_like(some.xx), torch.zeros_like(some.tx), torch.zeros_like(some.tt), 0)
                parts = [moments.pop(_key(name, g), none) for g in range(layer.groups)]
                xx, tx, tt = (torch.cat([getattr(part, key) for part in parts]) for key in ("xx", "tx", "tt"))
                moments[name] = Moments(xx, tx, tt, max(part.rows for part in parts))
        return moments


def _key(name: str, group: int) -> str:
    return f"{name}/{group}"


def _blocks(total: Tensor) -> Iterator[slice]:
    """Yield slices of the rows of (G, R, C)."""
    for low in range(0, total.shape[1], BLOCK_ROWS):
        yield slice(low, low + BLOCK_ROWS)


def _add_products(total: Tensor, left_factor: Tensor, right_factor: Tensor) -> None:
    """Add (G, R, K) @ (G, K, C) in place, in blocks that need little memory."""
    for some in _blocks(total):
        total[:, some] += left_factor[:, some] @ right_factor


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a.unsqueeze(2) * b.unsqueeze(1)


def layer_moments(module: nn.Module, layers: Sequence[Layer], batches: Batches, where: Positions) -> dict[str, Moments]:
    """Return the moments of each layer with its own outputs as targets, by layer name, from one pass.

    The order is that in which the layers run; layers that no sample reaches have no entry.
    """
    sums = LayerSums(layers)

    def add(start: int, samples: int, call: Call) -> None:
        sums.add(call, *sampled_rows(call, where, start, samples))

    for _ in forward_own(module, batches, watch=Watch(layers, add)):
        pass
    return sums.moments()
