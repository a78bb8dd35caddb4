"""The memory that a criterion works in, measured by letting it score small layers.

A criterion states no bytes. It scores layers that take milliseconds, while the tensors that it allocates beside the
Taylor model's fits are counted. They grow as vectors of all weights, as the square of a layer's columns, as its rows'
systems, or as gradients of single samples. How much of each it holds follows from trials of different sizes, and is
true of layers of any size. Trials count bytes, never seconds, so that a busy machine chooses the same chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Batches, Preprocess, TensorSplit
from prunetaylor.network.network import Network
from prunetaylor.pruning.interfaces import Criterion, ScoringContext, Solver, load_criterion
from prunetaylor.taylor.curvature.gram import Positions
from prunetaylor.taylor.live_memory import most_alive
from prunetaylor.taylor.memory import Chunk, ChunkDivisors, chunk_size, record_chunks, use_chunks
from prunetaylor.taylor.model import Prediction, TaylorModel
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.risk import Risk

FITS = ("moments", "gradient", "diagonal", "sensitivity", "fisher_rows")
"""The attributes of a Taylor model that it fits to samples."""
_WIDE = 8  # bytes of the type that a trial is counted in


@dataclass(frozen=True)
class Demand:
    """The memory that a criterion works in, in numbers of the widest type, for a network of any size.

    Attributes:
        fits: the attributes of the Taylor model that it reads.
        predicts: whether it has the model predict a step of all layers.
        weights: numbers for each prunable weight of the network.
        layer: numbers for each weight of the layer that it works on.
        squares: numbers for each entry of that layer's Gram matrix.
        systems: numbers for each entry of the systems of its rows, as many rows as make a chunk.
        gradients: numbers for each gradient of a single sample in a single weight.
        layer_gradients: numbers for each of them in the layer that it works on.
        chunked: numbers for each of those gradients that make a chunk.
        chunk_sizes: the usual sizes of the chunks that it works in.
    """

    fits: frozenset[str] = frozenset(FITS[:-1])
    predicts: bool = True
    weights: float = 8.0
    layer: float = 8.0
    squares: float = 4.0
    systems: float = 4.0
    gradients: float = 0.0
    layer_gradients: float = 0.0
    chunked: float = 0.0
    chunk_sizes: Mapping[Chunk, int] = field(default_factory=dict)

    def gradients_at_once(self, network: int, layer: int) -> float:
        """Return the numbers under the current chunks, from the numbers of gradients in the network and a layer."""
        chunked = min(network, chunk_size("systems", self.chunk_sizes.get("systems", 0)))
        return self.gradients * network + self.layer_gradients * layer + self.chunked * chunked


@lru_cache
def demand_of(method: str) -> Demand:
    """Return the demand of the criterion ``method``; one that cannot score the small layers gets a cautious guess."""
    criterion = load_criterion(method)
    try:
        return _measure(criterion)
    except Exception:  # somebody's criterion may need what the small layers lack; an error of its own shows in the run
        return Demand()


@dataclass(frozen=True)
class _Trial:
    """A network of so many equal layers side by side, and the samples that its Taylor model is fitted to."""

    layers: int
    rows: int
    columns: int
    samples: int = 8

    @property
    def weights(self) -> int:
        return self.layers * self.rows * self.columns


_LAYER, _LAYERS, _MORE_LAYERS = _Trial(1, 16, 2), _Trial(8, 2, 2), _Trial(16, 2, 2)
_TWO_ROWS, _MANY_ROWS = _Trial(1, 2, 32), _Trial(1, 24, 32)
_GRADIENTS = _Trial(1, 64, 32, 4)


def _measure(criterion: Criterion) -> Demand:
    with record_chunks() as chunk_sizes:
        model, _ = _score(criterion, _LAYER)
    factors = _by_gradient(criterion, chunk_sizes) if "rows" in chunk_sizes else _by_layer(criterion)
    factors = {name: max(0.0, factor) for name, factor in factors.items()}
    demand = Demand(
        frozenset(name for name in FITS if name in vars(model)), model.predicts, **factors, chunk_sizes=chunk_sizes
    )
    if isinstance(criterion, Solver):
        return replace(demand, weights=max(demand.weights, criterion.vectors))
    return demand


def _by_layer(criterion: Criterion) -> dict[str, float]:
    """Return the factors of a criterion that takes one layer after another, and systems of its rows in chunks."""
    with use_chunks(ChunkDivisors(systems=1 << 30)):
        layer, single_rows = (_score(criterion, trial)[1] for trial in (_LAYER, _TWO_ROWS))
        layers, more_layers = (_score(criterion, trial)[1] for trial in (_LAYERS, _MORE_LAYERS))
    two_rows, many_rows = (_score(criterion, trial)[1] for trial in (_TWO_ROWS, _MANY_ROWS))
    weights = (more_layers - layers) / (_MORE_LAYERS.weights - _LAYERS.weights)
    vectors = layer / _LAYER.weights  # of one layer, and of the network that it is
    square, rows = _MANY_ROWS.columns**2, _MANY_ROWS.rows - _TWO_ROWS.rows
    more_vectors = vectors * (_MANY_ROWS.weights - _TWO_ROWS.weights)
    return {
        "weights": weights,
        "layer": vectors - weights,
        "squares": (single_rows - vectors * _TWO_ROWS.weights) / square,
        "systems": (many_rows - two_rows - more_vectors) / (rows * square),
    }


def _by_gradient(criterion: Criterion, chunk_sizes: Mapping[Chunk, int]) -> dict[str, float]:
    """Return the factors of a criterion that works on a gradient for each sample."""

    def each(layers: int) -> float:
        """Return the numbers for each gradient in one of the layers."""
        few, many = (_score(criterion, replace(_GRADIENTS, layers=layers, samples=samples))[1] for samples in (4, 12))
        return (many - few) / (8 * _GRADIENTS.weights)

    usual = each(1)
    # An eighth of a layer's gradients makes a chunk.
    with use_chunks(ChunkDivisors(systems=max(1, 2 * chunk_sizes.get("systems", 0) // _GRADIENTS.weights))):
        one, three = each(1), each(3)
    larger, smaller = replace(_GRADIENTS, rows=2 * _GRADIENTS.rows), _GRADIENTS
    grown = _score(criterion, larger)[1] - _score(criterion, smaller)[1]
    return {
        "weights": grown / (larger.weights - smaller.weights) - usual * smaller.samples,
        "layer": 0.0,
        "squares": 0.0,
        "systems": 0.0,
        "gradients": (three - one) / 2,
        "layer_gradients": one - (three - one) / 2,
        "chunked": usual - one,
    }


def _score(criterion: Criterion, trial: _Trial) -> tuple[_WatchedModel, float]:
    """Return the model after the criterion has scored the trial's layers, and the numbers that it held beside fits."""
    generator = torch.Generator().manual_seed(0)
    module = _Parallel(trial).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            # A tenth is removed: rows that keep different columns share no system.
            kept = torch.rand(parameter.shape, generator=generator) < 0.9
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * kept)
    network = Network.from_module(module)
    x = torch.randn(trial.samples, trial.columns, generator=generator)
    split = TensorSplit(x, torch.arange(trial.samples) % trial.rows)
    batches = Batches(split, Preprocess(), batch_size=trial.samples, device="cpu")
    model, fitted = _WatchedModel(network, batches), _WatchedModel(network, batches)
    criterion.score(ScoringContext(network, network.masks(), generator, model))
    if "fisher_rows" in vars(model):
        list(model.fisher_rows)  # which keeps them
    vars(fitted).update({name: fit for name, fit in vars(model).items() if name in FITS})
    context = ScoringContext(network, network.masks(), generator, fitted)
    return model, most_alive(lambda: criterion.score(context)) / _WIDE


class _Parallel(nn.Module):
    def __init__(self, trial: _Trial) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            self.layers = nn.ModuleList(nn.Linear(trial.columns, trial.rows) for _ in range(trial.layers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers]).sum(0)


class _WatchedModel(TaylorModel):
    """A Taylor model that notes whether a step is to be predicted; any step goes downhill."""

    def __init__(self, network: Network, batches: Batches) -> None:
        super().__init__(
            network,
            Risk(network.module, batches, Objective("classification", "task")),
            Positions(batches.samples, 0),
            damping=0.01,
            seed=0,
            note=lambda text: None,
            intercepts=[layer.name for layer in network.layers],
        )
        self.predicts = False

    def predict(self, displacement: Mapping[str, Tensor]) -> Prediction:
        self.predicts = True
        return Prediction(-1.0, 1.0)
