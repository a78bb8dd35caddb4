"""Distillation: the pruned network learns from the dense network's outputs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from prunetaylor.pruning.training.settings import DistillSettings
from prunetaylor.taylor.losses.by_task import LOSSES
from prunetaylor.taylor.objective import Objective, Reference, Task, labelled_positions


def distillation(
    outputs: Tensor, teacher_outputs: Tensor, targets: Tensor, task: Task, options: DistillSettings
) -> Tensor:
    """Return the mean distance of outputs (B, K), or (B, P, K), from the teacher's, a scalar.

    For classes, and answers of yes or no, the KL divergence of the softened outputs times T^2, which keeps the size of
    its gradient (Hinton, Vinyals & Dean 2015, section 2); for values the mean squared error. With a loss of the user's
    the targets say which: class ids are integers.
    """
    heat = options.temperature
    if task == "binary":
        return LOSSES["binary"].divergence(outputs / heat, teacher_outputs / heat).mean() * heat**2
    if task in ("regression", "features") or (not isinstance(task, str) and targets.is_floating_point()):
        return functional.mse_loss(outputs, teacher_outputs)
    if task == "classification" and outputs.dim() == 3:
        reference = Reference(teacher_outputs / heat, labelled_positions(outputs, targets))
        return Objective(task, "divergence").values(outputs / heat, reference).mean() * heat**2
    student, dense = (outputs / heat).log_softmax(1), (teacher_outputs / heat).log_softmax(1)
    return functional.kl_div(student, dense, reduction="batchmean", log_target=True) * heat**2
