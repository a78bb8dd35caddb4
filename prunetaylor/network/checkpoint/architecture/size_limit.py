"""A network that is built with arguments from a file may not be far larger than the file's tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.network.checkpoint.architecture.torchvision_match import Shapeless


def build_bounded(
    make: Callable[[], nn.Module], state: Mapping[str, Tensor], spec: str, args: Mapping[str, Any], *, known: bool
) -> nn.Module:
    """Return the network that ``make`` builds, or raise CheckpointRefused as soon as it is too large.

    ``known`` networks are built without memory first. One that computes with its weights cannot be; it is stopped at
    the first parameter beyond the limit. So is a user's own factory, which is called once, and may create some
    parameters that it does not keep.
    """
    factor = 2 if known else 20
    if known:
        _try_without_memory(make, state, spec, args, factor)
    with limit_parameters(state, spec, args, factor):
        return make()


def _try_without_memory(
    make: Callable[[], nn.Module], state: Mapping[str, Tensor], spec: str, args: Mapping[str, Any], factor: int
) -> None:
    with limit_parameters(state, spec, args, factor):
        try:
            with Shapeless(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                make()
        except CheckpointRefused:
            raise
        except Exception:  # of a factory that needs its values; else the same is said with memory
            pass


@contextmanager
def limit_parameters(state: Mapping[str, Tensor], spec: str, args: Mapping[str, Any], factor: int) -> Iterator[None]:
    """Count every parameter that a module gets inside the block, and raise CheckpointRefused beyond ``factor`` times
    the tensors of ``state``.
    """
    elements = factor * (sum(tensor.numel() for tensor in state.values()) + 500_000)
    tensors = factor * (len(state) + 50)
    refusals: list[CheckpointRefused] = []

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal elements, tensors
        elements, tensors = elements - (0 if parameter is None else parameter.numel()), tensors - 1
        if elements < 0 or tensors < 0:
            shown = ", ".join(f"{key}={str(value)[:40]}" for key, value in args.items())
            refusals.append(
                CheckpointRefused(
                    f"{spec} with {shown} is far larger than the file: it is not the network of these weights",
                    "name the network with --arch, its arguments with model.args.KEY=VALUE",
                )
            )
            raise refusals[0]

    handle: torch.utils.hooks.RemovableHandle = register_module_parameter_registration_hook(count)
    try:
        yield
    except Exception as error:
        if refusals and error is not refusals[0]:  # whatever the factory made of it
            raise refusals[0] from error
        raise
    finally:
        handle.remove()
