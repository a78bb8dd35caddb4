"""The only loop over data: everything that runs the network on samples goes through this module.

A batch is one chunk, so that memory is bounded by ``batch_size``. Latency, counted operations and training alone call
the network themselves.

Each of several processes passes its own part of the samples through the network, and sums over them are completed by
``runtime.processes.exchange.all_sum``. What this module returns is of all samples, and the same on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from prunetaylor.core.pass_progress import report_part
from prunetaylor.data.samples import Batches, Inputs
from prunetaylor.network.state import evaluating
from prunetaylor.runtime.forward_mode import differentiable
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.taylor.outputs import read_outputs

OutputHook = Callable[[nn.Module, Any, Any], Any]
"""Called with (module, its first input, its output); a result other than None replaces the output."""

InputHook = Callable[[nn.Module, Any], None]
"""Called with (module, its first input) before the module runs."""

ForwardHook = Callable[[int, int, Tensor, Tensor], None]
"""Called with (index of the batch's first sample, samples in the batch, the module's input, its output)."""


@contextmanager
def hooked(
    after: Mapping[nn.Module, OutputHook], before: Mapping[nn.Module, InputHook] | None = None
) -> Iterator[None]:
    """Call these hooks before and after each call of their modules; they are removed at the end."""
    handles = []
    for module, output_hook in after.items():

        def run_after(
            m: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], y: Any, hook: OutputHook = output_hook
        ) -> Any:
            return hook(m, _first_input(inputs, named), y)

        handles.append(module.register_forward_hook(run_after, with_kwargs=True))
    for module, input_hook in (before or {}).items():

        def run_before(
            m: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], hook: InputHook = input_hook
        ) -> None:
            hook(m, _first_input(inputs, named))

        handles.append(module.register_forward_pre_hook(run_before, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_input(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return inputs[0] if inputs else next(iter(named.values()), None)


def first_batch(batches: Batches) -> tuple[Inputs, Tensor]:
    """Return the inputs of B samples and the targets (B, ...) of the first batch."""
    return next(iter(batches))


def compute_outputs(module: nn.Module, x: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the outputs for the inputs ``x`` of B samples, in the mode that the module is in: (B, K), or (B, P, K).

    Gradients are recorded if the caller has enabled them. ``state`` replaces parameters and buffers by name.
    """
    return read_outputs(module, x.call(module, state))


def differentiate_outputs(
    module: nn.Module, x: Inputs, state: Mapping[str, Tensor], step: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the outputs z (B, K) at ``state`` and their derivative J v (B, K) along v = ``step``, in float32.

    The derivative is a forward-mode product. ``state`` has every tensor that ``step`` moves; tensors that it lacks are
    those of the module.
    """
    fixed = {name: tensor for name, tensor in state.items() if name not in step}

    def network(moving: Mapping[str, Tensor]) -> Tensor:
        return compute_outputs(module, x, {**fixed, **moving}).float()

    outputs: Tensor
    derivative: Tensor
    with torch.no_grad(), differentiable():
        outputs, derivative = jvp(network, ({name: state[name] for name in step},), (dict(step),))[:2]
    return outputs, derivative


@dataclass(frozen=True)
class BatchOutputs:
    """The outputs (B, K) of one batch; None if the pass was stopped before it reached them.

    ``start`` is the index of the batch's first sample among all samples.
    """

    start: int
    x: Inputs
    targets: Tensor
    outputs: Tensor | None


class _LayerReached(Exception):
    """The layer after which a pass was to stop has run."""


def forward_own(
    module: nn.Module,
    batches: Batches,
    *,
    watch: Mapping[nn.Module, ForwardHook] | None = None,
    until: nn.Module | None = None,
) -> Iterator[BatchOutputs]:
    """Pass this process's own samples through the network, in evaluation mode without gradients; yield each batch.

    ``watch`` is called with what goes in and out of its modules. With ``until`` each pass ends as soon as that module
    has run, for work that needs no later one.
    """
    count = batches.own_count()
    with evaluating(module):
        for number, (start, x, targets) in enumerate(batches.own(), 1):
            batch = _forward(module, start, x, targets, watch or {}, until)
            report_part(number, count)
            yield batch


def forward_all(
    module: nn.Module, batches: Batches, watch: Mapping[nn.Module, ForwardHook] | None = None
) -> Generator[BatchOutputs, None, None]:
    """As :func:`forward_own`, but every process passes all batches.

    The caller may stop early, on every process at the same batch.
    """
    start = 0
    with evaluating(module):
        for x, targets in batches:
            yield _forward(module, start, x, targets, watch or {}, None)
            start += len(x)


def forward_one(module: nn.Module, x: Inputs, watch: Mapping[nn.Module, ForwardHook] | None = None) -> Tensor:
    """Return the outputs (B, K) for ``x``, in evaluation mode without gradients."""
    with evaluating(module), torch.no_grad(), _watching(watch or {}, 0, len(x)):
        return compute_outputs(module, x)


def _forward(
    module: nn.Module,
    start: int,
    x: Inputs,
    targets: Tensor,
    watch: Mapping[nn.Module, ForwardHook],
    until: nn.Module | None,
) -> BatchOutputs:
    def stop(*_: object) -> None:
        raise _LayerReached

    outputs = None
    ends: dict[nn.Module, OutputHook] = {} if until is None else {until: stop}
    with torch.no_grad(), _watching(watch, start, len(x)), hooked(ends), suppress(_LayerReached):
        outputs = compute_outputs(module, x)
    return BatchOutputs(start, x, targets, outputs)


@contextmanager
def _watching(watch: Mapping[nn.Module, ForwardHook], start: int, samples: int) -> Iterator[None]:
    def bind(hook: ForwardHook) -> OutputHook:
        def run(_: nn.Module, x: Tensor, y: Tensor) -> None:
            if (
                not isinstance(x, Tensor) or x.numel()
            ):  # a network that distributes its batch among layers may call one of them with no entries
                hook(start, samples, x, y)

        return run

    with hooked({module: bind(hook) for module, hook in watch.items()}):
        yield


def all_outputs(
    module: nn.Module,
    batches: Batches,
    watch: Mapping[nn.Module, ForwardHook] | None = None,
    on_batch: Callable[[BatchOutputs], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """Return every sample's outputs (N, K) and its targets (N, ...).

    ``watch`` is as in :func:`forward_own`; ``on_batch`` is called with each batch of this process's own samples.
    """
    outputs, targets = [], []
    for batch in forward_own(module, batches, watch=watch):
        assert batch.outputs is not None
        on_batch(batch)
        outputs.append(batch.outputs.float())
        targets.append(batch.targets)
    empty = torch.empty(0, device=batches.device)
    return gather_rows(torch.cat(outputs or [empty])), gather_rows(torch.cat(targets or [empty]))
