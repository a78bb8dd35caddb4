"""The prunable layers of a network in running order, and the layers that are skipped, with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.outcome import Skipped
from prunetaylor.network.find_layers import find_layers
from prunetaylor.network.layer import Layer
from prunetaylor.network.state import copy_module


@dataclass
class Network:
    """A module with its prunable layers. ``layers`` are in the order of the modules until :meth:`reorder`."""

    module: nn.Module
    layers: list[Layer]
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        run: Callable[[nn.Module], object] | None = None,
    ) -> Network:
        """Find the weights that multiply inputs and whose layers' names match a pattern (shell style).

        ``run`` passes some samples through the module, which shows how it uses its weights. Without it the weights of
        convolutions and linear layers are found, by the types of modules.
        """
        network = cls(module, *find_layers(module, include, exclude, run))
        network._check_any()
        return network

    def _check_any(self) -> None:
        if not self.layers:
            # The last reason: earlier checks skipped the first layers, later ones the rest.
            last = self.skipped[-1:]
            raise UsageError(
                "the network has no prunable weights" + "".join(f": {s.name} was skipped ({s.why})" for s in last),
                "prunable are weights that multiply inputs, as in linear layers; see prune.include and prune.exclude",
            )

    @property
    def prunable(self) -> int:
        """Return the number of prunable weights."""
        return sum(layer.weight.numel() for layer in self.layers)

    @property
    def prunable_share(self) -> float:
        """Return the fraction of all parameters that are prunable weights."""
        return self.prunable / sum(p.numel() for p in self.module.parameters())

    def rest_by_class(self) -> dict[str, float]:
        """Return the shares of all parameters that are not prunable, by the class of the modules that hold them."""
        whole, counts = sum(p.numel() for p in self.module.parameters()), Counter[str]()
        counted = {id(layer.weight) for layer in self.layers}
        for child in self.module.modules():
            for parameter in child.parameters(recurse=False):
                if id(parameter) not in counted:
                    counted.add(id(parameter))
                    counts[type(child).__name__] += parameter.numel()
        return {name: count / whole for name, count in counts.most_common()}

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
        weights = dict(module.named_parameters())
        layers = [replace(layer, weight=weights[layer.parameter]) for layer in self.layers]
        return Network(module, layers, list(self.skipped))

    def masks(self) -> dict[str, Tensor]:
        """Return the masks (True = keep) of the current weights by parameter name: zeros count as removed."""
        return {layer.parameter: layer.weight.detach() != 0 for layer in self.layers}
