"""Compare a network with the best constant answer, and warn if it is certainly no better.

A network that was opened with the wrong classes, scaling or weights is at chance or below. Every later number is then
meaningless, though it looks like any other: from 1 % to 8 % is "+7 pp". The warning is given if all of these are
certain, one-sided at 95 % each:

1. its accuracy is not above that of the most frequent class by more than a margin, or not above 1 / classes;
2. its balanced accuracy, the mean over classes of the share that is right, is not above 1 / classes by more than that;
3. its cross-entropy is above that of the class frequencies, which no useful calibrated network's is; if one class is
   frequent, by up to a quarter of that.

Each alone has innocent causes: with two classes 95:5 a useful network may always predict the majority (1), and one that
was trained with weighted classes may be right less often than the majority (1) with a larger cross-entropy (3). The
margin is 2 % of the way from chance to always right, but at most half of the chance level: a network whose labels were
shuffled *is* at chance, and no number of samples would show it to be below.

For regression only the loss is compared, with that of the mean. Where a sample has a class for each token or pixel, its
mean loss and its share of right positions are compared with those of the classes' shares and of the most frequent one.
docs/explanation/chance.md has the error rates.
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
from prunetaylor.taylor.objective import IGNORED, Task

MIN_SAMPLES = 20
"""With fewer samples there is no warning."""
SKILL_MARGIN, CHANCE_MARGIN = 0.02, 0.5
"""The margin is at most this share of the way from chance to always right, and this share of the chance level."""
CALIBRATION_SLACK = 0.25
"""The share of the constant answer's loss that bad calibration may cost if one class is nearly all samples."""
RENAMED_SHARE = 0.5
"""The share of the samples that must be right after renaming the classes; at most half as many may be before."""
_Z = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class ConstantAnswer:
    """The best constant answer on some samples; each of ``losses`` (N,) is for the answer fitted to the others."""

    metrics: dict[str, float]  # as an Evaluation's; empty if the best answer is unknown
    losses: Tensor | None


def best_constant_answer(evaluation: Evaluation, task: Task) -> ConstantAnswer:
    """Return the best constant answer to the labels of an evaluation."""
    targets = evaluation.targets.cpu()
    losses = _constant_losses(targets, task) if len(targets) > 1 else None
    metrics = {} if losses is None else {"loss": float(losses.mean())}
    if evaluation.correct is not None and len(targets):
        metrics = {"top1": 100 * int(_counts(targets)[1].max()) / len(targets), **metrics}
    return ConstantAnswer(metrics, losses)


def check_chance(evaluation: Evaluation, task: Task, *, pruned: bool = False) -> Alert | None:
    """Return a warning if the network is certainly no better than guessing, or if its classes are renamed.

    ``pruned``: the network has been pruned before, so that it may be ruined rather than opened wrongly.
    """
    baseline = best_constant_answer(evaluation, task)
    if len(evaluation.losses) < MIN_SAMPLES or bool((evaluation.targets == evaluation.targets[:1]).all()):
        return None  # with one label nothing can be better than always predicting it
    if baseline.losses is not None and not _above_zero(
        evaluation.losses.detach().double().cpu() - _slack(evaluation) * baseline.losses
    ):
        return None
    renamed = _renamed(evaluation)
    compared = f"on these {len(evaluation.losses):,} samples: {_compared(evaluation, baseline.metrics)}"
    if _no_better(evaluation):
        key, text = DENSE_AT_CHANCE, f"the network is no better than guessing {compared}"
    elif renamed is not None:
        key, text = CLASSES_RENAMED, f"the network knows the classes by other ids {compared}"
    else:
        return None
    classes = evaluation.correct is not None or evaluation.accuracy is not None
    causes = ["class ids in another order or shifted by one"] if classes else ["other targets"]
    causes += ["inputs scaled unlike in training (data.normalize)", "another image size (data.size)"]
    causes += ["the wrong checkpoint or architecture", *(["pruned too far"] if pruned else [])]
    likely = f"Most likely {renamed}" if renamed else f"Likely causes: {', '.join(causes)}"
    return Alert(key, f"{text}. Comparisons with it are meaningless. {likely}.")


def is_at_chance(evaluation: Evaluation, task: Task) -> bool:
    """Return True if the network is certainly no better than a constant answer."""
    alert = check_chance(evaluation, task)
    return alert is not None and alert.key == DENSE_AT_CHANCE


def is_above_chance(evaluation: Evaluation, task: Task) -> bool:
    """Return True if the network is certainly better than a constant answer, by its loss or its accuracy."""
    baseline = best_constant_answer(evaluation, task).losses
    if baseline is not None and _above_zero(baseline - evaluation.losses.detach().double().cpu()):
        return True
    if evaluation.accuracy is not None:
        return _above_zero(evaluation.accuracy.double().cpu() - _most_frequent_shares(evaluation.targets.cpu()))
    if evaluation.correct is None:
        return False
    most = _most_frequent(_counts(evaluation.targets.cpu())[0])
    correct = evaluation.correct.cpu()
    return tango(int((correct & ~most).sum()), int((~correct & most).sum()), len(most), 0.9, correction=0.5)[0] > 0


