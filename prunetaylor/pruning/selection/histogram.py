"""The histogram of the scores of a stage, and the threshold between removed and kept weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.core.results.outcome import Histogram

BINS = 60
_LOWEST = 1e-12
"""Scores below this share of the largest, zeros with them, are drawn in the first bin: a logarithm needs an end."""


def histogram(
    scores: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> Histogram | None:
    """Count log10(score) over the weights that remained before the stage, separately for removed and kept ones.

    ``before`` and ``after`` are the masks (True = keep) around the selection, by the same names as the scores. Without
    a positive score there is no histogram.
    """
    present = {name: before[name].cpu() for name in scores}
    values = torch.cat([score.cpu()[present[name]].double() for name, score in scores.items()])
    kept = torch.cat([after[name].cpu()[present[name]] for name in scores])
    largest = float(values.max()) if len(values) else 0.0
    if not largest > 0:
        return None
    logs = values.clamp(min=_LOWEST * largest).log10()
    low, high = float(logs.min()), float(logs.max())
    high = high if high > low else low + 1.0
    removed, stay = (torch.histc(logs[part], BINS, low, high).long().tolist() for part in (~kept, kept))
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64).tolist()
    return Histogram(edges, removed, stay, None if bool(kept.all()) else float(logs[~kept].max()))
