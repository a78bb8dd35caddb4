"""Least squares of each layer's kept weights, towards the dense layer's outputs, from the inputs that the pruned
network really gives it, layer after layer in the order in which they run.

Each layer thereby also takes back what the layers before it did wrong. Best of all single steps by measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import UsageError
from prunetaylor.data.samples import Batches
from prunetaylor.network.layer import Call, Layer
from prunetaylor.pruning.activation_cache import KEPT_BYTES, ActivationCache
from prunetaylor.pruning.intercepts import Intercept
from prunetaylor.pruning.interfaces import Repair, RepairContext, load_criterion
from prunetaylor.taylor.curvature.gram import (
    POSITIONS,
    LayerSums,
    Moments,
    Positions,
    sampled_rows,
)
from prunetaylor.taylor.curvature.solve import Note, restricted_least_squares
from prunetaylor.taylor.memory import chunk_size
from prunetaylor.taylor.passes import Watch, forward_own
from prunetaylor.taylor.sizes import (
    FLOAT,
    LayerSize,
    Phase,
    Sizes,
    fitting_bytes,
    forward,
    largest_of,
    moments_bytes,
    solving_bytes,
)

_CACHE_BYTES = 1 << 29  # for the dense network's sampled outputs; above it they are computed anew for each layer


class LeastSquares(Repair):
    """Least squares towards the layers' outputs in the target network."""

    summary = "least squares: each layer towards its outputs in the dense network"
    at = "removal"
    uses_damping = True

    def apply(self, context: RepairContext) -> Iterator[str]:
        """Solve the layers in the order in which they run."""
        network, target = context.network, context.target
        positions = Positions(context.batches.samples, context.seed)
        return repair(
            network.module,
            network.layers,
            context.masks,
            DenseOutputs(target.module, target.layers, context.batches, positions),
            target.module.state_dict(),
            context.intercepts,
            context.batches,
            damping=context.damping,
            note=context.note,
            solved=frozenset(context.repaired),
        )

    def passes(self, layers: int) -> float:
        """Return half a pass a layer, which is run from the last final layer on, and one of the target."""
        return (layers + 2) / 2

    def work(self, layers: Sequence[Layer]) -> float:
        """Return about a third of what the first traces of ``exact_obs`` take."""
        return load_criterion("exact_obs").work(layers) / 3

    def memory(self, sizes: Sizes) -> list[Phase]:
        """Return the memory of the layer that takes the most, its moments and then its systems, beside the stored
        outputs."""
        rows = sum(layer.groups * layer.rows * min(POSITIONS, layer.positions) for layer in sizes.layers)
        dense, replayed = FLOAT * sizes.samples * rows, sizes.samples * sizes.sample.replayed
        kept = dense if dense <= chunk_size("kept", _CACHE_BYTES) else 0
        kept += min(replayed, chunk_size("kept", KEPT_BYTES))

        def with_moments(need: Callable[[LayerSize], int]) -> tuple[int, str]:
            return largest_of(sizes.layers, lambda layer: moments_bytes(layer, sizes.wide) + need(layer))

        work, fitted = with_moments(lambda layer: fitting_bytes(layer, sizes))
        systems, solved = with_moments(lambda layer: solving_bytes(layer, sizes.wide))
        # Two passes at a time: the pruned network's, and the dense one's where its outputs are not kept.
        stored = {"kept outputs": kept}
        return [
            Phase("least squares", {**stored, "activations": 2 * forward(sizes), "curvature": work}, fitted),
            Phase("least squares", {**stored, "systems": systems}, solved),
        ]


class DenseOutputs:
    """The dense layers' outputs at the sampled positions: stored after one pass if they fit in memory.

    ``layers`` are those of a copy of the network, whose modules the pruned network does not share.
    """

    def __init__(self, module: nn.Module, layers: Sequence[Layer], batches: Batches, where: Positions) -> None:
        self.module, self.batches, self.where = module, batches, where
        self.layers = {layer.name: layer for layer in layers}
        self._kept: dict[str, list[list[Tensor]]] | None = None  # by layer, batch and call
        kept: dict[str, list[list[Tensor]]] = {layer.name: [] for layer in layers}
        size = 0
        self._once: set[str] = set()
        for batch in self._rows(list(layers), None):
            for name, calls in batch.items():
                kept[name].append(calls)
                if len(calls) == 1:
                    self._once.add(name)
                size += sum(rows.numel() * rows.element_size() for rows in calls)
            if size * batches.own_count() > chunk_size("kept", _CACHE_BYTES) * len(next(iter(kept.values()))):
                return
        self._kept = kept

    def rows_of(self, name: str) -> Iterator[list[Tensor]]:
        """Yield the rows (G, P, R) of each call of the layer, batch by batch."""
        if self._kept is not None:
            yield from self._kept[name]
            return
        layer = self.layers[name]
        for batch in self._rows([layer], self.last(layer)):
            yield batch[name]

    def last(self, layer: Layer) -> Layer | None:
        """Return the layer if a pass may stop after it, as each calls it once."""
        return layer if layer.name in self._once else None

    def outputs_of(self, call: Call, x: Tensor) -> Tensor:
        """Return the dense layer's outputs (G, P, R) for inputs (G, P, C) of a call in the pruned network."""
        layer = self.layers[call.layer.name]
        outputs = x.float() @ layer.matrix(layer.weight.detach()).float()[slice(*call.groups)].mT
        bias = call.bias if layer.bias is None else self.module.get_parameter(layer.bias)
        if bias is None:
            return outputs
        return outputs + bias.detach().float().reshape(layer.groups, 1, -1)[slice(*call.groups)]

    def _rows(self, layers: list[Layer], until: Layer | None) -> Iterator[dict[str, list[Tensor]]]:
        calls: dict[str, list[Tensor]] = {}

        def add(start: int, samples: int, call: Call) -> None:
            rows = sampled_rows(call, self.where, start, samples)[1].float()
            calls.setdefault(call.layer.name, []).append(rows)

        for _ in forward_own(self.module, self.batches, watch=Watch(layers, add), until=until):
            yield {layer.name: calls.pop(layer.name, []) for layer in layers}


