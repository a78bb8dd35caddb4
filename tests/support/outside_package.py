"""A package outside of ours with one method, as pip would install it."""

from __future__ import annotations

from pathlib import Path

WANDA = '''"""Wanda: the smallest products of weight and norm of its input are removed (Sun et al. 2024, eq. 1).

    s_j = |w_j| sqrt(H_jj)                     H: Gram matrix of the layer's inputs
"""

from torch import Tensor

from prunetaylor.network.layer import Layer
from prunetaylor.pruning.interfaces import Criterion, ScoringContext


class Wanda(Criterion):
    summary = "the absolute weight times the norm of its input"
    default_repair = "least-squares"
    max_stage_fraction = 0.35

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        def score_layer(layer: Layer) -> Tensor:
            norms = context.model.gram(layer).diagonal(dim1=1, dim2=2).sqrt().unsqueeze(1)
            return layer.tensor(layer.matrix(layer.weight.detach()).abs() * norms)

        return context.model.layer_scores(score_layer)
'''


def install(
    folder: Path,
    name: str = "wanda",
    target: str = "prunetaylor_wanda:Wanda",
    source: str = WANDA,
    kind: str = "criteria",
) -> str:
    """Install the package prunetaylor-NAME into ``folder``; its entry point ``name`` leads to ``target``."""
    (folder / f"{target.partition(':')[0]}.py").write_text(source)
    metadata = folder / f"prunetaylor_{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prunetaylor-{name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[prunetaylor.{kind}]\n{name} = {target}\n")
    return f"prunetaylor-{name}"
