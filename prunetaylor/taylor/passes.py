"""The only loop over data: everything that runs the network on samples goes through this module.

A batch is one chunk, so that memory is bounded by ``batch_size``. Latency, counted operations and training alone call
the network themselves.

Each of several processes passes its own part of the samples through the network, and sums over them are completed by
``runtime.processes.exchange.all_sum``. What this module returns is of all samples, and the same on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.pass_progress import report_part
from prunetaylor.data.samples import Batches, Inputs
from prunetaylor.network.layer import Call, Layer
from prunetaylor.network.observation import observing
from prunetaylor.network.state import evaluating
from prunetaylor.runtime.operators import plainly
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.taylor.outputs import read_outputs

OutputHook = Callable[[nn.Module, Any, Any], Any]
"""Called with (module, its first input, its output); a result other than None replaces the output."""

InputHook = Callable[[nn.Module, Any], None]
"""Called with (module, its first input) before the module runs."""

ForwardHook = Callable[[int, int, Tensor, Tensor], None]
"""Called with (index of the batch's first sample, samples in the batch, the module's input, its output)."""

LayerHook = Callable[[int, int, Call], None]
"""Called with (index of the batch's first sample, samples in the batch, a call of a layer)."""


@dataclass(frozen=True)
class Watch:
    """A pass reports each call of ``layers`` to ``on_call``, and each call of ``modules`` to its hook."""

    layers: Sequence[Layer] = ()
    on_call: LayerHook | None = None
    modules: Mapping[nn.Module, ForwardHook] = field(default_factory=dict)


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


def call_network(module: nn.Module, x: Inputs) -> object:
    """Return whatever the network returns for the inputs ``x``, in evaluation mode without gradients."""
    with evaluating(module), torch.no_grad():
        return x.call(module)


def compute_outputs(module: nn.Module, x: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the outputs for the inputs ``x`` of B samples, in the mode that the module is in: (B, K), or (B, P, K).

    Gradients are recorded if the caller has enabled them. ``state`` replaces parameters and buffers by name.
    """
    with plainly(gradients=torch.is_grad_enabled()):
        return read_outputs(module, x.call(module, state and _as_parameters(module, state)))


def _as_parameters(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with views in place of parameters that count as such, as code may ask for."""
    parameters, own = dict(module.named_parameters(remove_duplicate=False)), dict(state)
    for name in own.keys() & parameters.keys():
        own[name] = own[name].view_as(own[name])
        own[name]._is_param = True
    return own


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
    watch: Watch | None = None,
    until: Layer | nn.Module | None = None,
) -> Iterator[BatchOutputs]:
    """Pass this process's own samples through the network, in evaluation mode without gradients; yield each batch.

    With ``until`` each pass ends as soon as that layer or module has run, for work that needs no later one.
    """
    count = batches.own_count()
    with evaluating(module):
        for number, (start, x, targets) in enumerate(batches.own(), 1):
            batch = _forward(module, start, x, targets, watch or Watch(), until)
            report_part(number, count)
            yield batch


def forward_all(module: nn.Module, batches: Batches, watch: Watch | None = None) -> Generator[BatchOutputs, None, None]:
    """As :func:`forward_own`, but every process passes all batches.

    The caller may stop early, on every process at the same batch.
    """
    start = 0
    with evaluating(module):
        for x, targets in batches:
            yield _forward(module, start, x, targets, watch or Watch(), None)
            start += len(x)


def forward_one(module: nn.Module, x: Inputs, watch: Watch | None = None) -> Tensor:
    """Return the outputs (B, K) for ``x``, in evaluation mode without gradients."""
    with evaluating(module), torch.no_grad(), _watching(watch or Watch(), 0, len(x)):
        return compute_outputs(module, x)


def _forward(
    module: nn.Module,
    start: int,
    x: Inputs,
    targets: Tensor,
    watch: Watch,
    until: Layer | nn.Module | None,
) -> BatchOutputs:
    def stop(*_: object) -> None:
        raise _LayerReached

    outputs = None
    with torch.no_grad(), _watching(watch, start, len(x)), ExitStack() as stack:
        stack.enter_context(suppress(_LayerReached))
        stack.enter_context(hooked({until: stop} if isinstance(until, nn.Module) else {}))
        stack.enter_context(observing([until] if isinstance(until, Layer) else [], stop))
        outputs = compute_outputs(module, x)
    return BatchOutputs(start, x, targets, outputs)


@contextmanager
def _watching(watch: Watch, start: int, samples: int) -> Iterator[None]:
    def bind(hook: ForwardHook) -> OutputHook:
        def run(_: nn.Module, x: Tensor, y: Tensor) -> None:
            # A network that distributes its batch among layers may call one of them with no entries.
            if not isinstance(x, Tensor) or x.numel():
                hook(start, samples, x, y)

        return run

    def run_on_call(call: Call) -> None:
        if watch.on_call is not None:
            watch.on_call(start, samples, call)

    with (
        hooked({module: bind(hook) for module, hook in watch.modules.items()}),
        observing(watch.layers, run_on_call),
    ):
        yield


def all_outputs(
    module: nn.Module,
    batches: Batches,
    watch: Watch | None = None,
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
