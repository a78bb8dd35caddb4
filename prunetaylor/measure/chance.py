"""A network held against the best answer that never changes: is it certain that it is no better?

A network that was opened with the wrong classes, scaling or weights is at chance or below. Everything after it is then
meaningless, though every number looks like one: from 1 % to 8 % is "+7 pp". It is said where all of this is certain,
one-sided at 95 % each:

1. its accuracy is not above that of the most frequent class by more than a margin, or not above 1 / classes;
2. its balanced accuracy, the mean over classes of the share that is right, is not above 1 / classes by more than that;
3. its cross-entropy is above that of the classes' shares, which no useful calibrated network's is; where one class is
   frequent, by up to a quarter of that.

Each alone has innocent causes: of two classes 95:5 a useful network may answer like the majority (1), one that was
trained with weighted classes may be right less often than the majority (1) at a cross-entropy that is larger (3). The
margin is 2 % of the way from chance to always right, though at most half of what chance is: a network with labels
mixed up at random *is* at chance, and no number of samples would show it to be below.

Of answers that are values the loss alone is compared, with that of the mean. docs/explanation/chance.md has the
error rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from prunetaylor.core.results.outcome import CLASSES_RENAMED, DENSE_AT_CHANCE, Alert
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.measure.paired import tango
from prunetaylor.taylor.objective import Task

FEWEST = 20
"""Samples below which nothing is said."""
SKILL, SHARE = 0.02, 0.5
"""The margin: at most this share of the way from chance to always right, and this share of what chance is."""
SLACK = 0.25
"""Share of the constant answer's loss that bad calibration may cost where one class is all."""
MATCH = 0.5
"""Share of the samples that must be right after renaming the classes, and at most half as many before."""
_Z = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Constant:
    """The best answer that never changes on some samples. ``losses`` (N,) are of one that did not see each sample."""

    metrics: dict[str, float]  # as an Evaluation's; empty where nobody knows the best answer
    losses: Tensor | None


def constant_answer(found: Evaluation, task: Task) -> Constant:
    """Take the best constant answer from the labels themselves."""
    targets = found.targets.cpu()
    losses = _constant_losses(targets, task) if len(targets) > 1 else None
    metrics = {} if losses is None else {"loss": float(losses.mean())}
    if found.correct is not None and len(targets):
        metrics = {"top1": 100 * int(_counts(targets)[1].max()) / len(targets), **metrics}
    return Constant(metrics, losses)


def doubt(found: Evaluation, task: Task, *, pruned: bool = False) -> Alert | None:
    """What to tell the user of a network that is certainly no better than guessing, or whose classes are renamed.

    ``pruned``: it has been pruned before, so that it may be ruined rather than misread.
    """
    constant = constant_answer(found, task)
    if len(found.losses) < FEWEST or bool((found.targets == found.targets[:1]).all()):
        return None  # where all labels are the same, nothing can be better than always giving it
    if constant.losses is not None and not _above_zero(
        found.losses.detach().double().cpu() - _slack(found) * constant.losses
    ):
        return None
    renamed = _renamed(found)
    compared = f"on these {len(found.losses):,} samples: {_compared(found, constant.metrics)}"
    if _no_better(found):
        key, text = DENSE_AT_CHANCE, f"the network is no better than guessing {compared}"
    elif renamed is not None:
        key, text = CLASSES_RENAMED, f"the network knows the classes by other ids {compared}"
    else:
        return None
    causes = ["class ids in another order or shifted by one"] if found.correct is not None else ["other targets"]
    causes += ["inputs scaled unlike in training (data.normalize)", "another image size (data.size)"]
    causes += ["the wrong checkpoint or architecture", *(["pruned too far"] if pruned else [])]
    likely = f"Most likely {renamed}" if renamed else f"Likely causes: {', '.join(causes)}"
    return Alert(key, f"{text}. Nothing measured against it means anything. {likely}.")


def at_chance(found: Evaluation, task: Task) -> bool:
    """Whether the network is certainly no better than an answer that never changes."""
    alert = doubt(found, task)
    return alert is not None and alert.key == DENSE_AT_CHANCE


