"""The outputs of a network: the tensor that counts in what it returns, in one form for all passes.

A network may return a tensor, or several in tuples, mappings (``ModelOutput`` is one), data classes and other objects.
``OutputForm`` says which tensor counts and how its axes are read; ``pipeline/planning/task.py`` chooses it.
It is an attribute of the module that a run works on, so that every copy of the network has it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError

Path = tuple[str | int, ...]
"""The keys, indices and attributes that lead to a tensor in what a network returned; empty: it is the tensor."""

Axes = Literal["values", "positions", "channels", "own"]
"""The axes of a tensor, and how it becomes outputs:

values     (B, ...) is (B, K), all numbers of a sample being one prediction
positions  (B, ..., K) is (B, P, K): the last dimension is that of the classes
channels   (B, K, ...) is (B, P, K): the second dimension is that of the classes, as in a segmentation
own        (B, ...) stays as it is, for a loss of the user's
"""

_ATTRIBUTE = "_prunetaylor_output_form"
_USUAL_NAMES = ("logits", "out")
_DEPTH = 3
"""How deep in nested results tensors are looked for."""


@dataclass(frozen=True)
class OutputForm:
    """The tensor that counts, and its axes; ``path`` None: the one of a usual name, or the first.

    A network that returns a tensor in one mode, and more of them in the other, is read in both.
    """

    path: Path | None = None
    axes: Axes = "values"

    def read(self, result: object) -> Tensor:
        """Return the outputs (B, K), (B, P, K) or, for a loss of the user's, (B, ...).

        Raises DataError: there is no such tensor.
        """
        plain = self.path is None or isinstance(result, Tensor)
        outputs = _usual(result) if plain else _follow(result, self.path or ())
        return arrange(outputs, self.axes)


def arrange(outputs: Tensor, axes: Axes) -> Tensor:
    """Return the tensor as outputs with these axes."""
    if axes == "own":
        return outputs
    if outputs.dim() == 1:
        return outputs.unsqueeze(1)
    if axes == "values":
        return outputs.flatten(1)
    last = outputs.movedim(1, -1) if axes == "channels" else outputs
    return last.flatten(1, -2)


def set_output_form(module: nn.Module, form: OutputForm) -> None:
    """Let passes read the outputs of ``module``, and of every later copy, in this form."""
    setattr(module, _ATTRIBUTE, form)


def clear_output_form(module: nn.Module) -> None:
    """Remove the form, as from a module that is given back to the user."""
    module.__dict__.pop(_ATTRIBUTE, None)


def read_outputs(module: nn.Module, result: object) -> Tensor:
    """Return the outputs in what ``module`` returned. Raises DataError: it holds no tensor where they should be."""
    form = getattr(module, _ATTRIBUTE, None)
    return (form if isinstance(form, OutputForm) else OutputForm()).read(result)


def tensors_in(result: object) -> dict[Path, Tensor]:
    """Return the floating-point tensors in what a network returned, with the path to each, in their order."""
    return dict(_search(result, ()))


def _search(value: object, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value
    elif len(path) < _DEPTH:
        for key, part in _parts(value).items():
            yield from _search(part, (*path, key))


def describe_path(path: Path) -> str:
    """Return a path as ``model.output`` has it: ``logits``, ``1``, ``heads.0``."""
    return ".".join(map(str, path))


def parse_path(text: str) -> Path:
    """Return the path that ``model.output`` names."""
    return tuple(int(part) if part.lstrip("-").isdecimal() else part for part in text.split("."))


def _usual(result: object) -> Tensor:
    tensors = tensors_in(result)
    for name in _USUAL_NAMES:
        if (name,) in tensors:
            return tensors[(name,)]
    if not tensors:
        raise DataError(
            f"the network returned {type(result).__name__}, not a tensor of real numbers",
            "wrap it so that it returns its outputs",
        )
    return next(iter(tensors.values()))


def _follow(result: object, path: Path) -> Tensor:
    value: object = result
    for key in path:
        parts = _parts(value)
        if isinstance(key, int) and key not in parts:  # a position among named parts, or from the end
            values = list(parts.values())
            parts = {key: values[key]} if -len(values) <= key < len(values) else {}
        if key not in parts:
            known = ", ".join(describe_path(one) for one in tensors_in(result) if one)
            raise DataError(
                f"the network returned no output {describe_path(path)}",
                f"set model.output to one of {known}" if known else "leave model.output at auto",
            )
        value = parts[key]
    if not isinstance(value, Tensor):
        raise DataError(
            f"the output {describe_path(path)} is a {type(value).__name__}, not a tensor", "set model.output"
        )
    return value


def _parts(value: object) -> dict[str | int, object]:
    """Return the parts of a nested result by key, index or attribute; empty for anything else."""
    if isinstance(value, Mapping):
        return {key: part for key, part in value.items() if isinstance(key, str | int)}
    if isinstance(value, tuple):
        names = getattr(value, "_fields", range(len(value)))  # those of a named tuple
        return dict(zip(names, value, strict=True))
    if isinstance(value, list):
        return dict(enumerate(value))
    if is_dataclass(value) or (hasattr(value, "__dict__") and not isinstance(value, nn.Module | torch.Generator)):
        return {name: part for name, part in vars(value).items()}  # noqa: C416 dict(...) has another type
    return {}
