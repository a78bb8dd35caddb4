"""The choice of the refinement: when all kept weights are refined jointly, by which method, in how many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config, PruneSection
from prunetaylor.core.results.choice import Choice
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.repair import removal_repair
from prunetaylor.pruning.interfaces import Criterion, Refiner, load_refiner
from prunetaylor.pruning.selection.trust_region import fresh_stages

TOWARDS_DENSE, TOWARDS_ERROR = "features", "gauss-newton"
"""The refiners of ``prune.refine_by=auto``: towards the dense layers' outputs, and towards the error itself."""
MAX_WORK = {"cpu": 5e13, "mps": 1e15, "cuda": 1e16}
"""FLOPs up to which a network is refined by default, by device: some minutes of two cores, or of a GPU."""
MIN_STEPS = 50
"""Steps below which it is not worth starting."""
SAMPLE_HISTORY = 4
"""Stages whose samples a refinement still uses, where each stage draws fresh ones."""


@dataclass(frozen=True)
class Refinement:
    """The refinement of a run: ``when`` it happens, ``why``, and whether the user ``asked`` for it."""

    when: Literal["none", "last", "stages"] = "none"
    by: str = TOWARDS_DENSE
    steps: int = 0
    why: str = ""
    asked: bool = False

    @property
    def refiner(self) -> Refiner:
        """Return the refiner by its name."""
        return load_refiner(self.by)

    def choices(self, options: PruneSection) -> list[Choice[object]]:
        """Return the choices with their reasons; ``options`` are the settings that they were made from."""
        if self.when == "none":
            return [Choice("prune.refine", "none", self.why, f"refinement: off ({self.why})")]
        when = "after the last stage" if self.when == "last" else "after each stage"
        line = f"refinement: {self.steps} steps {when}, {self.refiner.action} ({self.why})"
        needs_labels = self.refiner.towards == "error"
        by = "it minimises the error with labels" if needs_labels else "it needs no labels"
        usual = self.steps == self.refiner.usual_steps
        return [
            Choice("prune.refine", self.when, self.why, line),
            Choice("prune.refine_by", self.by, by if asked(options.refine_by) is None else AS_ASKED),
            Choice(
                "prune.refine_steps",
                self.steps,
                AS_ASKED if asked(options.refine_steps) else "the default" if usual else "as many as take some minutes",
            ),
        ]


def choose_refinement(
    config: Config, facts: Facts, method: str, criterion: Criterion, *, epochs: int, far: bool
) -> Refinement:
    """The refinement that is asked for, else the one that is worth its time.

    A criterion that is known without moving the kept weights is compared as it is known: it is not refined by itself.

    Args:
        far: the network is not at a minimum of the error with labels.
    """
    options, when = config.prune, asked(config.prune.refine)
    learns = not far and options.refine != "last" and _learns_labels(config, facts)
    by = _method(config, TOWARDS_ERROR if far or learns else TOWARDS_DENSE)
    steps = _steps(config, by)
    if when is not None:
        return Refinement(cast(Literal["none", "last", "stages"], when), by, steps, AS_ASKED, asked=True)
    if removal_repair(criterion.default_repair) is None:
        return Refinement(why=f"default for {method}")
    if far:
        return Refinement("stages", by, steps, "the network is not converged")
    if learns:
        return Refinement("stages", by, steps, "labels are used, and each stage draws fresh samples")
    if epochs:
        return Refinement(why="fine-tuning follows")
    refiner = load_refiner(by)
    if refiner.towards == "error":
        return Refinement(why="little to gain near convergence")
    step = refiner.passes(config.calibration.samples) * facts.forward_work
    most = MAX_WORK.get(facts.device, MAX_WORK["cpu"])
    if step * MIN_STEPS > most:
        much = f"{step * steps / 1e12:,.0f} TFLOP on the {facts.device}"
        return Refinement(why=f"{steps} steps would cost {much}; prune.refine=last runs them all the same")
    steps = min(steps, int(most // step)) if step else steps
    work = step * steps / 1e12
    amount = f"{work:,.1f}" if work >= 0.05 else "less than 0.1"
    return Refinement("last", by, steps, f"affordable: {amount} TFLOP")


def refine_without_pruning(config: Config, facts: Facts, *, labels: bool) -> Refinement:
    """The refinement where nothing is removed: only labels can improve a network that all else compares with itself.

    ``labels``: the error is the one with labels.
    """
    options, when, nothing = config.prune, asked(config.prune.refine), "nothing is removed"
    if when == "none":
        return Refinement(why=AS_ASKED)
    if when is None:
        return Refinement(why=nothing)
    if options.schedule != "one-shot":
        return Refinement(why=f"{nothing}, and fine-tuning follows")
    if not labels:
        remedy = "; calibration.labels=true uses them" if facts.labelled else ""
        return Refinement(why=f"{nothing}, and only labels could improve the dense network{remedy}")
    by = _method(config, TOWARDS_ERROR)
    if load_refiner(by).towards == "dense layers":
        return Refinement(why=f"{nothing}, and outputs match already; prune.refine_by={TOWARDS_ERROR} uses labels")
    steps = _steps(config, by)
    return Refinement(cast(Literal["last", "stages"], when), by, steps, AS_ASKED, asked=True)


def _method(config: Config, usual: str) -> str:
    return asked(config.prune.refine_by) or usual


def _steps(config: Config, by: str) -> int:
    return asked(config.prune.refine_steps) or load_refiner(by).usual_steps


def _learns_labels(config: Config, facts: Facts) -> bool:
    """Return whether each stage should learn from labels: they are requested, samples are fresh, and the cost is
    acceptable.

    All stages together then see many times as many labels as one does, which tell more than the dense network's
    outputs.
    """
    if config.calibration.labels is not True or not config.calibration.resample:
        return False
    refiner = load_refiner(TOWARDS_ERROR)
    passes = refiner.usual_steps * refiner.passes(SAMPLE_HISTORY * config.calibration.samples)
    work = fresh_stages(config.prune.sparsity) * passes * facts.forward_work
    return work <= MAX_WORK.get(facts.device, MAX_WORK["cpu"])
