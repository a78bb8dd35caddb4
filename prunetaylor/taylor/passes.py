"""The only loop over data. Every sum and mean over samples in the package is taken here.

``Risk`` binds a network, its samples and an objective. Means are over samples, whatever the batches' sizes; a batch is
one chunk, so that memory is bounded by ``batch_size``; two passes over the first batch must agree before anything
expensive starts.

Of several processes each goes through its own part of the samples; whoever takes a sum over them finishes it with
``distributed.exchange.all_sum``. Values and means that come out here are of all samples, the same on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.core.pass_progress import report_part
from prunetaylor.data.samples import Batches
from prunetaylor.network.state import evaluating, trainable
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.taylor.objective import Objective, outputs_of


@dataclass(frozen=True)
class Pass:
    """One batch done: ``start`` is the index of its first sample of all; ``outputs`` are None where stopped early."""

    start: int
    x: Tensor
    targets: Tensor
    outputs: Tensor | None


ForwardHook = Callable[[int, int, Tensor, Tensor], None]
"""Called with (index of the batch's first sample, samples in the batch, the module's input, its output)."""


class _Reached(Exception):
    """The layer a pass was to stop after has run."""


def forward_own(
    module: nn.Module,
    batches: Batches,
    *,
    watch: Mapping[nn.Module, ForwardHook] | None = None,
    until: nn.Module | None = None,
) -> Iterator[Pass]:
    """Forward passes over this process's own samples, in evaluation mode without gradients, one yield a batch.

    ``watch`` shows what goes in and out of modules. With ``until`` each pass ends as soon as that module has run, for
    work that needs no later one.
    """
    count = batches.own_count()
    with evaluating(module):
        for number, (start, x, targets) in enumerate(batches.own(), 1):
            found = _pass(module, start, x, targets, watch or {}, until)
            report_part(number, count)
            yield found


def forward_all(
    module: nn.Module, batches: Batches, watch: Mapping[nn.Module, ForwardHook] | None = None
) -> Generator[Pass, None, None]:
    """As :func:`forward_own`, but all batches on every process: for whom some may do, the same ones everywhere."""
    start = 0
    with evaluating(module):
        for x, targets in batches:
            yield _pass(module, start, x, targets, watch or {}, None)
            start += len(x)


def forward_one(module: nn.Module, x: Tensor, watch: Mapping[nn.Module, ForwardHook]) -> None:
    """As :func:`forward_own`, but ``x`` alone."""
    with evaluating(module), torch.no_grad(), _hooked(watch, None, 0, len(x)):
        module(x)


def first_pass(module: nn.Module, batches: Batches) -> Pass:
    """As :func:`forward_all`, but the first batch alone."""
    with closing(forward_all(module, batches)) as each:
        return next(each)


def _pass(
    module: nn.Module,
    start: int,
    x: Tensor,
    targets: Tensor,
    watch: Mapping[nn.Module, ForwardHook],
    until: nn.Module | None,
) -> Pass:
    outputs = None
    with torch.no_grad(), _hooked(watch, until, start, len(x)), suppress(_Reached):
        outputs = outputs_of(module(x))
    return Pass(start, x, targets, outputs)


def all_outputs(
    module: nn.Module,
    batches: Batches,
    watch: Mapping[nn.Module, ForwardHook] | None = None,
    done: Callable[[Pass], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """Every sample's outputs (N, K), and its targets (N, ...).

    ``watch`` is as in :func:`forward_own`; ``done`` is told each batch of this process's own samples.
    """
    outputs, targets = [], []
    for batch in forward_own(module, batches, watch=watch):
        assert batch.outputs is not None
        done(batch)
        outputs.append(batch.outputs.float())
        targets.append(batch.targets)
    none = torch.empty(0, device=batches.device)
    return gather_rows(torch.cat(outputs or [none])), gather_rows(torch.cat(targets or [none]))


@dataclass(frozen=True)
class Risk:
    """The mean error of ``module`` over ``batches``; ``reference`` (N, ...) holds what outputs are compared with."""

    module: nn.Module
    batches: Batches
    objective: Objective
    reference: Tensor

    def values(self) -> Tensor:
        """The error of each sample (N,), float64 where the device has it. NumericsError where one is not finite."""
        outputs, _ = all_outputs(self.module, self.batches)
        values = self.objective.values(outputs, self.reference)
        values = values.double() if values.device.type != "mps" else values
        if not bool(torch.isfinite(values).all()):
            raise NumericsError(
                f"the network's error on {len(outputs)} samples is {float(values.mean())}",
                "check that the samples are normalised as in training (data.normalize)",
            )
        return values

    def value(self) -> float:
        """E, the mean over samples. NumericsError where it is not finite."""
        return float(self.values().mean())

    def value_or_inf(self) -> float:
        """E after a step that may be taken back: one that took the outputs out of range is as bad as can be."""
        try:
            return self.value()
        except NumericsError:
            return float("inf")

    def backward_batches(
        self, weights: Sequence[nn.Parameter], cuts: Sequence[int] = ()
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """(index of the first sample, x, outputs with their graph, reference) of each batch of this process's own
        samples, in evaluation mode, with gradients of ``weights``.

        For sums over groups of samples: ``cuts`` (0, ..., N) are the groups' boundaries, at which batches are split and
        of which each process has whole ones.
        """
        with evaluating(self.module), trainable(weights), torch.enable_grad():
            for start, x, reference in self.own(cuts):
                edges = [0, *(c - start for c in cuts if 0 < c - start < len(x)), len(x)]
                for low, high in pairwise(edges):
                    outputs = outputs_of(self.module(x[low:high])).float()
                    yield start + low, x[low:high], outputs, reference[low:high]

    def own(self, cuts: Sequence[int] = ()) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(index of the first sample, x, reference) of each batch of this process's own samples."""
        count = self.batches.own_count()
        for number, (start, x, _) in enumerate(self.batches.own(cuts or None), 1):
            report_part(min(number, count), count)
            yield start, x, self.reference[start : start + len(x)]


