"""Scores that a criterion computes layer by layer, so that an interrupted run need not compute them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from prunetaylor.network.layer import Layer


class LayerScores:
    """Scores by parameter name.

    Args:
        scores: those that are computed already; new ones are added to the same dictionary.
        checkpoint_point: called after each new layer, when the run's state may be saved.
    """

    def __init__(
        self, scores: dict[str, Tensor] | None = None, checkpoint_point: Callable[[], None] = lambda: None
    ) -> None:
        self._scores = {} if scores is None else scores
        self._checkpoint_point = checkpoint_point

    def compute(self, layers: Iterable[Layer], score: Callable[[Layer], Tensor]) -> dict[str, Tensor]:
        """Return the scores of all layers, calling ``score`` for those that have none yet."""
        for layer in layers:
            if layer.parameter not in self._scores:
                self._scores[layer.parameter] = score(layer)
                self._checkpoint_point()
        return dict(self._scores)
