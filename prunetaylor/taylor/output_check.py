"""Checks of a network's outputs: that they are deterministic and finite, with the first module where they are not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError, NumericsError
from prunetaylor.data.samples import Batches, Inputs
from prunetaylor.taylor.passes import OutputHook, first_batch, forward_one, hooked


def check_deterministic(module: nn.Module, batches: Batches) -> None:
    """Pass the first batch twice. Raises NumericsError: the outputs differ, or are not finite."""
    x, _ = first_batch(batches)
    first, again = forward_one(module, x), forward_one(module, x)
    if not bool(torch.isfinite(first).all()):
        check_outputs(module, batches, finite_samples(first))
    # The tolerance is for kernels that sum in another order, not for noise: dropout moves outputs by percents.
    if not torch.allclose(first, again, rtol=1e-3, atol=1e-4 * float(first.abs().max())):
        raise NumericsError(
            "the network gives different outputs for the same inputs in evaluation mode",
            "make its randomness (dropout, sampling) depend on module.training",
        )


def finite_samples(outputs: Tensor) -> Tensor:
    """Return whether all outputs (B, ...) of each sample are finite, (B,)."""
    return torch.isfinite(outputs.flatten(1)).all(1)


def check_outputs(module: nn.Module, batches: Batches, finite: Tensor) -> None:
    """Check that the outputs of the first N samples are finite; ``finite`` (N,) says which are.

    Raises NumericsError: some are not. It names the first module whose output is not finite, or blames the sample.
    """
    bad = (~finite).nonzero().flatten().tolist()
    if not bad:
        return
    start = 0
    for x, _ in batches:
        if bad[0] < start + len(x):
            sample = x.rows(slice(bad[0] - start, bad[0] - start + 1))
            break
        start += len(x)
    message = f"the network's outputs are not finite for {len(bad)} of {len(finite)} samples"
    if not sample.is_finite():
        raise NumericsError(
            f"{message}: the samples themselves are not finite", "leave those samples out, or correct how they are read"
        )
    name = _first_not_finite(module, sample)
    raise NumericsError(
        f"{message}; {f'the first are those of {name}' if name else 'those of every layer are finite'}",
        "check that the samples are normalised as in training (data.normalize), and what the network computes there",
    )


def _first_not_finite(module: nn.Module, x: Inputs) -> str | None:
    """Return the name of the first module without submodules whose output is not finite; None if all are."""
    names: list[str] = []

    def check(name: str) -> OutputHook:
        def hook(_: nn.Module, __: object, y: object) -> None:
            if isinstance(y, Tensor) and not bool(torch.isfinite(y).all()):
                names.append(name)

        return hook

    leaves = {
        child: name
        for name, child in module.named_modules()
        if not any(True for _ in child.children()) and not isinstance(child, torch.jit.ScriptModule)
    }
    with hooked({child: check(name) for child, name in leaves.items()}):
        forward_one(module, x)
    return names[0] if names else None


def check_independent(module: nn.Module, batches: Batches) -> None:
    """Pass samples of the first batch with all others, and by themselves.

    Raises DataError: the outputs of one depend on which others are in its batch. Nothing that is measured batch by
    batch is then the network's own.
    """
    x, _ = first_batch(batches)
    if len(x) == 1:
        return
    whole = forward_one(module, x)
    for row in {0, len(x) - 1}:
        own, other = forward_one(module, x.rows(slice(row, row + 1))), whole[row : row + 1]
        if own.shape == other.shape and not _alike(own.float(), other.float()):
            raise DataError(
                "the network's outputs for a sample depend on which other samples are in its batch",
                "compute statistics for each sample, or in evaluation mode use those of training, as batch norms do",
            )


def _alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two outputs differ by no more than kernels for other shapes do."""
    size = float(torch.maximum(a.norm(), b.norm()))
    return float((a - b).norm()) <= 0.02 * size + 1e-6
