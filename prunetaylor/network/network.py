"""The prunable layers of a network in running order, and the layers that are skipped, with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.core.results.outcome import Skipped
from prunetaylor.network.layer import Layer, Prunable
from prunetaylor.network.state import copy_module


@dataclass
class Network:
    """A module with its prunable layers. ``layers`` are in the order of the modules until :meth:`reorder`."""

    module: nn.Module
    layers: list[Layer]
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def from_module(cls, module: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> Network:
        """Find the weights of convolutions and linear layers whose names match a pattern (shell style)."""
        _check_patterns(module, [*include, *exclude])
        network = cls(module, *_find(module, include, exclude))
        network._check_any()
        return network

    def _check_any(self) -> None:
        if not self.layers:
            # The last reason: earlier checks skipped the first layers, later ones the rest.
            last = self.skipped[-1:]
            raise UsageError(
                "the network has no prunable weights" + "".join(f": {s.name} was skipped ({s.why})" for s in last),
                "prunable are the weights of convolutions and linear layers; see prune.include and prune.exclude",
            )

    @property
    def prunable(self) -> int:
        """Return the number of prunable weights."""
        return sum(layer.weight.numel() for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Return the number of prunable weights that are zero."""
        return sum(int((~mask).sum()) for mask in self.masks().values())

    def keep_only(self, names: Sequence[str], why: Mapping[str, str]) -> None:
        """Reorder the layers by ``names`` and skip the others for the reasons ``why``, by their names.

        Raises UsageError: no layer remains.
        """
        known = {layer.name: layer for layer in self.layers}
        self.skipped += [Skipped(name, why[name]) for name in known if name not in set(names)]
        self.layers = [known[name] for name in names]
        self._check_any()

    def copy(self) -> Network:
        """Return an independent copy with the same layers in the same order."""
        module = copy_module(self.module)
        inside = dict(module.named_modules())
        names = {child: name for name, child in self.module.named_modules()}
        layers = [
            Layer(layer.name, tuple(cast(Prunable, inside[names[m]]) for m in layer.modules)) for layer in self.layers
        ]
        return Network(module, layers, list(self.skipped))

    def masks(self) -> dict[str, Tensor]:
        """Return the masks (True = keep) of the current weights by parameter name: zeros count as removed."""
        return {layer.parameter: layer.weight.detach() != 0 for layer in self.layers}


def _find(module: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> tuple[list[Layer], list[Skipped]]:
    users: dict[int, list[tuple[str, Prunable]]] = {}
    skipped: list[Skipped] = []
    for name, child in module.named_modules():
        if isinstance(child, Prunable):
            if is_parametrized(child, "weight") or not isinstance(child.weight, nn.Parameter):
                skipped.append(Skipped(name, "its weight is computed (weight or spectral norm, parametrization)"))
            elif not child.weight.dtype.is_floating_point:
                skipped.append(Skipped(name, f"its weight is of type {child.weight.dtype}"))
            else:
                users.setdefault(id(child.weight), []).append((name, child))
    tied_elsewhere: dict[int, str] = {}
    for name, child in module.named_modules():
        for key, parameter in child.named_parameters(recurse=False):
            if isinstance(child, Prunable) and key == "weight":
                continue
            full = f"{name}.{key}" if name else key
            tied_elsewhere[id(parameter)] = full
            if parameter.dim() > 1 and id(parameter) not in users and not isinstance(child, Prunable):
                skipped.append(
                    Skipped(full, f"not the weight of a convolution or linear layer ({type(child).__name__})")
                )
    layers = []
    for weight_id, modules in users.items():
        name = modules[0][0]
        if weight_id in tied_elsewhere:
            skipped.append(Skipped(name, f"its weight is tied to {tied_elsewhere[weight_id]}"))
        elif not any(fnmatchcase(n, p) for n, _ in modules for p in include):
            skipped.append(Skipped(name, "not matched by prune.include"))
        elif any(fnmatchcase(n, p) for n, _ in modules for p in exclude):
            skipped.append(Skipped(name, "matched by prune.exclude"))
        else:
            layers.append(Layer(name, tuple(m for _, m in modules)))
    return layers, skipped


def _check_patterns(module: nn.Module, patterns: Sequence[str]) -> None:
    """Raise UsageError if a pattern matches no layer."""
    names = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | _ConvNd)]
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"the pattern {pattern!r} matches no convolution or linear layer{close_match(pattern, names)}",
                f"layers: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            )
