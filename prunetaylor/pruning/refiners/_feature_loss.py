"""The loss of the refinement by features: the network's outputs, and every layer's, towards the dense network's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Batches, Inputs
from prunetaylor.network.layer import Call, Layer
from prunetaylor.network.observation import observing
from prunetaylor.network.state import match_memory_format
from prunetaylor.runtime.processes.exchange import all_sum
from prunetaylor.taylor.objective import Objective, Reference, labelled_positions
from prunetaylor.taylor.passes import OutputHook, compute_outputs, forward_own, hooked

FEATURES = 5.0
"""c, the weight of the layers' outputs relative to the network's."""
ROUNDING = 1e-12
"""Outputs whose variance is at most this share of their mean square are constant in float32."""


def add_gradients(
    module: nn.Module,
    dense: nn.Module,
    x: Inputs,
    targets: Tensor,
    features: FeatureLoss,
    towards: Objective,
    scale: float,
    share: float,
) -> None:
    """Add to the gradients those of the mean loss over the samples ``x``, times ``share``."""
    x = x.change_tensors(partial(match_memory_format, module))
    features.pop_targets()
    with torch.no_grad(), features.watching():
        dense_outputs = compute_outputs(dense, x).float()
        reference = Reference(dense_outputs, labelled_positions(dense_outputs, targets))
    with torch.enable_grad():
        # None of the calls that the backward pass makes, where activations are not kept.
        with features.watching(), features.weighed(share, len(x)):
            outputs = compute_outputs(module, x).float()
        error = towards.values(outputs, reference).mean() / scale
        (error * share).backward()  # type: ignore[no-untyped-call]


def output_variances(dense: nn.Module, batches: Batches, features: FeatureLoss) -> dict[str, float]:
    """Return the variance of all values that each watched call puts out, over all samples; 1 for a constant output."""
    sums: dict[str, Tensor] = {}
    with features.watching():
        for _ in forward_own(dense, batches):
            for call, output in features.pop_targets().items():
                y = output.double() if output.device.type != "mps" else output
                added = torch.stack([y.new_tensor(y.numel()), y.sum(), y.square().sum()])
                sums[call] = sums.get(call, 0) + added
    variances = {}
    for call, (count, total, square) in all_sum(sums).items():
        mean, whole = float(total / count), float(square / count)
        # What rounding leaves of a constant's is none.
        variances[call] = whole - mean**2 if whole - mean**2 > ROUNDING * whole else 1.0
    return variances


class FeatureLoss:
    """The layers' part of the loss, put into the gradients on their way back.

    Its gradient in a layer's outputs, 2 c (y - y*) / (n var(y*)), is known as soon as they are, so that it needs no
    graph of its own, which would take six passes over each output instead of two. Layers that the network's outputs do
    not depend on are not matched.
    """

    def __init__(self, module: nn.Module, dense: nn.Module, layers: Sequence[Layer], norms: Sequence[str]) -> None:
        weights = dict(dense.named_parameters())
        self._my_layers = list(layers)
        self._their_layers = [replace(layer, weight=weights[layer.parameter]) for layer in layers]
        self._my_norms, self._their_norms = (
            {one.get_submodule(name): name for name in norms} for one in (module, dense)
        )
        self._targets: dict[str, Tensor] = {}  # y* by layer and call
        self._share: float | None = None  # None: passes of ``module`` are none of ours
        self._samples = 1
        self._calls: Counter[str] = Counter()
        self.variances: Mapping[str, float] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the layers and norms of both networks in the passes inside."""
        hooks: dict[nn.Module, OutputHook] = {}
        for norms, visit in ((self._their_norms, self._store), (self._my_norms, self._pull)):
            for norm, name in norms.items():
                hooks[norm] = _named(name, visit)
        with (
            hooked(hooks),
            observing(self._their_layers, lambda call: self._store(call.layer.name, call.y)),
            observing(self._my_layers, self._pull_call),
        ):
            yield

    def pop_targets(self) -> dict[str, Tensor]:
        """Return the outputs of each call of the dense layers since the last time, in float32."""
        targets, self._targets, self._calls = self._targets, {}, Counter()
        return targets

    @contextmanager
    def weighed(self, share: float, samples: int) -> Iterator[None]:
        """Weigh the pass of ``module`` inside; the dense network has just seen the same samples."""
        self._share, self._samples, self._calls = share, samples, Counter()
        try:
            yield
        finally:
            self._share = None
            self.pop_targets()

    def _call(self, name: str) -> str:
        self._calls[name] += 1
        return f"{name} {self._calls[name]}"

    def _store(self, name: str, output: Tensor) -> None:
        # An activation may overwrite it.
        self._targets[self._call(name)] = output.detach().to(torch.float32, copy=True)

    def _pull_call(self, call: Call) -> None:
        # Rows that a network sends to one of its experts may be others than in the dense network.
        if len(call.inputs) % self._samples == 0:
            self._pull(call.layer.name, call.y)
        else:
            self._call(call.layer.name)

    def _pull(self, name: str, output: Tensor) -> None:
        if self._share is None:
            return
        call = self._call(name)
        if not output.requires_grad:
            return
        target, variance = self._targets.get(call), self.variances.get(call)
        if target is None or variance is None or target.shape != output.shape:
            return  # other samples than in the dense network were sent there
        back, weight = target.sub_(output.detach()), -2 * FEATURES * self._share
        weight /= len(self.variances) * variance * output.numel()
        last = output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format

        def add(gradient: Tensor) -> Tensor:
            # In another layout than the input's it makes a batch norm's backward pass seven times as slow.
            gradient = gradient.contiguous(memory_format=order)
            return torch.add(gradient, back.to(gradient.dtype), alpha=weight)

        output.register_hook(add)  # type: ignore[no-untyped-call]


def _named(name: str, visit: Callable[[str, Tensor], None]) -> OutputHook:
    return lambda _, __, output: visit(name, output)