def _no_better(evaluation: Evaluation) -> bool:
    """Return True if the predictions, where they are right or wrong, are certainly no better than a constant one."""
    if evaluation.predictions is not None and bool((evaluation.predictions == evaluation.predictions[:1]).all()):
        return True  # the network itself gives a constant answer
    if evaluation.accuracy is not None:
        baseline = _most_frequent_shares(evaluation.targets.cpu())
        gain, margin = evaluation.accuracy.double().cpu() - baseline, _margin(float(baseline.mean()))
        return _above_zero(margin - gain)
    if evaluation.correct is not None:
        return _not_above(evaluation.correct.cpu(), evaluation.targets.cpu())
    return evaluation.predictions is None or _labels_not_above(evaluation.predictions.cpu(), evaluation.targets.cpu())


def _compared(evaluation: Evaluation, baseline: Mapping[str, float]) -> str:
    """Describe its metrics beside those of the constant answer."""
    parts = []
    if "top1" in baseline:
        assert evaluation.correct is not None  # as the constant answer has an accuracy
        top1 = 100 * int(evaluation.correct.sum()) / len(evaluation.correct)
        parts.append(f"top-1 {top1:.2f} % (always predicting the most frequent class: {baseline['top1']:.2f} %)")
    if evaluation.accuracy is not None:
        right = 100 * float(evaluation.accuracy.double().mean())
        most = 100 * float(_most_frequent_shares(evaluation.targets.cpu()).mean())
        parts.append(
            f"{right:.2f} % of the positions are right (always predicting the most frequent class: {most:.2f} %)"
        )
    if "loss" in baseline:
        classes = evaluation.correct is not None or evaluation.accuracy is not None
        what = "predicting the class frequencies" if classes else "the best constant answer"
        parts.append(f"loss {evaluation.metrics['loss']:.4g} ({what}: {baseline['loss']:.4g})")
    return ", ".join(parts)


def _slack(evaluation: Evaluation) -> float:
    """Return how many times the constant answer's loss a network may have; 1 if classes are equally frequent.

    If one class is nearly all samples, a useful network may always predict it, and its small gain in loss is less than
    bad calibration costs, as after training with smoothed labels.
    """
    if evaluation.correct is None:
        return 1.0
    counts = _counts(evaluation.targets.cpu())[1]
    return 1 + CALIBRATION_SLACK * (float(counts.max() / counts.sum()) - 1 / len(counts)) / (1 - 1 / len(counts))


def _constant_losses(targets: Tensor, task: Task) -> Tensor | None:
    """Return the loss of each sample (N,) for the best answer to the other samples; None for a user's loss.

    Leaving the sample itself out keeps the comparison fair: shares that have seen it would fit it too well. Half a
    sample is added to each count (Krichevsky & Trofimov 1981), so that a class seen once has a finite loss.
    """
    n = len(targets)
    if task == "classification" and targets.dim() == 2:
        return _constant_position_losses(targets)
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


def _constant_position_losses(targets: Tensor) -> Tensor:
    """As :func:`_constant_losses`, for the class ids (N, P) of positions: the mean over each sample's that count."""
    counted = targets != IGNORED
    at, counts = _counts(targets[counted])
    sample = counted.nonzero()[:, 0]
    _, pair, own = torch.unique(sample * len(counts) + at, return_inverse=True, return_counts=True)
    others = (counts[at] - own[pair]).double() + 0.5  # of the class, in the other samples
    total = len(at) - counted.sum(1)[sample] + 0.5 * len(counts)
    losses = torch.zeros(len(targets), dtype=torch.double).index_add_(0, sample, -(others / total).log())
    return losses / counted.sum(1).clamp_min(1)


def _most_frequent_shares(targets: Tensor) -> Tensor:
    """Return the share (N,) of each sample's positions that count and have the most frequent class of all samples."""
    counted = targets != IGNORED
    most = int(targets[counted].mode().values)
    return ((targets == most) & counted).sum(1).double() / counted.sum(1).clamp_min(1)


def _above_zero(values: Tensor) -> bool:
    """Return True if a mean is certainly positive, by Student's one-sided 95 % limit; long tails delay that."""
    n = len(values)
    return float(values.mean()) > _student(n - 1) * float(values.std()) / math.sqrt(n)


def _student(degrees: int) -> float:
    """Return Student's 95 % quantile (Abramowitz & Stegun 26.7.5), from 19 degrees on right to three digits."""
    z = _Z
    g1, g2 = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + g1 / degrees + g2 / degrees**2