def plainly_better(found: Evaluation, task: Task) -> bool:
    """Whether the network is certainly better than an answer that never changes, by its loss or its accuracy."""
    constant = constant_answer(found, task).losses
    if constant is not None and _above_zero(constant - found.losses.detach().double().cpu()):
        return True
    if found.correct is None:
        return False
    most = _most_frequent(_counts(found.targets.cpu())[0])
    correct = found.correct.cpu()
    return tango(int((correct & ~most).sum()), int((~correct & most).sum()), len(most), 0.9, correction=0.5)[0] > 0


def _no_better(found: Evaluation) -> bool:
    """By right and wrong answers, where there are such."""
    if found.answers is not None and bool((found.answers == found.answers[:1]).all()):
        return True  # it is itself an answer that never changes
    if found.correct is not None:
        return _not_above(found.correct.cpu(), found.targets.cpu())
    return found.answers is None or _answers_not_above(found.answers.cpu(), found.targets.cpu())


def _compared(found: Evaluation, constant: Mapping[str, float]) -> str:
    """Its metrics beside those of the constant answer."""
    parts = []
    if "top1" in constant:
        parts.append(
            f"top-1 {found.metrics['top1']:.2f} % (always answering the most frequent class: {constant['top1']:.2f} %)"
        )
    if "loss" in constant:
        what = "answering with the class frequencies" if found.correct is not None else "the best constant answer"
        parts.append(f"loss {found.metrics['loss']:.4g} ({what}: {constant['loss']:.4g})")
    return ", ".join(parts)


def _slack(found: Evaluation) -> float:
    """How much larger than the constant answer's the loss may be; 1 where the classes are equally frequent.

    Where one class is nearly all, a useful network may always answer it, and its small gain in loss is less than bad
    calibration costs, as after training with smoothed labels.
    """
    if found.correct is None:
        return 1.0
    counts = _counts(found.targets.cpu())[1]
    return 1 + SLACK * (float(counts.max() / counts.sum()) - 1 / len(counts)) / (1 - 1 / len(counts))


def _constant_losses(targets: Tensor, task: Task) -> Tensor | None:
    """The loss of each sample (N,) for the answer that the other samples suggest; None for a loss of the user's.

    Leaving the sample itself out keeps the comparison fair: shares that have seen it would fit it too well. Half a
    sample is added to each count (Krichevsky & Trofimov 1981), so that a class seen once costs no infinity.
    """
    n = len(targets)
    if task == "classification":
        at, counts = _counts(targets)
        others = counts[at].double() - 0.5
        return -(others / (n - 1 + 0.5 * len(counts))).log()
    if task == "binary":
        y = targets.reshape(n, -1).double()
        yes = (y.sum(0) - y + 0.5) / n
        return -torch.where(y > 0.5, yes, 1 - yes).log().sum(1)
    if task == "regression":
        y = targets.reshape(n, -1).double()
        return 0.5 * ((y - y.mean(0)) * n / (n - 1)).square().sum(1)
    return None


def _above_zero(values: Tensor) -> bool:
    """Whether a mean is certainly positive, by Student's one-sided 95 % limit; errors with long tails make it late."""
    n = len(values)
    return float(values.mean()) > _student(n - 1) * float(values.std()) / math.sqrt(n)


def _student(degrees: int) -> float:
    """Student's 95 % quantile (Abramowitz & Stegun 26.7.5); from 19 degrees on right to three digits."""
    z = _Z
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


def _counts(classes: Tensor) -> tuple[Tensor, Tensor]:
    """The place (N,) of each label among those that are seen, and how often each of these is."""
    _, at, counts = torch.unique(classes, return_inverse=True, return_counts=True)
    return at, counts


def _margin(chance: float) -> float:
    return min(SKILL * (1 - chance), SHARE * chance)


def _not_above(correct: Tensor, targets: Tensor) -> bool:
    """Whether neither accuracy (N,) nor balanced accuracy is above that of one answer, by more than a margin."""
    n = len(targets)
    at, counts = _counts(targets)
    classes = len(counts)
    right = torch.zeros(classes, dtype=torch.double).index_add_(0, at, correct.double())
    chance = 1 / classes
    balanced = _upper(right, counts, chance / counts.double())
    if balanced > chance + _margin(chance):
        return False
    plain = _upper(right.sum()[None], torch.tensor([n]), torch.tensor([1 / n], dtype=torch.double))
    if plain <= chance + _margin(chance):
        return True
    constant = _most_frequent(at)
    won, lost = int((correct & ~constant).sum()), int((~correct & constant).sum())
    return tango(won, lost, n, 0.9, correction=0.5)[1] <= _margin(float(constant.double().mean()))


