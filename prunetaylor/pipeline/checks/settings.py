"""Settings that contradict one another are refused, and what does nothing is named, before any work."""

from __future__ import annotations

from collections.abc import Iterable

from prunetaylor.core.config.asked import asked
from prunetaylor.core.config.schema import CalibrationSection, Config, FinetuneSection, PruneSection
from prunetaylor.core.errors import UsageError
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.method import choose_epochs, choose_method
from prunetaylor.pipeline.planning.repair import removal_repair, usual_repair
from prunetaylor.pipeline.planning.training import choose_distillation
from prunetaylor.pruning.interfaces import load_criterion, load_repair

_OF_FILES = {
    "gate.": "look at outcome.drop",
    "model.": "pass the network itself",
    "data.source": "pass the samples themselves",
    "data.root": "pass the samples themselves",
    "data.download": "pass the samples themselves",
    "data.size": "resize the samples that are passed",
    "data.normalize": "pass normalize=",
    "data.augment": "pass augment=",
    "output": "outcome.save(folder) writes a run's folder",
    "checkpoint.": "only `prunetaylor prune` can resume a run",
    "track": "pass progress=, whose measured() receives all numbers",
}
"""Settings without effect on ``prunetaylor.prune``, by how they begin, and what there is instead."""


def check_from_python(keys: Iterable[str], *, named: bool = False) -> None:
    """UsageError for settings of files, where networks and samples are given and nothing is written.

    ``named``: the network and the samples are named, as on a command line.
    """
    for key in keys:
        for start, instead in _OF_FILES.items():
            if key.startswith(start) and not (named and start.startswith(("model.", "data."))):
                raise UsageError(f"{key} concerns files, and no file is read or written here", instead)


def check_needs(config: Config, facts: Facts) -> None:
    """UsageError for settings that need samples, labels or epochs which are not there."""
    method, epochs = choose_method(config, facts).value, choose_epochs(config, facts).value
    criterion = load_criterion(method)
    if config.prune.schedule != "one-shot" and not epochs:
        raise UsageError(
            f"prune.schedule={config.prune.schedule} prunes during fine-tuning, and there are no epochs",
            "give --epochs, or leave prune.schedule at one-shot",
        )
    if not facts.has_data:
        if criterion.needs != "nothing":
            raise UsageError(f"{method} needs samples", "name them with --data, or use --method magnitude")
        if epochs:
            raise UsageError("fine-tuning needs samples", "name them with --data, or set --epochs 0")
        for key, given in (("refine", config.prune.refine), ("repair", config.prune.repair)):
            if asked(given) not in (None, "none"):
                raise UsageError(
                    f"prune.{key}={given} needs samples", f"name them with --data, or set prune.{key}=none"
                )
    if not facts.labelled:
        _check_without_labels(config, method, criterion.needs, bool(epochs))


def _check_without_labels(config: Config, method: str, needs: str, finetuned: bool) -> None:
    """UsageError where labels are asked for: the dense network answers for training samples without any."""
    none, weight = "the training samples have no labels", asked(config.finetune.distill.weight)
    if needs == "labels":
        raise UsageError(f"{none}, and {method} needs them", "choose another method, or leave --method at auto")
    if config.calibration.labels is True:
        raise UsageError(f"calibration.labels=true, but {none}", "leave it at auto")
    if finetuned and weight not in (None, 1):
        raise UsageError(
            f"finetune.distill.weight={weight:g} trains towards labels too, but {none}",
            "leave it at auto: the dense network is the only teacher then",
        )


def check_settings(config: Config, facts: Facts) -> list[str]:
    """Lines that name settings of no effect. UsageError for settings that cannot both be meant."""
    return [*_check_pruning(config, facts), *_check_finetuning(config, facts)]


def _check_pruning(config: Config, facts: Facts) -> list[str]:
    options, usual, lines = config.prune, PruneSection(), []
    method = choose_method(config, facts).value
    criterion = load_criterion(method)
    unused = []
    refine = asked(options.refine) or ("last" if removal_repair(criterion.default_repair) else "none")
    if refine == "none":
        unused += ["refine_steps", "refine_by"]
    repair = load_repair(usual_repair(config, method, criterion))
    if not criterion.uses_damping and not (repair is not None and repair.uses_damping):
        unused.append("damping")
    unused = [f"prune.{key}" for key in unused if getattr(options, key) != getattr(usual, key)]
    if unused:
        lines.append(f"no effect: {', '.join(unused)}")
    drawn = CalibrationSection()
    unused = [f"calibration.{key}" for key, value in config.calibration if value != getattr(drawn, key)]
    if unused and not facts.has_data:
        lines.append(f"no effect: {', '.join(unused)}, because there are no samples")
    return lines


def check_scoring(config: Config) -> list[str]:
    """A line that names settings of no effect on scores."""
    options, usual = config.prune, PruneSection()
    keys = ("stages", "schedule", "during", "refine", "refine_steps", "refine_by")
    unused = [f"prune.{key}" for key in keys if getattr(options, key) != getattr(usual, key)]
    return [f"no effect: {', '.join(unused)}, because each row is one step from the dense weights"] if unused else []


def _check_finetuning(config: Config, facts: Facts) -> list[str]:
    options = config.finetune
    gradual = {"finetune.rewind": options.rewind, "prune.during": asked(config.prune.during) is not None}
    if config.prune.schedule == "one-shot" and any(gradual.values()):
        key = next(key for key, meant in gradual.items() if meant)
        raise UsageError(
            f"{key} applies to gradual schedules, and prune.schedule is one-shot",
            f"add prune.schedule=cubic, or leave {key} at its default",
        )
    usual = FinetuneSection()
    if options.optimizer != "sgd" and options.momentum != usual.momentum:
        raise UsageError(
            f"finetune.momentum applies to sgd, and finetune.optimizer is {options.optimizer}",
            "leave one of them at its default",
        )
    if not choose_epochs(config, facts).value:
        changed = [f"finetune.{key}" for key, value in options if key != "epochs" and value != getattr(usual, key)]
        return [f"no effect: {', '.join(changed)} (fine-tuning is off; set --epochs)"] if changed else []
    weight = choose_distillation(options, facts.labelled).value
    if options.label_smoothing:
        if weight == 1:
            why = "there are none" if not facts.labelled else "finetune.distill.weight=1 uses none"
            raise UsageError(
                f"finetune.label_smoothing smooths labels, and {why}", "leave finetune.label_smoothing at 0"
            )
        if facts.task != "classification":
            raise UsageError(
                "finetune.label_smoothing needs classes, one for each sample", "leave it at 0 with this loss"
            )
    if options.distill.temperature != usual.distill.temperature and (not weight or facts.task == "regression"):
        why = "outputs that are values are not softened" if weight else "finetune.distill.weight=0 learns from labels"
        return [f"no effect: finetune.distill.temperature, as {why}"]
    return []
