"""Find the layers of a network: from a pass that shows how its weights are used, or from the types of its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.core.results.outcome import Skipped
from prunetaylor.network.layer import Layer
from prunetaylor.network.observation import ParameterUses, UseRecorder
from prunetaylor.network.weight_form import WeightForm, common_form

COMPUTED = "its weight is computed (weight or spectral norm, parametrization)"
LOOKED_UP = "embedding"


def find_layers(
    module: nn.Module, include: Sequence[str], exclude: Sequence[str], run: Callable[[nn.Module], object] | None
) -> tuple[list[Layer], list[Skipped]]:
    """Return the layers in the order of the network's parameters, and what cannot be pruned, with reasons.

    ``run`` passes some samples through the network. Convolutions and linear modules that these do not reach, or all of
    them where it is None, are layers by their type.

    Raises UsageError: a pattern matches no layer.
    """
    uses = None if run is None else _record(module, run)
    owners = _owners(module)
    layers: list[Layer] = []
    skipped, names = list(_computed(module)), list[str]()
    for parameter, weight in module.named_parameters():
        if weight.dim() < 2:
            continue
        owned, use = owners[id(weight)], None if uses is None else uses.get(parameter)
        form = _form(weight, owned, use, observed=uses is not None)
        if isinstance(form, str):
            skipped.append(Skipped(next((one.name for one in owned if one.form), parameter), form))
            continue
        layer = _layer(parameter, weight, form, owned, use or ParameterUses())
        names += layer.names[: len(owned)]
        if why := _left_out(layer, include, exclude):
            skipped.append(Skipped(layer.name, why))
        else:
            layers.append(layer)
    _check_patterns([*include, *exclude], [*names, *(one.name for one in skipped if one.why == COMPUTED)])
    return _with_own_biases(module, layers, uses or {}), skipped


def _layer(
    parameter: str, weight: nn.Parameter, form: WeightForm, owned: Sequence[_Owner], use: ParameterUses
) -> Layer:
    return Layer(
        owned[0].name,
        parameter,
        weight,
        form,
        bias=_bias(owned, use),
        by_group=any(block is not None and block.size < weight.numel() for block in use.blocks),
        modules=tuple(dict.fromkeys(use.modules)) or tuple(one.module for one in owned),
        names=tuple(dict.fromkeys([one.name for one in owned] + [one.parameter for one in owned])),
    )


def _with_own_biases(module: nn.Module, layers: Sequence[Layer], uses: Mapping[str, ParameterUses]) -> list[Layer]:
    """Return the layers without the biases that several modules register or several weights' products add."""
    named = dict(module.named_parameters(remove_duplicate=False))
    registered = Counter(id(p) for child in module.modules() for p in child.parameters(recurse=False))
    added = Counter(bias for use in uses.values() for bias in use.biases)
    return [
        layer
        if layer.bias is None or (registered[id(named[layer.bias])] == 1 and added[layer.bias] <= 1)
        else replace(layer, bias=None)
        for layer in layers
    ]


@dataclass(frozen=True)
class _Owner:
    """A module that registers a weight, and the form that the weight has in a module of this type, if it is known."""

    module: str
    child: nn.Module
    key: str
    form: WeightForm | None

    @property
    def parameter(self) -> str:
        return f"{self.module}.{self.key}" if self.module else self.key

    @property
    def name(self) -> str:
        return self.module if self.key == "weight" else self.parameter


def _owners(module: nn.Module) -> dict[int, list[_Owner]]:
    owners: dict[int, list[_Owner]] = {}
    for name, child in module.named_modules():
        for key, parameter in child.named_parameters(recurse=False):
            form = _form_by_type(child) if key == "weight" else None
            owners.setdefault(id(parameter), []).append(_Owner(name, child, key, form))
    return owners


def _form_by_type(child: nn.Module) -> WeightForm | None:
    if isinstance(child, nn.Linear):
        return WeightForm.of(child.weight.shape, "rc")
    if isinstance(child, _ConvNd):
        sizes = (child.groups, len(child.weight) // child.groups, *child.weight.shape[1:])
        axes = "c" * len(child.kernel_size)
        return WeightForm.of(sizes, f"gcr{axes}" if isinstance(child, _ConvTransposeNd) else f"grc{axes}")
    return None


def _record(module: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, ParameterUses]:
    recorder = UseRecorder(module)
    with recorder.recording(), torch.no_grad():
        run(module)
    return recorder.uses


def _computed(module: nn.Module) -> Iterator[Skipped]:
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | _ConvNd) and (
            is_parametrized(child, "weight") or not isinstance(child.weight, nn.Parameter)
        ):
            yield Skipped(name, COMPUTED)


def _form(
    weight: nn.Parameter, owned: Sequence[_Owner], use: ParameterUses | None, *, observed: bool
) -> WeightForm | str:
    """Return the weight's form, or the reason why it is no layer."""
    kinds = ", ".join(dict.fromkeys(type(one.child).__name__ for one in owned))
    tied = [one for one in owned if one.form is None]
    by_type = next((one.form for one in owned if one.form is not None), None)
    if not weight.dtype.is_floating_point:
        return f"its weight is of type {weight.dtype}"
    if use is not None and use.blocks:
        if LOOKED_UP in use.others:
            return f"its weight is also a table that is looked up ({', '.join(one.parameter for one in owned)})"
        blocks = [block for block in use.blocks if block is not None]
        form = common_form(blocks, weight.numel()) if len(blocks) == len(use.blocks) else None
        return form or "inputs are multiplied by it in ways that have no rows in common (as it is and transposed)"
    if any(isinstance(one.child, torch.jit.ScriptModule) for one in owned):
        return "it is used inside TorchScript, where no call can be observed"
    if use is not None and use.others:
        return f"it is used by {', '.join(sorted(use.others))}, which is no product with inputs ({kinds})"
    if by_type is not None:
        return by_type if not tied else f"its weight is tied to {tied[0].parameter}"
    if observed:
        return f"no sample that was tried is multiplied by it ({kinds})"
    return f"not the weight of a convolution or linear layer ({kinds})"


def _bias(owned: Sequence[_Owner], use: ParameterUses) -> str | None:
    if use.blocks:
        (bias,) = use.biases if len(use.biases) == 1 else (None,)
        return bias
    one = owned[0]
    if len(owned) == 1 and one.child._parameters.get("bias") is not None:
        return f"{one.module}.bias" if one.module else "bias"
    return None


def _left_out(layer: Layer, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    if not any(fnmatchcase(name, pattern) for name in layer.names for pattern in include):
        return "not matched by prune.include"
    if any(fnmatchcase(name, pattern) for name in layer.names for pattern in exclude):
        return "matched by prune.exclude"
    return None


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raise UsageError if a pattern matches no layer."""
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"the pattern {pattern!r} matches no convolution or linear layer{close_match(pattern, names)}",
                f"layers: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            )
