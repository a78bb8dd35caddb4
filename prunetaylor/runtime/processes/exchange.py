"""Exchange values between the processes of a run: sums, rows in the samples' order, values of the main process.

With a single process every function returns its argument. Tensors on a GPU go through NCCL, all others through gloo.
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
"""The size of a message: large enough for a network's bandwidth, small beside the tensors that are summed."""


def from_main(value: T) -> T:
    """Return the main process's value, which should be small and plain."""
    return gather_objects(value if main_process() else None)[0]  # type: ignore[return-value]


def minimum(value: int | None) -> int | None:
    """Return the smallest of the processes' numbers; None if no process has one."""
    return min((one for one in gather_objects(value) if one is not None), default=None)


def all_sum(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum of each tensor over all processes by name, with the same bits on all of them.

    Contiguous tensors are summed in place. A name that a process lacks counts as zero there, so that a process without
    samples need not know the names; their order is that of the first process that has them.
    """
    if world() == 1:
        return dict(tensors)
    shapes = {name: (tuple(t.shape), t.dtype, t.device.type) for name, t in tensors.items()}
    same = set(gather_objects(hashlib.sha256(repr(shapes).encode()).digest()))
    known = [shapes] if len(same) == 1 else gather_objects(shapes)
    sums = {}
    # The first process that has a name says what its tensor looks like.
    for name, (shape, dtype, device) in {n: s for one in reversed(known) for n, s in one.items()}.items():
        own = tensors[name] if name in tensors else torch.zeros(shape, dtype=dtype, device=_on(device))
        sums[name] = own.detach().contiguous()
    with exchanging():
        reduce_in_place([sums[name] for name in sorted(sums)])
    order = dict.fromkeys(name for one in known for name in one)
    return {name: sums[name] for name in order}


def reduce_in_place(tensors: Sequence[Tensor]) -> None:
    """Sum tensors over all processes, which have the same ones in the same order; small ones share a message."""
    for bucket in _buckets(tensors):
        is_single = len(bucket) == 1 and bucket[0].is_contiguous()
        flat = bucket[0] if is_single else torch.cat([t.reshape(-1) for t in bucket])
        dist.all_reduce(flat)
        if not is_single:
            for t, summed in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                t.copy_(summed.view(t.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in order in buckets of one dtype and device, of up to BUCKET_BYTES or one tensor."""
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
    """Return the sum of each number over all processes, which must pass equally many."""
    if world() == 1:
        return list(values)
    agree()
    total = torch.tensor(values, dtype=torch.float64)
    with exchanging():
        dist.all_reduce(total)
    return [float(x) for x in total]


def from_first_owner(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor as it is on the first process that has its name."""
    if world() == 1:
        return dict(tensors)
    owners: dict[str, int] = {}
    for which, names in enumerate(gather_objects(list(tensors))):
        for name in names:
            owners.setdefault(name, which)
    return all_sum({n: t.clone() if owners[n] == rank() else torch.zeros_like(t) for n, t in tensors.items()})


def gather_rows(rows: Tensor) -> Tensor:
    """Return the processes' tensors (n_i, ...) one after another, in their order: (N, ...) on each of them.

    A process without rows need not know their shape.
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
    """Return the main process's tensors by name, with the same strides, on the CPU; None if it has None."""
    if world() == 1:
        return None if tensors is None else dict(tensors)
    description = None
    if tensors is not None:
        description = [(name, tuple(t.shape), t.stride(), t.dtype) for name, t in tensors.items()]
    description = from_main(description)
    if description is None:
        return None
    copies = {}
    with exchanging():
        for name, shape, stride, dtype in description:
            plain = tensors[name].contiguous() if tensors is not None else torch.empty(shape, dtype=dtype)
            _broadcast(plain, 0)
            copies[name] = tensors[name] if tensors is not None else torch.empty_strided(shape, stride, dtype=dtype)
            copies[name].copy_(plain)
    return copies


@torch.no_grad()
def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Copy the main process's tensors to all others, in place, so that rounding cannot let them drift apart."""
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
    """Send a tensor of any dtype as bytes, which every backend can send."""
    if plain.numel():
        dist.broadcast(plain.view(-1).view(torch.uint8), src=source)


def _on(kind: str) -> torch.device:
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
