"""The interfaces of what a configuration can name: criteria, solvers, structures, repairs and refiners.

A method is a class derived from one of these, alone in a file of the folder of its kind and found by that file's name,
or in another package that has an entry point for it (see ``prunetaylor.core.registry``). Its facts are class
attributes. Those that users read (``summary``, ``cost``, ``use``, ``needs``, ``default_repair``) are literals, as
documentation and ``prunetaylor config`` read them without importing the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from prunetaylor.core import registry
from prunetaylor.core.errors import UsageError
from prunetaylor.data.samples import Batches
from prunetaylor.network.layer import Layer
from prunetaylor.network.network import Network
from prunetaylor.pruning.intercepts import Intercept
from prunetaylor.taylor.curvature.gram import Moments
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.risk import Risk
from prunetaylor.taylor.sizes import Phase, Sizes

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
    default_repair: ClassVar[str] = "none"
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


@dataclass(frozen=True)
class Step:
    """A solver's result: the masks after it, and the displacement of all weights, by parameter name."""

    masks: dict[str, Tensor]
    displacement: dict[str, Tensor]


class Solver(Criterion):
    """A criterion that can also choose the removed weights and move the others at once.

    Attributes:
        vectors: how many numbers for each weight of the network ``solve`` holds at a time, for the memory plan; 0 if no
            more than ``score``, which is measured.
    """

    vectors: ClassVar[int] = 0

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


@dataclass(frozen=True)
class RepairContext:
    """The network after a removal, and what a repair works with.

    Attributes:
        network: it is repaired in place.
        target: the network whose layers' outputs, or statistics, are restored; it stays as it is.
        masks: True = keep, by parameter name.
        batches: the calibration samples.
        intercepts: the biases or batch-norm means that can take up a shift of a layer's mean output, by layer name.
        damping: the ridge added to a curvature, relative to its mean diagonal.
        seed: the run's, for the positions of a convolution's outputs that are sampled.
        note: adds a line to the report.
        before: the network's state before the removal.
        moments: of each layer's inputs in that state, by layer name; empty unless the repair ``needs_moments``.
        repaired: names of the layers that are repaired already, in a run that was interrupted.
    """

    network: Network
    target: Network
    masks: Masks
    batches: Batches
    intercepts: Mapping[str, Intercept]
    damping: float
    seed: int
    note: Callable[[str], None]
    before: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    repaired: Collection[str] = ()


class Repair(ABC):
    """A repair compensates for the removed weights in closed form, one layer after another, in every stage.

    A refinement of all weights at once is no ``Repair`` but a :class:`Refiner`: a run can have one of each; a repair is
    part of the stage's step, or of its acceptance, while a refiner follows a complete stage, has a number of steps, and
    decides on holdout samples what it keeps.

    Attributes:
        summary: the repair in half a sentence, for users.
        at: when it acts. After the ``removal`` its displacement is part of the stage's predicted and measured change;
            after the ``acceptance`` of the stage it is part of neither.
        uses_damping: whether it inverts a curvature to which ``prune.damping`` is added.
        needs_moments: whether the layers' moments are fitted before the removal, for the context.
        needs_batch_norms: whether it has no effect on a network without batch norms that keep running statistics.
        follows_solvers: whether it can follow a :class:`Solver`, which has moved the kept weights itself.
    """

    summary: ClassVar[str] = ""
    at: ClassVar[Literal["removal", "acceptance"]] = "removal"
    uses_damping: ClassVar[bool] = False
    needs_moments: ClassVar[bool] = False
    needs_batch_norms: ClassVar[bool] = False
    follows_solvers: ClassVar[bool] = True

    @abstractmethod
    def apply(self, context: RepairContext) -> Iterator[str]:
        """Repair ``context.network`` in place; yield the name of each layer when it is final.

        Removed weights stay zero. Layers in ``context.repaired`` are final already.
        """

    def passes(self, layers: int) -> float:
        """Return the passes over the calibration samples that a network of so many layers takes; 0 if negligible."""
        return 0.0

    def work(self, layers: Sequence[Layer]) -> float:
        """Return the floating-point operations besides these passes; 0 if negligible."""
        return 0.0

    def memory(self, sizes: Sizes) -> list[Phase]:
        """Return what is held in memory while it acts, besides the moments."""
        return []


class RefinementSamples(Protocol):
    """The calibration samples of the last stages, changed at random where they are images (``data.augment``)."""

    @property
    def chunk(self) -> int:
        """The number of samples that are passed through the network at once."""
        ...

    def augmented(self, batch_size: int) -> Batches:
        """Return shuffled training batches, which are changed anew whenever they are read."""
        ...

    def risk(self) -> Risk:
        """Return the error of the refined network on the samples after fresh changes."""
        ...


@dataclass(frozen=True)
class RefinementContext:
    """The network after a stage, and what a refiner works with.

    Attributes:
        network: it is refined in place.
        dense: the network before any pruning; it stays as it is.
        masks: True = keep, by parameter name.
        intercepts: the biases or batch-norm means that can take up a shift of a layer's mean output, by layer name.
        samples: the samples that are fitted.
        holdout: the error of ``network`` on samples that are never fitted.
        scale: the error of answering all samples alike.
        steps: the most steps that are taken.
        seed: for random draws; another for each refinement of a run.
        state: that of the last :class:`RefinementStep` of an interrupted refinement; empty at the start.
    """

    network: Network
    dense: Network
    masks: Masks
    intercepts: Mapping[str, Intercept]
    samples: RefinementSamples
    holdout: Risk
    scale: float
    steps: int
    seed: int
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RefinementStep:
    """One step of a refinement: a line for the log, if any, and the state that the next steps depend on."""

    text: str | None
    state: Callable[[], dict[str, Any]]


class Refiner(ABC):
    """A refiner moves all kept weights and biases at once, in steps, and keeps what holdout samples confirm.

    It is no :class:`Repair`, whose docstring gives the reason.

    Attributes:
        summary: the refiner in half a sentence, for users.
        action: what the log says of it behind the number of steps.
        towards: what it lowers: the distance of each layer's outputs from those of the dense network, or the run's
            error itself, which may be the one with labels.
        usual_steps: the number of steps of ``prune.refine_steps=auto``, at most.
    """

    summary: ClassVar[str] = ""
    action: ClassVar[str] = ""
    towards: ClassVar[Literal["dense layers", "error"]] = "error"
    usual_steps: ClassVar[int]

    @abstractmethod
    def refine(self, context: RefinementContext) -> Iterator[RefinementStep]:
        """Refine ``context.network`` in place, yielding after each step. Removed weights stay zero."""

    @abstractmethod
    def passes(self, samples: int) -> float:
        """Return the cost of a step on so many samples, in forward passes of one sample."""

    @abstractmethod
    def memory(self, sizes: Sizes) -> Phase:
        """Return what is held in memory during a step."""


def load_criterion(name: str) -> Criterion:
    """Return the criterion of that name; UsageError if there is none."""
    return registry.load(registry.CRITERIA, Criterion, name)


def load_structure(name: str) -> Structure:
    """Return the structure of that name; UsageError if there is none."""
    return registry.load(registry.STRUCTURES, Structure, name)


def load_repair(name: str) -> Repair | None:
    """Return the repair of that name, None for "none"; UsageError if there is no such repair."""
    return None if name == "none" else registry.load(registry.REPAIRS, Repair, name)


def load_refiner(name: str) -> Refiner:
    """Return the refiner of that name; UsageError if there is none."""
    return registry.load(registry.REFINERS, Refiner, name)
