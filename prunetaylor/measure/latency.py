"""Measure the latency of two networks against each other.

On a shared machine times drift by more than pruning gains. The networks therefore take turns: dense, pruned, dense.
The result of a round is the ratio of the pruned time to the mean of the two dense times around it, which cancels slow
drift. The two dense times of a round differ by noise alone, which shows whether the machine is quiet enough.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import Latency
from prunetaylor.data.samples import Inputs
from prunetaylor.network.state import evaluating

ROUNDS = 40
"""Rounds of dense, pruned, dense."""
WARM_UP_ROUNDS = 3
"""Rounds before them, not counted: libraries choose kernels, caches fill, clocks rise."""
MIN_TIMING = 0.02
"""Seconds that one timing lasts at least: a forward pass of microseconds is repeated in it."""
MAX_NOISE = 0.1
"""Above this the rounds are too uneven for a verdict."""
CONFIDENCE = 0.95
"""The one-sided confidence of each limit of the ratio."""


def compare_latency(dense: nn.Module, pruned: nn.Module, example: Inputs, progress: Progress) -> Latency:
    """Return both networks' median milliseconds for one forward pass of ``example``, and their ratio with its limits.

    ``example`` is a batch of inputs, ready for the networks, on their device; both run in evaluation mode.
    """
    progress.phase("latency", ROUNDS)
    with evaluating(dense), evaluating(pruned), torch.inference_mode():

        def timer(module: nn.Module) -> Callable[[], float]:
            repeats = _repeats(module, example)
            return lambda: _seconds(module, example, repeats) / repeats

        times = _rounds(timer(dense), timer(pruned), progress)
    return summarise(times, len(example), str(example.device))


def summarise(times: Sequence[tuple[float, float, float]], batch: int, device: str) -> Latency:
    """Return medians and limits of rounds of (dense, pruned, dense) seconds.

    The limits are of the median ratio, by order statistics, so that they assume no distribution (Conover 1999, section
    3.2): it lies between them with a probability of at least 90 %, and beyond each of them with at most 5 %. ``noise``
    is half the interquartile range of the ratio of a round's two dense times, which would be 1 on a quiet machine.
    """
    ratios = sorted(pruned / (0.5 * (before + after)) for before, pruned, after in times)
    null = sorted(after / before for before, _, after in times)
    quarters = statistics.quantiles(null, n=4)
    rank = _rank(len(ratios))
    return Latency(
        dense_ms=1000 * statistics.median(t for before, _, after in times for t in (before, after)),
        pruned_ms=1000 * statistics.median(pruned for _, pruned, _ in times),
        ratio=statistics.median(ratios),
        low=ratios[rank],
        high=ratios[-1 - rank],
        noise=0.5 * (quarters[2] - quarters[0]),
        steady=0.5 * (quarters[2] - quarters[0]) <= MAX_NOISE,
        rounds=len(ratios),
        batch=batch,
        device=device,
    )


def _rank(n: int) -> int:
    """Return the largest r (from 0) with P(the median lies below the r-th smallest of n) <= 1 - CONFIDENCE."""
    tail, rank = 0.0, -1
    for k in range(n):
        tail += math.comb(n, k) / 2**n
        if tail > 1 - CONFIDENCE:
            break
        rank = k
    if rank < 0:
        raise ValueError(f"{n} rounds are too few for a limit at {CONFIDENCE:.0%}")
    return rank


def _rounds(
    dense: Callable[[], float], pruned: Callable[[], float], progress: Progress
) -> list[tuple[float, float, float]]:
    times = []
    for number in range(WARM_UP_ROUNDS + ROUNDS):
        one = (dense(), pruned(), dense())
        if number >= WARM_UP_ROUNDS:
            times.append(one)
            progress.step()
    return times


def _repeats(module: nn.Module, example: Inputs) -> int:
    """Return the number of forward passes that fill a timing; the first ones are not counted."""
    _seconds(module, example, 2)
    return max(1, math.ceil(MIN_TIMING / max(_seconds(module, example, 1), 1e-7)))


def _seconds(module: nn.Module, example: Inputs, repeats: int) -> float:
    """Return the time of ``repeats`` forward passes one after another; a GPU has finished them."""
    _wait(example.device)
    start = time.perf_counter()
    for _ in range(repeats):
        example.call(module)
    _wait(example.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
