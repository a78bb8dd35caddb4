"""Magnitude: the smallest weights go (Han et al. 2015). The baseline that needs no data.

s_j = |w_j|
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.network.network import Network
from prunetaylor.taylor.memory import FLOAT, Phase, Sizes
from prunetaylor.taylor.model import TaylorModel

SUMMARY = "the smallest absolute weights are removed"
COST = "a sort; needs no data"
USE = "the default without data; the baseline to beat"
NEEDS = "nothing"
REPAIR = "none"
FIRST_ORDER = False
DAMPED = False
MAX_STAGE_FRACTION = None


def memory(sizes: Sizes) -> list[Phase]:
    """The scores."""
    return [Phase("scores", {"scores": FLOAT * sizes.weights})]


def score(
    model: TaylorModel | None, network: Network, masks: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    return {layer.parameter: layer.weight.detach().abs() for layer in network.layers}