def _most_frequent(classes: Tensor) -> Tensor:
    """(N,) boolean: the label is the most frequent one, as a random other half of the samples has it.

    The most frequent class of the same samples would look more frequent than it is.
    """
    half = torch.zeros(len(classes), dtype=torch.bool)
    half[torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))[::2]] = True
    found = torch.zeros_like(half)
    for part in (half, ~half):
        found[part] = classes[part] == classes[~part].bincount().argmax()
    return found


def _upper(right: Tensor, counts: Tensor, weights: Tensor) -> float:
    """The upper one-sided 95 % limit of a weighted sum of binomial counts.

    Fay & Feuer (1997), Statistics in Medicine 16:791-801: the sum y = w'X with variance v is taken for a multiple of a
    chi-square variable after one more success of the largest weight,

        v+ / 2y+  chi2(0.95; 2 y+^2 / v+),    y+ = y + max w,   v+ = v + (max w)^2,

    which keeps its level where a class has few samples or none right. The variance is the binomials', not Poisson's:
    a network that always gives one answer has none. Wilson and Hilferty's quantile is right to 1 %.
    """
    rates = right / counts
    most = float(weights.max())
    y = float((weights * right).sum()) + most
    v = float((weights.square() * right * (1 - rates)).sum()) + most**2
    degrees = 2 * y * y / v
    quantile = degrees * (1 - 2 / (9 * degrees) + _Z * math.sqrt(2 / (9 * degrees))) ** 3
    return v / (2 * y) * quantile


def _answers_not_above(answers: Tensor, targets: Tensor) -> bool:
    """The same of several answers of yes or no a sample, (N, K): their balanced accuracy alone, over the columns."""
    wanted = targets.reshape(answers.shape) > 0.5
    yes, no = wanted.sum(0), (~wanted).sum(0)
    both = (yes > 0) & (no > 0)
    if not bool(both.any()):
        return False
    share = torch.where(wanted, 0.5 / yes, 0.5 / no)[:, both].double() / int(both.sum())
    each = (share * ((answers > 0.5) == wanted)[:, both]).sum(1)
    n, most = len(each), float(share.sum(1).max())
    limit = float(each.sum()) + _Z * math.sqrt(n * float(each.var()) + most**2)
    return limit <= 0.5 + _margin(0.5)


def _renamed(found: Evaluation) -> str | None:
    """Which renaming of the classes makes most answers right; None where none does.

    Each answer's most frequent label is found on a random half of the samples, and tried on the other.
    """
    if found.correct is None or found.answers is None or found.answers.dim() != 1:
        return None
    answers, labels = found.answers.long().cpu(), found.targets.long().cpu()
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))
    fit, test = order[::2], order[1::2]
    size = int(max(answers.max(), labels.max())) + 1
    pairs, counts = torch.unique(answers[fit] * size + labels[fit], return_counts=True)
    # the largest of count and label together is the label that is seen most; -1: the answer is never given
    best = torch.full((size,), -1).scatter_reduce_(0, pairs // size, counts * size + pairs % size, "amax")
    seen = best >= 0
    best = torch.where(seen, best % size, -1)
    if int(seen.sum()) < 2 or len(torch.unique(best[seen])) < 0.9 * int(seen.sum()):
        return None  # several answers for one label: that is no renaming
    agree = best[answers[test]] == labels[test]
    share = float(agree.double().mean())
    if share < MATCH or float(found.correct.cpu()[test].double().mean()) > share / 2:
        return None
    shifts = (labels[test] - answers[test])[agree]
    shift = int(shifts.mode().values)
    renamed = f"{100 * share:.0f} % of the answers are right after renaming them"
    if shift and float((shifts == shift).double().mean()) > 0.5:
        return f"the labels' class ids are shifted by {shift:+d} against the network's ({renamed})"
    return f"the labels' class ids are in another order than the network's ({renamed})"
