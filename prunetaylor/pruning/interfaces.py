"""The interfaces of what a configuration can name: criteria, solvers and structures.

A method is a class derived from one of these, alone in a file of ``criteria/`` or ``structures/`` and found by that
file's name, or in another package that has an entry point for it (see ``prunetaylor.core.registry``). Its facts are
class attributes. Those that users read (``summary``, ``cost``, ``use``, ``needs``, ``default_repair``) are literals,
as documentation and ``prunetaylor config`` read them without importing the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prunetaylor.core import registry
from prunetaylor.core.errors import UsageError
from prunetaylor.network.layer import Layer
from prunetaylor.network.network import Network
from prunetaylor.taylor.memory import Phase, Sizes
from prunetaylor.taylor.model import TaylorModel

RepairName = Literal["least-squares", "obs", "batch-norm", "none"]
"""The repairs of a stage. They run at different points of it: obs and least squares follow the removal, the former from
the curvature that was fitted before it, the latter from new passes over the samples; batch norm follows acceptance."""
Masks = Mapping[str, Tensor]
"""Boolean tensors in the weights' shapes, True = keep, by parameter name."""


@dataclass(frozen=True)
class ScoringContext:
    """The network as a stage finds it, and what is known about it.

    Attributes:
        network: its prunable layers with their current weights.
        masks: the weights that are not removed yet, for every prunable weight.
        generator: the run's source of random numbers, on the CPU.
        taylor_model: the error's expansion at the current weights; None in a run without samples.
    """

    network: Network
    masks: Masks
    generator: torch.Generator
    taylor_model: TaylorModel | None = None

    @property
    def model(self) -> TaylorModel:
        """The error's expansion at the current weights; UsageError in a run without samples."""
        if self.taylor_model is None:
            raise UsageError("this criterion needs samples", "name them with --data, or use --method magnitude")
        return self.taylor_model


class Criterion(ABC):
    """A criterion says how much the error increases if a weight is removed.

    Attributes:
        summary: the method in half a sentence, for users.
        cost: what it computes, and how that grows.
        use: when to choose it.
        needs: what it cannot do without.
        default_repair: what ``prune.repair=auto`` means with it.
        uses_gradient: whether its scores contain the gradient's term where the first-order term is kept.
        uses_damping: whether it inverts a curvature to which ``prune.damping`` is added.
        max_stage_fraction: the largest share of the remaining weights that one stage of ``prune.stages=auto`` removes;
            None if there is only one stage.
    """

    summary: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    use: ClassVar[str] = ""
    needs: ClassVar[Literal["nothing", "samples", "labels"]] = "samples"
    default_repair: ClassVar[RepairName] = "none"
    uses_gradient: ClassVar[bool] = False
    uses_damping: ClassVar[bool] = False
    max_stage_fraction: ClassVar[float | None] = None

    @abstractmethod
    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        """Return the estimated increase of the error for each prunable weight, in its shape, by parameter name.

        Scores of weights that are removed already are ignored.
        """

    def work(self, layers: Sequence[Layer]) -> float:
        """Return the floating-point operations of one scoring besides passes over the samples; 0 if negligible."""
        return 0.0

    def memory(self, sizes: Sizes) -> list[Phase]:
        """Return what is held in memory while it scores or solves, by default the scores alone."""
        return [Phase("scores", {"scores": sizes.wide * sizes.weights})]


@dataclass(frozen=True)
class Step:
    """A solver's result: the masks after it, and the displacement of all weights, by parameter name."""

    masks: dict[str, Tensor]
    displacement: dict[str, Tensor]


class Solver(Criterion):
    """A criterion that can also choose the removed weights and move the others at once."""

    @abstractmethod
    def solve(self, context: ScoringContext, removed: int) -> Step:
        """Return the step after which ``removed`` weights are zero, those removed before included."""


@dataclass(frozen=True)
class Groups:
    """Groups of one kind in the same tensors, such as the weights of a layer or the channels of coupled layers.

    Selection removes groups as a whole, and leaves one of each ``Groups`` if it can. The numbers of all N groups are
    tensors, so that a group costs no Python object.

    Attributes:
        name: how messages call them, such as the layer's name.
        scores: (N,), the estimated increase of the error if a group is removed.
        removed: (N,) boolean, True for groups that are removed already; their scores and costs are ignored.
        costs: (N,) by name of the cost: what the removal of a group saves. A cost is positive, and costs of several
            groups add up. Every structure states "weights", the number of prunable weights.
        members: by parameter name: a function that turns which groups stay, (N,) True = keep, into the parameter's
            mask. A channel has members in several layers: the rows that write it, and the columns that read it.
    """

    name: str
    scores: Tensor
    removed: Tensor
    costs: Mapping[str, Tensor]
    members: Mapping[str, Callable[[Tensor], Tensor]]


class Structure(ABC):
    """A structure says which weights are removed together.

    Attributes:
        summary: the structure in half a sentence, for users.
    """

    summary: ClassVar[str] = ""

    @abstractmethod
    def groups(self, context: ScoringContext, scores: Mapping[str, Tensor]) -> list[Groups]:
        """Return all groups of the network.

        Args:
            context: the network, its masks, and its Taylor model in a run with samples.
            scores: a criterion's, of each prunable weight in its shape, by parameter name.
        """


def load_criterion(name: str) -> Criterion:
    """Return the criterion of that name; UsageError if there is none."""
    return registry.load(registry.CRITERIA, Criterion, name)


def load_structure(name: str) -> Structure:
    """Return the structure of that name; UsageError if there is none."""
    return registry.load(registry.STRUCTURES, Structure, name)
