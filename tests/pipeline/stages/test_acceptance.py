"""Whether a stage stands, and its record: pure functions of a step's outcome."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
from torch import nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.core.progress import Silent
from prunetaylor.network.network import Network
from prunetaylor.pipeline.choice_log import ChoiceLog
from prunetaylor.pipeline.stages.acceptance import decide_acceptance, describe_rejection, describe_ruin, make_record
from prunetaylor.pipeline.stages.state import PruningState
from prunetaylor.pipeline.stages.step import Change, StepOutcome
from prunetaylor.pruning.selection.schedule import RAISES, Fixed
from prunetaylor.pruning.selection.selector import Selection

OUTCOME = StepOutcome(
    selection=Selection({}, 0.5),
    start=0.2,
    sparsity=0.5,
    removed=30,
    error=0.01,
    change=Change(predicted=0.1, measured=0.2, noise=0.01),
    damping=0.01,
)


def changed(measured: float) -> StepOutcome:
    return replace(OUTCOME, change=replace(OUTCOME.change, measured=measured))


@pytest.mark.parametrize(
    ("measured", "constant_error", "ruin"),
    [
        (0.2, 1.0, ""),
        (99.0, 1.0, ""),
        (101.0, 1.0, "its held-out error is 1e+02 times that of a constant answer"),
        (2.0, 0.0, "its held-out error is 2e+02 times that of a constant answer"),  # the error before is the scale
        (inf, 1.0, "its outputs are out of range"),
    ],
)
def test_a_step_ruins_the_network_by_its_change_against_a_constant_answer(
    measured: float, constant_error: float, ruin: str
) -> None:
    assert describe_ruin(changed(measured), constant_error) == ruin


def test_a_ruined_network_is_taken_back_until_no_more_damping_helps() -> None:
    control, how = Fixed([0.5], 0.01), {"damped": True, "moves_weights": True}
    assert decide_acceptance(control, changed(0.2), 1.0, repair="none", **how)
    for k in range(RAISES):
        assert not decide_acceptance(control, changed(inf), 1.0, repair="none", **how)
        assert control.damping == pytest.approx(0.01 * 10 ** (k + 1))
    with pytest.raises(NumericsError, match=r"20.00% to 50.00% the network is ruined .*\n.*=least-squares, or"):
        decide_acceptance(control, changed(inf), 1.0, repair="none", **how)
    with pytest.raises(NumericsError, match=r"\ntry a sparsity nearer to 20.00%"):
        decide_acceptance(
            Fixed([0.5], 0.01), changed(inf), 1.0, repair="least-squares", damped=False, moves_weights=True
        )


def test_a_rejection_is_described_with_its_reason() -> None:
    assert describe_rejection(changed(0.5), 1.0) == "taken back: 50.00% cost 0.5 where 0.1 was predicted"
    assert describe_rejection(changed(0.11), 1.0).endswith("was predicted, too far for one stage")
    assert describe_rejection(changed(inf), 1.0).endswith("was predicted: its outputs are out of range")


def test_a_record_has_ratios_where_there_are_numbers() -> None:
    stage = make_record(OUTCOME, Change(0.2, 0.3, 0.01), 1.0, accepted=True, seconds=2.0)
    assert (stage.sparsity, stage.gain_ratio, stage.cumulative_ratio) == (0.5, 2.0, pytest.approx(1.5))
    assert (stage.believed, stage.damping, stage.noise) == (True, 0.01, 0.01)
    none = make_record(changed(inf), Change(0.0, inf, 0.0), 1.0, accepted=False, seconds=2.0)
    assert (none.measured_change, none.gain_ratio, none.cumulative_measured, none.cumulative_ratio) == (None,) * 4
    assert (none.accepted, none.believed) == (False, False)


def test_what_repair_leaves_of_a_change_is_learnt_from_the_last_stage() -> None:
    network = Network.from_module(nn.Sequential(nn.Linear(2, 2)))
    state = PruningState(network, ChoiceLog(Silent()), torch.Generator())
    state.update_repair_ratio(unrepaired=-1.0, repaired=0.5)
    assert state.repair_ratio == 1.0  # a gain: no share of it remains
    state.update_repair_ratio(unrepaired=2.0, repaired=0.5)
    assert state.repair_ratio == 0.25
    for unrepaired, repaired in ((None, 0.5), (2.0, -0.5), (-1.0, 0.5)):
        state.update_repair_ratio(unrepaired, repaired)
        assert state.repair_ratio == 0.25