def paired_moments(
    module: nn.Module, layer: Layer, intercept: Intercept | None, dense: DenseOutputs, batches: Batches
) -> Moments:
    """Return the moments of the layer's inputs in the pruned network with its outputs in the dense one as targets.

    A bias that is no intercept stays as it is and is subtracted from the targets, and so are the biases of modules that
    share a weight. Where the network sends some of its samples to the layer, as a mixture of experts does, they may be
    others than the dense network sent there: the targets are then what the dense layer gives for the same inputs.
    """
    absorbed = intercept is not None and intercept.sign > 0
    sums = LayerSums([layer])
    rows: list[tuple[Call, Tensor]] = []
    routed = False

    def add(start: int, samples: int, call: Call) -> None:
        nonlocal routed
        routed = routed or len(call.inputs) % samples > 0
        rows.append((call, sampled_rows(call, dense.where, start, samples)[0]))

    until = dense.last(layer)
    passes = forward_own(module, batches, watch=Watch([layer], add), until=None if until is None else layer)
    for _, targets in zip(passes, dense.rows_of(layer.name), strict=True):
        if routed or [x.shape[:2] for _, x in rows] != [t.shape[:2] for t in targets]:
            targets = [dense.outputs_of(call, x) for call, x in rows]
        for (call, x), t in zip(rows, targets, strict=True):
            fixed = None if absorbed or call.bias is None else call.bias.detach().reshape(len(x), 1, -1)
            sums.add(call, x, t if fixed is None else t - fixed)
        rows.clear()
        routed = False
    moments = sums.moments()
    if layer.name not in moments:
        raise UsageError(
            f"no calibration sample reaches {layer.name} in the pruned network, so least squares has no target for it",
            "use prune.repair=obs, or exclude the layer (prune.exclude)",
        )
    return moments[layer.name]


@torch.no_grad()
def solve_layer(
    layer: Layer, moments: Moments, mask: Tensor, intercept: Intercept | None, damping: float, note: Note
) -> tuple[Tensor, Tensor | None]:
    """Return the weights (G, R, C) and intercepts (G, R) that bring a layer nearest to its targets.

    ``mask`` (G, R, C) marks the weights that may be nonzero. Without ``intercept`` the second value is None.
    """
    h, cross = moments.centred() if intercept else moments.plain()
    now = layer.matrix(layer.weight.detach()).to(h.dtype)
    solved = torch.stack(
        [
            restricted_least_squares(h[g], cross[g], now[g], mask[g], damping, layer.name, note)
            for g in range(layer.groups)
        ]
    )
    if intercept is None:
        return solved, None
    return solved, moments.tx[..., -1] - (solved @ moments.xx[..., -1, :-1].unsqueeze(2)).squeeze(2)


@torch.no_grad()
def repair(
    module: nn.Module,
    layers: Sequence[Layer],
    masks: Mapping[str, Tensor],
    dense: DenseOutputs,
    dense_state: Mapping[str, Tensor],
    intercepts: Mapping[str, Intercept],
    batches: Batches,
    *,
    damping: float,
    note: Note,
    solved: Collection[str] = (),
) -> Iterator[str]:
    """Solve the layers one after another in place; yield the name of each when it is solved.

    ``layers`` are in the order in which they run, masks (True = keep) by parameter name; those in ``solved`` are final.
    """
    state = module.state_dict()
    cache = ActivationCache(module, layers, batches.own_count())
    for layer in layers:
        if layer.name in solved:
            cache.freeze(layer)
            continue
        with cache.passing():
            moments = paired_moments(module, layer, intercepts.get(layer.name), dense, batches)
        # A weight that the dense network does without stays zero: a checkpoint may have been pruned before.
        present = dense_state[layer.parameter].to(layer.weight.device) != 0
        mask = layer.matrix(masks[layer.parameter] & present)
        intercept = intercepts.get(layer.name)
        weight, solved_intercept = solve_layer(layer, moments, mask, intercept, damping, note)
        layer.weight.copy_(layer.tensor(weight).to(layer.weight.dtype))
        if intercept and solved_intercept is not None:
            target = state[intercept.key]
            shift = solved_intercept.flatten().to(target.dtype)
            target.copy_(shift if intercept.sign > 0 else dense_state[intercept.key].to(target.device) - shift)
        cache.freeze(layer)
        yield layer.name
