"""The repair of a stage, run where the plan has it; an interrupted one resumes with the layers that remain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from prunetaylor.data.samples import Batches
from prunetaylor.network.network import Network
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.pruning.interfaces import Repair, RepairContext
from prunetaylor.taylor.curvature.gram import Moments


def repair_context(
    setup: StageSetup,
    masks: Mapping[str, Tensor],
    batches: Batches,
    *,
    damping: float,
    target: Network | None = None,
    before: Mapping[str, Tensor] | None = None,
    moments: Mapping[str, Moments] | None = None,
    repaired: Collection[str] = (),
) -> RepairContext:
    """Return what a repair of ``setup.job.network`` works with; ``target`` is the dense network if it is not given."""
    return RepairContext(
        network=setup.job.network,
        target=target or setup.dense,
        masks=masks,
        batches=batches,
        intercepts=setup.intercepts,
        damping=damping,
        seed=setup.job.config.seed,
        note=setup.choices,
        before=before or {},
        moments=moments or {},
        repaired=repaired,
    )


def repair_removal(
    setup: StageSetup,
    repair: Repair,
    context: RepairContext,
    on_repaired: Callable[[str], None] = lambda layer: None,
) -> None:
    """Run a repair that follows a removal; ``on_repaired`` is called with the name of each layer that is final."""
    for name in context.repaired:
        setup.progress.step(name)
    for name in repair.apply(context):
        setup.progress.step(name)
        on_repaired(name)


def repair_accepted(setup: StageSetup, masks: Mapping[str, Tensor], batches: Batches, damping: float) -> None:
    """Run the repair that follows the acceptance of a stage, if the plan has one."""
    repair = setup.plan.acceptance_repair
    if repair is not None:
        for _ in repair.apply(repair_context(setup, masks, batches, damping=damping)):
            pass
