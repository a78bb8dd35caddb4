"""The choice of the refinement: when all kept weights are refined jointly, by which method, in how many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config, PruneSection
from prunetaylor.core.results.choice import Choice
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pruning.interfaces import Criterion
from prunetaylor.pruning.repair import feature_matching
from prunetaylor.pruning.repair.gauss_newton import DAMPINGS, PRODUCTS
from prunetaylor.pruning.selection.trust_region import fresh_stages

GAUSS_NEWTON_STEPS = 6
MAX_WORK = {"cpu": 5e13, "mps": 1e15, "cuda": 1e16}
"""FLOPs up to which a network is refined by default, by device: some minutes of two cores, or of a GPU."""
MIN_STEPS = 50
"""Steps below which it is not worth starting."""
PASSES = 4
"""A step costs as much as so many forward passes: the dense network's, the pruned one's, and a backward pass of two."""
SAMPLE_HISTORY = 4
"""Stages whose samples a refinement still uses, where each stage draws fresh ones."""

Method = Literal["features", "gauss-newton"]


@dataclass(frozen=True)
class Refinement:
    """The refinement of a run: ``when`` it happens, ``why``, and whether the user ``asked`` for it."""

    when: Literal["none", "last", "stages"] = "none"
    by: Method = "features"
    steps: int = 0
    why: str = ""
    asked: bool = False

    def choices(self, options: PruneSection) -> list[Choice[object]]:
        """Return the choices with their reasons; ``options`` are the settings that they were made from."""
        if self.when == "none":
            return [Choice("prune.refine", "none", self.why, f"refinement: off ({self.why})")]
        towards = "matching the dense layers' outputs" if self.by == "features" else "by Gauss-Newton"
        when = "after the last stage" if self.when == "last" else "after each stage"
        line = f"refinement: {self.steps} steps {when}, {towards} ({self.why})"
        by = "it needs no labels" if self.by == "features" else "it minimises the error with labels"
        usual = self.steps == _usual_steps(self.by)
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

    A criterion that is known without least squares is compared as it is known: it is not refined by itself.

    Args:
        far: the network is not at a minimum of the error with labels.
    """
    options, when = config.prune, asked(config.prune.refine)
    learns = not far and options.refine != "last" and _learns_labels(config, facts)
    by = _method(config, "gauss-newton" if far or learns else "features")
    steps = _steps(config, by)
    if when is not None:
        return Refinement(cast(Literal["none", "last", "stages"], when), by, steps, AS_ASKED, asked=True)
    if criterion.default_repair != "least-squares":
        return Refinement(why=f"default for {method}")
    if far:
        return Refinement("stages", by, steps, "the network is not converged")
    if learns:
        return Refinement("stages", by, steps, "labels are used, and each stage draws fresh samples")
    if epochs:
        return Refinement(why="fine-tuning follows")
    if by == "gauss-newton":
        return Refinement(why="little to gain near convergence")
    step = PASSES * feature_matching.BATCH * facts.forward_work
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
    if options.refine_by == "features":
        return Refinement(why=f"{nothing}, and outputs match already; prune.refine_by=gauss-newton uses labels")
    steps = _steps(config, "gauss-newton")
    return Refinement(cast(Literal["last", "stages"], when), "gauss-newton", steps, AS_ASKED, asked=True)


def _method(config: Config, usual: Method) -> Method:
    return cast(Method, asked(config.prune.refine_by) or usual)


def _steps(config: Config, by: Method) -> int:
    return asked(config.prune.refine_steps) or _usual_steps(by)


def _usual_steps(by: Method) -> int:
    return GAUSS_NEWTON_STEPS if by == "gauss-newton" else feature_matching.STEPS


def _learns_labels(config: Config, facts: Facts) -> bool:
    """Return whether each stage should learn from labels: they are requested, samples are fresh, and the cost is
    acceptable.

    All stages together then see many times as many labels as one does, which tell more than the dense network's
    outputs.
    """
    if config.calibration.labels is not True or not config.calibration.resample:
        return False
    samples = SAMPLE_HISTORY * config.calibration.samples
    passes = GAUSS_NEWTON_STEPS * PASSES * (PRODUCTS + len(DAMPINGS) / PASSES)
    work = fresh_stages(config.prune.sparsity) * samples * passes * facts.forward_work
    return work <= MAX_WORK.get(facts.device, MAX_WORK["cpu"])
