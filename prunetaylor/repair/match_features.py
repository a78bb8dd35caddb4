"""Refinement by mini-batches: every layer's outputs, and the network's, towards the dense network's.

    minimise  E / s + c mean_l |y_l - y_l*|^2 / var(y_l*)        y_l, y_l*: outputs of layer l, pruned and dense
                                                                 s: the error of a constant answer

over all kept weights and biases at once, by Adam (Kingma & Ba 2015) on randomly changed samples. A thousand samples say
too little through the network's outputs alone: there are more weights than outputs, and what is fitted to them answers
worse elsewhere. Through the layers' outputs each sample says thousands of times more (hints: Romero et al. 2015,
section 2.2; all layers at once: Frantar & Alistarh 2022, section 6, global AdaPrune).

Batch-norm statistics stay as they are, and nothing is kept that held-out samples do not confirm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Batches, Share
from prunetaylor.distributed.exchange import all_sum
from prunetaylor.distributed.training import sum_gradients
from prunetaylor.memory import FLOAT, Phase, Sizes, forward, graph
from prunetaylor.network.layer import Layer
from prunetaylor.network.names import movable
from prunetaylor.network.state import channels_last, evaluating, restore, snapshot, trainable
from prunetaylor.objective import Objective, outputs_of
from prunetaylor.repair.affine import Absorber
from prunetaylor.repair.masks import keep_masks
from prunetaylor.repair.train import learning_rate
from prunetaylor.risk import Risk, sweep

BATCH = 64
"""Samples a step."""
STEPS = 400
"""By default."""
RATE = 0.015
"""The largest step of a weight, as a share of its tensor's root mean square; from there it falls along a cosine."""
SMALLEST = 0.01
"""The root mean square that a tensor is taken to have at least: biases may all be zero."""
FEATURES = 5.0
"""c, what the layers' outputs weigh beside the network's."""
WARMUP = 10
"""Steps in which it rises before."""
LOOKS = 6
"""Looks at the held-out samples on the way."""


@dataclass(frozen=True)
class MatchState:
    """After some steps: the held-out error before the first and the lowest so far."""

    step: int
    before: float
    after: float


def memory(sizes: Sizes) -> Phase:
    """Gradients, Adam's state, masks as numbers and the best state, beside a batch with its graph.

    Of each layer both networks' outputs and their differences.
    """
    outputs = FLOAT * sum(layer.outputs for layer in sizes.layers)
    held = FLOAT * (3 * sizes.parameters + sizes.weights) + sizes.state
    batch = 2 * forward(sizes) + graph(sizes) + 3 * sizes.batch * outputs
    parts = {"optimizer": held, "activations": batch}
    return Phase("refinement by features", {**parts, "samples": (sizes.samples + BATCH) * sizes.activations.sample})


def match_features(
    module: nn.Module,
    dense: nn.Module,
    layers: Sequence[Layer],
    absorbers: Mapping[str, Absorber],
    masks: Mapping[str, Tensor],
    batches: Batches,
    held: Risk,
    *,
    scale: float,
    steps: int,
    chunk: int,
    alone: Collection[str] = (),
) -> Iterator[MatchState]:
    """Refine ``module`` in place towards ``dense``, yielding now and then; masked weights stay zero.

    It ends with the state of the lowest held-out error, which may be the first.

    Args:
        layers: whose outputs are matched: behind the batch norm that reads them, where there is one (``absorbers``).
        masks: by parameter name, True = keep.
        batches: shuffled training batches of BATCH samples, changed anew each time.
        held: the error of ``module`` on samples that are never fitted.
        scale: s, in the unit of the error.
        chunk: samples that are passed through the network at once.
        alone: modules and parameters, by name, that are left as they are.

    Raises:
        NumericsError: where the error on held-out samples is not finite to begin with.
    """
    free = movable(module, alone)
    towards = Objective(held.objective.kind, "divergence")
    watched = _watched(module, layers, absorbers)
    first = best = held.value()
    kept = snapshot(module)
    with ExitStack() as stack:
        for network in (module, dense):
            stack.enter_context(evaluating(network))
            stack.enter_context(channels_last(network))
        stack.enter_context(trainable(free.values()))
        mine, wanted = (stack.enter_context(_Outputs(network, watched)) for network in (module, dense))
        rates = {name: RATE * max(_root_mean_square(p.detach()), SMALLEST) for name, p in free.items()}
        optimizer = torch.optim.Adam([{"params": [p], "lr": rates[name]} for name, p in free.items()])
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(learning_rate, steps=steps, peak=1.0, warmup=WARMUP / steps)
        )
        stack.enter_context(keep_masks(module, optimizer, masks))
        variances = _variances(dense, held.batches, wanted)
        looks = {round(steps * (k + 1) / LOOKS) for k in range(LOOKS)}
        for step, share in enumerate(_endless(batches, steps), start=1):
            optimizer.zero_grad(set_to_none=True)
            for part in torch.split(share.x, chunk) if len(share.x) else ():
                loss = _loss(module, dense, part, mine, wanted, variances, towards, scale)
                (loss * (len(part) / share.of)).backward()  # type: ignore[no-untyped-call]
            sum_gradients(free.values())
            optimizer.step()
            schedule.step()
            if step in looks:
                with mine.ignored():
                    found = held.tried()
                if found < best:
                    best, kept = found, snapshot(module)
                yield MatchState(step, first, best)
    module.zero_grad(set_to_none=True)
    restore(module, kept)


