"""Repair in closed form after a removal, layer by layer.

An interrupted repair resumes with the layers that are not among the ``repaired`` ones; ``on_repaired`` is called with
the name of each layer that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from torch import Tensor

from prunetaylor.core.progress import Progress
from prunetaylor.network.network import Network
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.pruning.repair import least_squares, obs_update
from prunetaylor.pruning.repair.masks import apply_masks
from prunetaylor.taylor.curvature.gram import Moments, Positions


def repair_by_obs(
    setup: StageSetup,
    masks: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    before: Mapping[str, Tensor],
    damping: float,
    repaired: Collection[str] = (),
    on_repaired: Callable[[str], None] = lambda layer: None,
) -> None:
    """Solve each layer's kept weights from its Gram matrix at ``before``, the state that nothing was removed from."""
    network = setup.job.network
    names = obs_update.repair(
        network.module,
        [layer for layer in network.layers if layer.name not in repaired],
        masks,
        before,
        moments,
        setup.intercepts,
        damping=damping,
        note=setup.choices,
    )
    _follow(names, repaired, setup.progress, on_repaired)
    apply_masks(network.module, masks)


def repair_by_least_squares(
    setup: StageSetup,
    masks: Mapping[str, Tensor],
    calibration: Calibration,
    target: Network,
    damping: float,
    repaired: Collection[str],
    on_repaired: Callable[[str], None],
) -> None:
    """Fit each layer's kept weights to the outputs of the same layer of ``target``, in the order in which they run."""
    network, batches = setup.job.network, calibration.fit.batches
    positions = Positions(batches.samples, setup.job.config.seed)
    outputs = least_squares.DenseOutputs(target.module, target.layers, batches, positions)
    names = least_squares.repair(
        network.module,
        network.layers,
        masks,
        outputs,
        target.module.state_dict(),
        setup.intercepts,
        batches,
        damping=damping,
        note=setup.choices,
        solved=frozenset(repaired),
    )
    _follow(names, repaired, setup.progress, on_repaired)


def _follow(
    names: Iterator[str], repaired: Collection[str], progress: Progress, on_repaired: Callable[[str], None]
) -> None:
    """Run a repair that yields each layer's name when it is solved."""
    for name in repaired:
        progress.step(name)
    for name in names:
        progress.step(name)
        on_repaired(name)
