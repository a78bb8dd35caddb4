"""Layers as matrices: a layer is a weight that multiplies inputs, wherever in the network that happens.

Every prunable layer is, at each output position p of each group g,

    y[g, p] = W[g] x[g, p] + b[g]        W: (rows, columns),  x: (columns,)

with rows = output channels of the group and columns = the inputs of one output: features, or input channels x kernel
positions. ``observation.py`` finds the calls of layers in a pass, ``geometry.py`` has the rows x of one call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from prunetaylor.network.geometry import Geometry
from prunetaylor.network.weight_form import WeightForm


@dataclass(frozen=True)
class Layer:
    """One prunable weight, with all its uses.

    Attributes:
        name: the parameter's name in the network's state without a last ``.weight``.
        form: how the weight is read as (G, R, C).
        bias: the name of the parameter that each of its calls adds, and no other layer's; None if there is none.
        by_group: whether some calls compute the outputs of only some of the groups.
        modules: the names of the modules whose own code uses the weight: more than one where it is tied.
        names: all names by which patterns select the layer.
    """

    name: str
    parameter: str
    weight: nn.Parameter = field(compare=False)
    form: WeightForm
    bias: str | None = None
    by_group: bool = False
    modules: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def groups(self) -> int:
        """Return the groups: of a convolution, of blocks with inputs of their own; else 1."""
        return self.form.groups

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape (weights, mask, scores) as (G, R, C); a view if strides allow it."""
        return self.form.matrix(tensor)

    def tensor(self, matrix: Tensor) -> Tensor:
        """Return (G, R, C) in the weight's shape: the inverse of :meth:`matrix`."""
        return self.form.tensor(matrix).reshape(self.weight.shape)

    def rows(self, vector: Tensor) -> Tensor:
        """Return a vector over output channels (a bias) as (G, R)."""
        return vector.reshape(self.groups, -1)


@dataclass(frozen=True)
class Call:
    """One product of a layer with inputs.

    ``x`` and ``y`` are as the function that multiplies took and returned them, ``y`` with the bias. ``groups`` are
    those of the layer's groups whose outputs the call computes: (first, last + 1).
    """

    layer: Layer
    x: Tensor
    y: Tensor
    bias: Tensor | None
    geometry: Geometry
    groups: tuple[int, int]

    @property
    def inputs(self) -> Tensor:
        """Return the inputs with a first dimension of entries, for the geometry's other methods."""
        return self.geometry.arrange_inputs(self.x)

    @property
    def outputs(self) -> Tensor:
        """Return the outputs with a first dimension of entries, for the geometry's other methods."""
        return self.geometry.arrange_outputs(self.y)

    @property
    def is_whole(self) -> bool:
        """Return whether the call computes the outputs of all groups."""
        return self.groups == (0, self.layer.groups)
