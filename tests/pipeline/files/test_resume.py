"""A run that is stopped at any moment and goes on ends with the bits of one that never stopped."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.progress import ProgressMonitor, Silent, no_monitor
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.data.load import from_python
from prunetaylor.data.samples import BatchShard
from prunetaylor.network.layer import Layer
from prunetaylor.network.network import Network
from prunetaylor.pipeline.job import make_job
from prunetaylor.pipeline.run import run
from prunetaylor.pruning.refiners import features
from prunetaylor.pruning.repairs import least_squares
from prunetaylor.pruning.training.backward import Backward
from prunetaylor.taylor.layer_scores import LayerScores
from support.runs import TEST, TRAIN


class Stopped(Exception):
    """The process is gone."""


class Memory:
    """Keeps states as a file would, and stops the run at the moment asked for."""

    def __init__(self, stop_at: int | None = None, left: bytes | None = None) -> None:
        self.stop_at, self.moments, self.kept = stop_at, 0, left

    def load(self) -> Mapping[str, Any] | None:
        return None if self.kept is None else torch.load(io.BytesIO(self.kept), weights_only=True)

    def due(self) -> bool:
        self.moments += 1
        return self.stop_at is None or self.moments == self.stop_at

    def save(self, state: Mapping[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(dict(state), file)
        self.kept = file.getvalue()
        if self.moments == self.stop_at:
            raise Stopped


class Every(Memory):
    """Keeps the states of all moments."""

    def __init__(self, left: bytes | None = None) -> None:
        super().__init__(left=left)
        self.all: list[bytes] = []

    def save(self, state: Mapping[str, Any]) -> None:
        super().save(state)
        assert self.kept is not None
        self.all.append(self.kept)


class Dropping(nn.Module):
    """A network with randomness of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(nn.functional.dropout(x, 0.2, self.training))


def pruned(
    network: nn.Module, settings: Mapping[str, Any], keeper: Memory | None = None, watch: ProgressMonitor = no_monitor
) -> PruneResult:
    usual = {"calibration.samples": 100, "data.workers": 0, "device": "cpu", "data.batch_size": 32, "seed": 5}
    usual |= {"finetune.epochs": 0, "cache.enabled": False}
    config = from_values({**usual, **settings}).config
    samples = from_python(TRAIN, TEST, augment="flip")
    job = make_job(config, copy.deepcopy(network), samples, torch.device("cpu"))
    return run(job, Silent(), keeper, monitor=watch)