def check_deterministic(module: nn.Module, batches: Batches) -> None:
    """Two passes over the first batch must agree; NumericsError where they do not, or where outputs are not finite."""
    x, _ = next(iter(batches))
    with evaluating(module), torch.no_grad():
        first, second = outputs_of(module(x)), outputs_of(module(x))
    if not bool(torch.isfinite(first).all()):
        check_outputs(module, batches, first)
    # The tolerance is for kernels that sum in another order, not for noise: dropout moves outputs by percents.
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4 * float(first.abs().max())):
        raise NumericsError(
            "the network gives different outputs for the same inputs in evaluation mode",
            "make its randomness (dropout, sampling) depend on module.training",
        )


def check_outputs(module: nn.Module, batches: Batches, outputs: Tensor) -> None:
    """NumericsError where ``outputs`` (N, K), the network's for the first N samples, are not all finite.

    It says where they cease to be: in a sample itself, or with the first module whose output is not finite.
    """
    bad = (~torch.isfinite(outputs)).any(1).nonzero().flatten().tolist()
    if not bad:
        return
    start = 0
    for x, _ in batches:
        if bad[0] < start + len(x):
            sample = x[bad[0] - start : bad[0] - start + 1]
            break
        start += len(x)
    what = f"the network's outputs are not finite for {len(bad)} of {len(outputs)} samples"
    if not bool(torch.isfinite(sample).all()):
        raise NumericsError(f"{what}, as such a sample is not", "leave those samples out, or mend how they are read")
    name = _first_not_finite(module, sample)
    raise NumericsError(
        f"{what}; {f'first are those of {name}' if name else 'all layers are'}",
        "check that the samples are normalised as in training (data.normalize), and what the network computes there",
    )


def _first_not_finite(module: nn.Module, x: Tensor) -> str | None:
    """The name of the first module of those that hold others no more whose output is not finite."""
    found: list[str] = []
    handles = []
    for name, child in module.named_modules():
        if not any(True for _ in child.children()):

            def hook(_: nn.Module, __: object, y: object, name: str = name) -> None:
                if isinstance(y, Tensor) and not bool(torch.isfinite(y).all()):
                    found.append(name)

            handles.append(child.register_forward_hook(hook))
    try:
        with evaluating(module), torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@contextmanager
def _hooked(
    watch: Mapping[nn.Module, ForwardHook], until: nn.Module | None, start: int, samples: int
) -> Iterator[None]:
    handles = []
    for watched, watcher in watch.items():

        def forward_one(
            _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], y: Any, watcher: ForwardHook = watcher
        ) -> None:
            x = inputs[0] if inputs else named["input"]
            if x.numel():  # a call with no entries, of a batch that a network shares out among layers, says nothing
                watcher(start, samples, x, y)

        handles.append(watched.register_forward_hook(forward_one, with_kwargs=True))
    if until is not None:

        def stop(*_: object) -> None:
            raise _Reached

        handles.append(until.register_forward_hook(stop))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
