"""What the processes of one run tell each other: sums, rows in the samples' order, the main process's word.

For one process alone all of this gives back what it gets. Numbers on a GPU go through NCCL, everything else through
gloo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prunetaylor.runtime.processes.group import agree, exchanging, gather_objects, main_process, rank, world

T = TypeVar("T")

BUCKET_BYTES = 1 << 25
"""Of what travels together: large enough for a network's bandwidth, small beside what is summed."""


def from_main(value: T) -> T:
    """The main process's small plain value."""
    return gather_objects(value if main_process() else None)[0]  # type: ignore[return-value]


def smallest(value: int | None) -> int | None:
    """The smallest of the processes' numbers; None where nobody has one."""
    return min((one for one in gather_objects(value) if one is not None), default=None)


def all_sum(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each tensor over all processes, by name: the same bits on all of them.

    A tensor that is laid out plainly is summed in place. What a process does not have counts as zero, so that one
    without samples need not know what there is to sum; the names' order is that of the first process that has them.
    """
    if world() == 1:
        return dict(tensors)
    shapes = {name: (tuple(t.shape), t.dtype, t.device.type) for name, t in tensors.items()}
    same = set(gather_objects(hashlib.sha256(repr(shapes).encode()).digest()))
    known = [shapes] if len(same) == 1 else gather_objects(shapes)
    found = {}
    # Of those that are there under a name the first one says how it looks.
    for name, (shape, dtype, device) in {n: s for one in reversed(known) for n, s in one.items()}.items():
        own = tensors[name] if name in tensors else torch.zeros(shape, dtype=dtype, device=_on(device))
        found[name] = own.detach().contiguous()
    with exchanging():
        reduce_in_place([found[name] for name in sorted(found)])
    order = dict.fromkeys(name for one in known for name in one)
    return {name: found[name] for name in order}


def reduce_in_place(tensors: Sequence[Tensor]) -> None:
    """Sum each over all processes, which have the same ones in the same order; small ones travel together."""
    for bucket in _buckets(tensors):
        alone = len(bucket) == 1 and bucket[0].is_contiguous()
        flat = bucket[0] if alone else torch.cat([t.reshape(-1) for t in bucket])
        dist.all_reduce(flat)
        if not alone:
            for t, summed in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                t.copy_(summed.view(t.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, of one type and device each, up to BUCKET_BYTES or one tensor."""
    bucket: list[Tensor] = []
    size = 0
    for t in tensors:
        alike = not bucket or (t.dtype, t.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not alike or size + t.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(t)
        size += t.nbytes
    if bucket:
        yield bucket


def sum_numbers(*values: float) -> list[float]:
    """The sum of each over all processes; all give the same number of them."""
    if world() == 1:
        return list(values)
    agree()
    total = torch.tensor(values, dtype=torch.float64)
    with exchanging():
        dist.all_reduce(total)
    return [float(x) for x in total]


def first_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor as the first process that has one of its name has it."""
    if world() == 1:
        return dict(tensors)
    owners: dict[str, int] = {}
    for which, names in enumerate(gather_objects(list(tensors))):
        for name in names:
            owners.setdefault(name, which)
    return all_sum({n: t.clone() if owners[n] == rank() else torch.zeros_like(t) for n, t in tensors.items()})


def gather_rows(rows: Tensor) -> Tensor:
    """The processes' tensors (n_i, ...), one after another in their order: (N, ...) on each of them.

    One without rows need not know how they look.
    """
    if world() == 1:
        return rows
    known = gather_objects((len(rows), tuple(rows.shape[1:]), rows.dtype))
    _, shape, dtype = next((one for one in known if one[0]), known[0])
    counts = [count for count, _, _ in known]
    whole = rows.new_empty((sum(counts), *shape), dtype=dtype)
    edges = list(accumulate(counts, initial=0))
    with exchanging():
        for which, (low, high) in enumerate(pairwise(edges)):
            if low < high:
                part = rows.detach().contiguous() if which == rank() else whole[low:high]
                _broadcast(part, which)
                whole[low:high] = part
    return whole


def tensors_from_main(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The main process's tensors, by name, laid out as there and on the CPU; None where it has None."""
    if world() == 1:
        return None if tensors is None else dict(tensors)
    about = None
    if tensors is not None:
        about = [(name, tuple(t.shape), t.stride(), t.dtype) for name, t in tensors.items()]
    about = from_main(about)
    if about is None:
        return None
    found = {}
    with exchanging():
        for name, shape, stride, dtype in about:
            plain = tensors[name].contiguous() if tensors is not None else torch.empty(shape, dtype=dtype)
            _broadcast(plain, 0)
            found[name] = tensors[name] if tensors is not None else torch.empty_strided(shape, stride, dtype=dtype)
            found[name].copy_(plain)
    return found


@torch.no_grad()
def as_in_main(tensors: Iterable[Tensor]) -> None:
    """Make the tensors those of the main process, in place: what rounding would let drift apart, starts anew."""
    if world() == 1:
        return
    agree()
    with exchanging():
        for tensor in tensors:
            plain = tensor.detach().contiguous()
            _broadcast(plain, 0)
            if not main_process():
                tensor.copy_(plain)


def _broadcast(plain: Tensor, source: int) -> None:
    """Any type: as bytes, of which all backends know how to send them."""
    if plain.numel():
        dist.broadcast(plain.view(-1).view(torch.uint8), src=source)


def _on(kind: str) -> torch.device:
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