def _loss(
    module: nn.Module,
    dense: nn.Module,
    x: Tensor,
    mine: _Outputs,
    wanted: _Outputs,
    variances: Sequence[float],
    towards: Objective,
    scale: float,
) -> Tensor:
    """The mean over the samples ``x``, a scalar."""
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        reference = outputs_of(dense(x)).float()
    with torch.enable_grad():
        outputs = outputs_of(module(x)).float()
        error = towards.values(outputs, reference).mean() / scale
        shares = [
            nn.functional.mse_loss(a.float(), b.float()) / variance
            for a, b, variance in zip(mine.taken(), wanted.taken(), variances, strict=True)
        ]
        return error + FEATURES * torch.stack(shares).mean() if shares else error


def _variances(dense: nn.Module, batches: Batches, wanted: _Outputs) -> list[float]:
    """Of all values that each watched call puts out, over all samples; 1 for a constant, to divide by."""
    sums: dict[str, Tensor] = {}
    for _ in sweep(dense, batches):
        found = [y.double() if y.device.type != "mps" else y.float() for y in wanted.taken()]
        for call, y in enumerate(found):
            added = torch.stack([y.new_tensor(y.numel()), y.sum(), y.square().sum()])
            sums[str(call)] = sums.get(str(call), 0) + added
    each = [float(square / count - (total / count).square()) for count, total, square in all_sum(sums).values()]
    return [variance if variance > 0 else 1.0 for variance in each]


class _Outputs:
    """What some modules of a network put out in a pass, in the order of the calls."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self._modules = [module.get_submodule(name) for name in names]
        self._found: list[Tensor] = []
        self._listening = True

    def __enter__(self) -> _Outputs:
        self._handles = [m.register_forward_hook(self._hear) for m in self._modules]
        return self

    def _hear(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if self._listening:
            self._found.append(output)
            if output.requires_grad and output.dim() == 4:
                # Gradients in another layout than the input's make a batch norm's backward pass seven times as slow.
                output.register_hook(_channels_last)  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Passes inside leave nothing."""
        self._listening = False
        try:
            yield
        finally:
            self._listening = True

    def taken(self) -> list[Tensor]:
        found, self._found = self._found, []
        return found


def _watched(module: nn.Module, layers: Sequence[Layer], absorbers: Mapping[str, Absorber]) -> list[str]:
    """Names of the modules whose outputs are matched: a layer's batch norm, else the layer's own."""
    names = {child: name for name, child in module.named_modules()}
    found: dict[str, None] = {}
    for layer in layers:
        absorber = absorbers.get(layer.name)
        for name in [absorber.key.rpartition(".")[0]] if absorber else [names[m] for m in layer.modules]:
            found[name] = None
    return list(found)


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def _endless(batches: Batches, steps: int) -> Iterator[Share]:
    done = 0
    while done < steps:
        for share in batches.shares():
            if done == steps:
                return
            done += 1
            yield share


def _root_mean_square(x: Tensor) -> float:
    """Of the entries that are not zero."""
    count = int(x.count_nonzero())
    return float((x.float().square().sum() / count).sqrt()) if count else 0.0
