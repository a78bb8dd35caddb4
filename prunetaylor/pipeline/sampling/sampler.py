"""The sampler draws the calibration samples of each stage and remembers those of the last few stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunetaylor.core.errors import DataError
from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import Alert
from prunetaylor.data.samples import Split
from prunetaylor.network.network import Network
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.sampling.calibration import Calibration, Part
from prunetaylor.taylor.layer_check import unreached
from prunetaylor.taylor.output_check import check_outputs

SAMPLE_HISTORY = 4
"""Stages whose samples a refinement still uses, where each stage draws fresh ones."""
_DRAWS = 10
"""Draws until every layer is reached, where a network chooses by the sample which layers it runs."""


class Sampler:
    """Draws calibration samples from ``pool`` and evaluates the dense network on them.

    ``calibration`` is the last draw. ``recent`` holds the fitted parts of the last draws, the latest last; refinement
    learns from all of them. ``alerts`` are the warnings of all draws.
    """

    calibration: Calibration

    def __init__(self, job: Job, dense: Network, pool: Split, generator: torch.Generator, progress: Progress) -> None:
        self._job, self._dense, self._pool, self._progress = job, dense, pool, progress
        self._generator = generator
        self._random_states: list[Tensor] = []  # the generator's states before the draws in ``recent``
        self._drawn = False
        self.recent: list[Part] = []
        self.alerts: list[Alert] = []

    def draw(self) -> Calibration:
        """Draw fresh calibration samples.

        Raises:
            DataError: some layer that the first draw reached is reached by no sample of several draws, or the dense
                network's outputs are not finite.
        """
        state = self._generator.get_state()
        calibration = self._draw_reaching()
        if calibration.outliers is not None:
            alert = calibration.outliers.alert("calibration")
            if alert not in self.alerts:
                self.alerts.append(alert)
                self._progress.warn(alert.text)
        for part in (calibration.fit, calibration.holdout):
            check_outputs(self._dense.module, part.batches, part.finite)
        self._random_states = [*self._random_states, state][-SAMPLE_HISTORY:]
        self.recent = [*self.recent, calibration.fit][-SAMPLE_HISTORY:]
        self.calibration, self._drawn = calibration, True
        return calibration

    def _draw_reaching(self) -> Calibration:
        for _ in range(_DRAWS):
            calibration = Calibration.draw(self._job, self._dense, self._pool, self._generator)
            # The first draw decides which layers are pruned; every later draw has to reach all of these.
            missing = unreached(self._dense, calibration.fit.batches) if self._drawn else []
            if not missing:
                return calibration
        raise DataError(
            f"{missing[0]} is used by no sample of {_DRAWS} draws, though it was by the first samples",
            "raise calibration.samples, or exclude the layer (prune.exclude)",
        )

    def state_dict(self) -> list[Tensor]:
        """The generator's states before each of the last draws."""
        return self._random_states

    def load_state_dict(self, states: Sequence[Tensor]) -> None:
        """Repeat the draws of a saved state. The generator ends behind the last of them."""
        self.recent, self._random_states = [], []
        for state in states:
            self._generator.set_state(state)
            self.draw()