def assert_same(one: PruneResult, other: PruneResult) -> None:
    for (name, a), b in zip(one.module.state_dict().items(), other.module.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    for name, mask in one.masks.items():
        assert torch.equal(other.masks[name], mask)
    assert other.pruned == one.pruned
    assert other.drop == one.drop
    assert other.choices == one.choices
    told = ["sparsity", "predicted_change", "measured_change", "accepted", "damping", "cumulative_ratio"]
    for a, b in zip(one.stages, other.stages, strict=True):
        assert [getattr(b, key) for key in told] == [getattr(a, key) for key in told]
    for a, b in zip(one.epochs, other.epochs, strict=True):
        assert (b.epoch, b.loss, b.validation, b.sparsity, b.lr) == (a.epoch, a.loss, a.validation, a.sparsity, a.lr)


CASES = {
    "stages and refinement by features": {"prune.sparsity": 0.8, "prune.refine_steps": 12},
    "a refinement after each stage": {
        "prune.sparsity": 0.7,
        "prune.stages": 2,
        "prune.refine": "stages",
        "prune.refine_steps": 5,
    },
    "gauss-newton towards labels, fresh samples": {
        "prune.sparsity": 0.5,
        "prune.stages": 2,
        "calibration.labels": True,
        "calibration.resample": True,
        "prune.refine": "stages",
        "prune.refine_by": "gauss-newton",
    },
    "fine-tuning with sgd": {"prune.sparsity": 0.8, "prune.stages": 2, "finetune.epochs": 2},
    "fine-tuning with adamw, an average and accumulation": {
        "prune.sparsity": 0.8,
        "prune.stages": 1,
        "finetune.epochs": 2,
        "finetune.optimizer": "adamw",
        "finetune.ema": 0.9,
        "finetune.accumulate": 2,
        "finetune.clip_norm": 1.0,
    },
    "a gradual schedule with rewinding": {
        "prune.sparsity": 0.8,
        "prune.schedule": "cubic",
        "prune.stages": 3,
        "finetune.epochs": 3,
        "finetune.rewind": True,
        "finetune.ema": 0.5,
    },
    "a refinement alone, then fine-tuning": {
        "prune.sparsity": 0.0,
        "prune.refine": "last",
        "calibration.labels": True,
        "finetune.epochs": 1,
    },
    "a gradual schedule with a refinement in each stage, on fresh samples": {
        "prune.sparsity": 0.8,
        "prune.schedule": "linear",
        "prune.stages": 2,
        "prune.refine": "stages",
        "prune.refine_by": "features",
        "prune.refine_steps": 3,
        "calibration.resample": True,
        "finetune.epochs": 2,
        "finetune.ema": 0.9,
        "prune.during": 1.0,
    },
    "single removals, made up for in closed form": {
        "prune.sparsity": 0.6,
        "prune.stages": 2,
        "prune.method": "obs",
        "prune.repair": "obs",
        "prune.refine_steps": 4,
    },
    "a solver": {"prune.sparsity": 0.6, "prune.stages": 2, "prune.method": "obs_fisher"},
    "fp16": {
        "prune.sparsity": 0.5,
        "prune.stages": 1,
        "prune.method": "magnitude",
        "finetune.epochs": 2,
        "finetune.precision": "fp16",
    },
    "half precision": {"prune.sparsity": 0.5, "prune.stages": 1, "finetune.epochs": 1, "finetune.precision": "bf16"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_from_any_moment_with_the_same_bits(conv: nn.Module, case: str) -> None:
    network = Dropping(conv)
    whole = Every()
    expected = pruned(network, CASES[case], whole)
    assert_same(pruned(network, CASES[case]), expected)  # saving changes nothing
    first, *between, last = whole.all
    for kept in (first, random.Random(case).choice(between), last):
        torch.manual_seed(17)  # the random state of another process
        assert_same(expected, pruned(network, CASES[case], Memory(10**9, kept)))


def test_a_run_may_be_stopped_again_and_again(conv: nn.Module) -> None:
    settings = CASES["a gradual schedule with rewinding"]
    expected = pruned(conv, settings)
    left, times = None, 0
    while True:
        keeper = Memory(4, left)
        try:
            outcome = pruned(conv, settings, keeper)
            break
        except Stopped:
            left, times = keeper.kept, times + 1
    assert times >= 4
    assert_same(expected, outcome)


def within(state: Mapping[str, Any]) -> str:
    """What a state was kept in the middle of."""
    stages = state["stages"]
    if stages["refinement"] is not None:
        where = "refinement"
    elif (stage := stages["stage"]) is None:
        where = "nothing"
    elif stage["selection"] is None:
        where = "scores"
    else:
        where = "repair" if stage["repaired"] else "selection"
    return where + ("" if state["finetuning"] is None else ", training begun")


def test_a_stage_of_a_gradual_schedule_goes_on_from_any_moment_within(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH", 32)  # two batches, so that three steps end within a pass over them
    settings = CASES["a gradual schedule with a refinement in each stage, on fresh samples"]
    whole = Every()
    expected = pruned(conv, settings, whole)
    kinds = [within(torch.load(io.BytesIO(kept), weights_only=True)) for kept in whole.all]
    places = ["scores", "selection", "repair", "refinement"]
    assert {*kinds} == {
        "nothing",
        *places,
        "nothing, training begun",
        *(f"{place}, training begun" for place in places),
    }
    for kind, kept in dict(zip(kinds, whole.all, strict=True)).items():  # the last state of each kind
        if kind != "nothing, training begun":
            assert_same(expected, pruned(conv, settings, Memory(10**9, kept)))


def test_an_epoch_s_end_is_made_up_for_where_the_run_went_before_it(conv: nn.Module) -> None:
    settings = CASES["a gradual schedule with rewinding"]
    whole = Every()
    expected = pruned(conv, settings, whole)
    ended = 0
    watched: list[tuple[str, int, float]] = []
    for kept in whole.all:
        state = torch.load(io.BytesIO(kept), weights_only=True)["finetuning"]
        if state is None or not state["ending"]:
            continue
        ended += 1
        assert len(state["epochs"]) == ended - 1
        watched.clear()
        again = Every(kept)
        assert_same(expected, pruned(conv, settings, again, lambda *told: watched.append(told)))
        assert [told[1] for told in watched if told[0] == "epoch"] == list(range(ended, 4))
        # And once more from the state that is kept while the end is made up for.
        assert_same(expected, pruned(conv, settings, Memory(10**9, again.all[0])))
    assert ended == 3


def test_a_run_goes_on_with_as_many_threads_as_it_began_with(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"prune.sparsity": 0.5, "prune.stages": 1, "prune.method": "magnitude"}
    keeper = Memory(2)
    with pytest.raises(Stopped):
        pruned(conv, settings, keeper)
    state = torch.load(io.BytesIO(keeper.kept), weights_only=True)
    before = torch.get_num_threads()
    assert state["threads"] == before
    other = Memory(10**9)
    other.save({**state, "threads": before + 1})
    seen = set()
    monkeypatch.setattr(Silent, "phase", lambda self, name, total=None: seen.add(torch.get_num_threads()))
    pruned(conv, settings, other)
    assert seen == {before + 1}
    assert torch.get_num_threads() == before


def test_what_a_stage_has_found_is_not_found_again(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"prune.sparsity": 0.8, "prune.stages": 1, "prune.refine": "none"}
    whole = Every()
    pruned(conv, settings, whole)
    scored: list[str] = []
    solved: list[str] = []
    compute, solve = LayerScores.compute, least_squares.solve_layer

    def compute_telling(self: LayerScores, layers: list[Layer], score: Callable[[Layer], torch.Tensor]) -> Any:
        return compute(self, layers, lambda layer: scored.append(layer.name) or score(layer))

    def solve_telling(layer: Layer, *more: Any) -> Any:
        solved.append(layer.name)
        return solve(layer, *more)

    monkeypatch.setattr(LayerScores, "compute", compute_telling)
    monkeypatch.setattr(least_squares, "solve_layer", solve_telling)
    layers = [layer.name for layer in Network.from_module(conv).layers]
    seen = set()
    for kept in whole.all:
        begun = torch.load(io.BytesIO(kept), weights_only=True)["stages"]["stage"]
        if begun is None:
            continue
        scored.clear()
        solved.clear()
        [stage] = pruned(conv, settings, Memory(10**9, kept)).stages
        assert stage.seconds > begun["seconds"]
        scores = len(layers) if begun["selection"] is not None else len(begun["layer_scores"])
        assert scored == layers[scores:]
        repaired = len(begun.get("repaired", ()))
        assert solved == layers[repaired:]
        seen.add((scores, repaired))
    assert len(seen) == 2 * len(layers)  # after each layer's scores, and after each layer's repair


@pytest.mark.parametrize("method", ["exact_obs", "obs", "obs_kfac"])
def test_scores_that_take_long_are_kept_layer_by_layer(conv: nn.Module, method: str) -> None:
    settings = {"prune.sparsity": 0.8, "prune.stages": 1, "prune.refine": "none", "prune.method": method}
    whole = Every()
    expected = pruned(conv, settings, whole)
    counts = []
    for kept in whole.all:
        begun = torch.load(io.BytesIO(kept), weights_only=True)["stages"]["stage"]
        if begun is not None and begun["selection"] is None:
            counts.append(len(begun["layer_scores"]))
            assert_same(expected, pruned(conv, settings, Memory(10**9, kept)))
    assert counts == [1, 2, 3]


def test_notes_of_training_are_in_the_report_of_the_resumed_run(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward, steps = Backward.__call__, []

    def telling(self: Backward, group: Sequence[BatchShard], count: int) -> torch.Tensor:
        steps.append(count)
        if len(steps) == 2:
            self._note("micro-batches from here on")
        return backward(self, group, count)

    monkeypatch.setattr(Backward, "__call__", telling)
    settings = {**CASES["fine-tuning with sgd"], "prune.method": "magnitude"}
    whole = Memory()
    expected = pruned(conv, settings, whole)
    steps.clear()
    keeper = Memory(whole.moments - 2)
    with pytest.raises(Stopped):
        pruned(conv, settings, keeper)
    assert len(steps) >= 2
    outcome = pruned(conv, settings, Memory(10**9, keeper.kept))
    assert "micro-batches from here on" in outcome.choices
    assert outcome.choices == expected.choices


def test_what_was_measured_of_the_dense_network_is_not_measured_again(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Memory(2)
    with pytest.raises(Stopped):
        pruned(conv, CASES["fine-tuning with sgd"], keeper)
    seen = []
    monkeypatch.setattr(
        "prunetaylor.pipeline.run.evaluate_on_test", lambda job, module, progress, phase, *_: seen.append(phase)
    )
    pruned(conv, CASES["fine-tuning with sgd"], Memory(10**9, keeper.kept))
    assert seen == ["measure the pruned network"]


def test_final_measures_of_a_resumed_run_are_reported_with_their_step(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(Silent, "measured", lambda self, step, values: told.append((step, values)))
    keeper = Memory()
    pruned(conv, CASES["fine-tuning with sgd"], keeper)
    last = told[-1]
    assert last[0] > 0
    pruned(conv, CASES["fine-tuning with sgd"], Memory(10**9, keeper.kept))
    assert told[-1] == last