def _counts(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index (N,) of each label among those that occur, and how often each of these occurs."""
    _, at, counts = torch.unique(classes, return_inverse=True, return_counts=True)
    return at, counts


def _margin(chance: float) -> float:
    return min(SKILL_MARGIN * (1 - chance), CHANCE_MARGIN * chance)


def _not_above(correct: Tensor, targets: Tensor) -> bool:
    """Return True if accuracy or balanced accuracy is certainly within a margin of a constant answer's."""
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
    baseline = _most_frequent(at)
    won, lost = int((correct & ~baseline).sum()), int((~correct & baseline).sum())
    return tango(won, lost, n, 0.9, correction=0.5)[1] <= _margin(float(baseline.double().mean()))


def _most_frequent(classes: Tensor) -> Tensor:
    """Return for each label (N,) whether it is the most frequent one of a random other half of the samples.

    The most frequent class of the same samples would look more frequent than it is.
    """
    half = torch.zeros(len(classes), dtype=torch.bool)
    half[torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))[::2]] = True
    is_most_frequent = torch.zeros_like(half)
    for part in (half, ~half):
        is_most_frequent[part] = classes[part] == classes[~part].bincount().argmax()
    return is_most_frequent


def _upper(right: Tensor, counts: Tensor, weights: Tensor) -> float:
    """Return the upper one-sided 95 % limit of a weighted sum of binomial counts.

    Fay & Feuer (1997), Statistics in Medicine 16:791-801: the sum y = w'X with variance v is taken for a multiple of a
    chi-square variable after one more success of the largest weight,

        v+ / 2y+  chi2(0.95; 2 y+^2 / v+),    y+ = y + max w,   v+ = v + (max w)^2,

    which keeps its level where a class has few samples or none right. The variance is the binomials', not Poisson's:
    a network with a constant answer has none. Wilson and Hilferty's quantile is right to 1 %.
    """
    rates = right / counts
    most = float(weights.max())
    y = float((weights * right).sum()) + most
    v = float((weights.square() * right * (1 - rates)).sum()) + most**2
    degrees = 2 * y * y / v
    quantile = degrees * (1 - 2 / (9 * degrees) + _Z * math.sqrt(2 / (9 * degrees))) ** 3
    return v / (2 * y) * quantile


def _labels_not_above(predictions: Tensor, targets: Tensor) -> bool:
    """Return True if the balanced accuracy over K binary labels (N, K) is certainly within a margin of one half."""
    labels = targets.reshape(predictions.shape) > 0.5
    yes, no = labels.sum(0), (~labels).sum(0)
    both = (yes > 0) & (no > 0)
    if not bool(both.any()):
        return False
    share = torch.where(labels, 0.5 / yes, 0.5 / no)[:, both].double() / int(both.sum())
    each = (share * ((predictions > 0.5) == labels)[:, both]).sum(1)
    n, most = len(each), float(share.sum(1).max())
    limit = float(each.sum()) + _Z * math.sqrt(n * float(each.var()) + most**2)
    return limit <= 0.5 + _margin(0.5)


def _renamed(evaluation: Evaluation) -> str | None:
    """Describe the renaming of the classes that makes most predictions right; None if none does.

    Each prediction's most frequent label is taken from a random half of the samples, and tested on the other.
    """
    if evaluation.correct is None or evaluation.predictions is None or evaluation.predictions.dim() != 1:
        return None
    predictions, labels = evaluation.predictions.long().cpu(), evaluation.targets.long().cpu()
    order = torch.randperm(len(predictions), generator=torch.Generator().manual_seed(0))
    fit, test = order[::2], order[1::2]
    size = int(max(predictions.max(), labels.max())) + 1
    pairs, counts = torch.unique(predictions[fit] * size + labels[fit], return_counts=True)
    # the largest of count and label together is the most frequent label; -1: the class is never predicted
    best = torch.full((size,), -1).scatter_reduce_(0, pairs // size, counts * size + pairs % size, "amax")
    seen = best >= 0
    best = torch.where(seen, best % size, -1)
    if int(seen.sum()) < 2 or len(torch.unique(best[seen])) < 0.9 * int(seen.sum()):
        return None  # several predictions for one label: not a renaming
    agree = best[predictions[test]] == labels[test]
    share = float(agree.double().mean())
    if share < RENAMED_SHARE or float(evaluation.correct.cpu()[test].double().mean()) > share / 2:
        return None
    shifts = (labels[test] - predictions[test])[agree]
    shift = int(shifts.mode().values)
    renamed = f"{100 * share:.0f} % of the predictions are right after renaming them"
    if shift and float((shifts == shift).double().mean()) > 0.5:
        return f"the labels' class ids are shifted by {shift:+d} against the network's ({renamed})"
    return f"the labels' class ids are in another order than the network's ({renamed})"
