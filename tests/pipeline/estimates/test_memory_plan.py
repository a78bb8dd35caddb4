"""The memory plan of a run: what it says, what it refuses, and the chunks under which it fits."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.config.sizes import parse_size, show_size
from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Silent
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.data.load import from_python
from prunetaylor.data.samples import Inputs
from prunetaylor.network.network import Network
from prunetaylor.pipeline.estimates import memory as memory_plan
from prunetaylor.pipeline.estimates import phases as memory_phases
from prunetaylor.pipeline.estimates.memory import MemoryPlan, MemoryPlanner
from prunetaylor.pipeline.estimates.sizes import state_bytes
from prunetaylor.pipeline.job import Job, make_job
from prunetaylor.pipeline.planning.plan import make_plan
from prunetaylor.pipeline.run import run
from prunetaylor.pipeline.score import run as look
from prunetaylor.taylor.live_memory import alive_in_forward_mode
from prunetaylor.taylor.memory import ChunkDivisors
from prunetaylor.taylor.sizes import Phase
from support.networks import ConvNet, trained
from support.runs import TEST, TRAIN

CPU = torch.device("cpu")

MIB = 2**20


@pytest.fixture(scope="module")
def conv() -> nn.Module:
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 100)


def job_of(model: nn.Module, **settings: object) -> Job:
    usual = {"calibration.samples": 120, "prune.stages": 1, "finetune.epochs": 0, "data.workers": 0, "device": "cpu"}
    config = from_values(usual | {key.replace("__", "."): value for key, value in settings.items()}).config
    return make_job(config, copy.deepcopy(model), from_python(TRAIN, TEST), CPU)


def plan_of(job: Job) -> MemoryPlan:
    return MemoryPlanner(job).plan_run(make_plan(job.config, job.facts), job.facts)


def phase(job: Job, name: str) -> Phase:
    """Return the phase of that name in the job's plan."""
    return next(one for one in plan_of(job).phases if one.name == name)


def smallest(model: nn.Module, command: str = "prune", **settings: object) -> int:
    """Return the smallest limit that is not refused, to a mebibyte, which the refusal names."""
    job = job_of(model, memory=1, **settings)
    plan = make_plan(job.config, job.facts, one_step=command == "score")
    with pytest.raises(UsageError) as refused:
        MemoryPlanner(job, command).plan_run(plan, job.facts)
    return parse_size(refused.value.remedy.rpartition("--memory ")[2])


def pruned(model: nn.Module, **settings: object) -> PruneResult:
    return run(job_of(model, **settings), Silent())


def test_a_plan_says_what_it_is_made_of(conv: nn.Module) -> None:
    plan = plan_of(job_of(conv))
    report = plan.report
    assert sum(report.parts.values()) == report.planned
    assert set(report.parts) >= {"weights", "samples", "activations", "libraries"}
    assert report.parts["samples"] >= TRAIN[0].nbytes + TEST[0].nbytes
    assert report.limit is not None
    assert report.limit > report.planned
    assert plan.divisors == ChunkDivisors()
    assert plan.describe().startswith(f"memory: needs up to {show_size(report.planned)} (")
    assert f"{show_size(plan.free)} free" in plan.describe()
    assert max(map(len, (plan.describe(),))) < 250


def test_where_nobody_knows_what_is_free_there_is_no_limit(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _: None)
    plan = plan_of(job_of(conv))
    assert plan.report.limit is None
    assert "free memory unknown, no limit" in plan.describe()


def test_what_is_free_is_a_limit_beside_what_is_there_already(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _: 10**9)
    there = TRAIN[0].nbytes + TEST[0].nbytes + state_bytes(conv)
    assert plan_of(job_of(conv)).report.limit == 9 * 10**8 + there


@pytest.mark.parametrize("method", ["obs", "obd", "obs_fisher", "obs_kfac", "exact_obs", "joint"])
def test_smaller_chunks_give_the_same_network(conv: nn.Module, method: str) -> None:
    # Hundreds of steps of a refinement would make more of the rounding.
    usual = pruned(conv, prune__method=method, prune__refine="none")
    limit = smallest(conv, prune__method=method, prune__refine="none")
    tight = pruned(conv, prune__method=method, prune__refine="none", memory=limit)
    assert usual.memory is not None
    assert tight.memory is not None
    assert tight.memory.planned <= limit < usual.memory.planned
    assert tight.memory.batch < usual.memory.batch
    for name, mask in usual.masks.items():
        assert torch.equal(mask, tight.masks[name]), name
    for name, value in usual.module.state_dict().items():
        torch.testing.assert_close(tight.module.state_dict()[name], value, rtol=1e-3, atol=1e-4)


class Tokens(nn.Module):
    """Images of 6 x 6 read as 96 tokens, whose products with each other are far larger than what modules show."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(96, 8))
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.layer = nn.TransformerEncoderLayer(8, 8, 16, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(x.squeeze(1)).repeat(1, 16, 1) + self.place).mean(1))


def test_attention_is_planned_for_and_fits_its_limit() -> None:
    torch.manual_seed(0)
    model = trained(Tokens(), TRAIN, cross_entropy, 20)
    settings = {"prune__method": "obd", "prune__refine": "none"}
    usual, tight = pruned(model, **settings), pruned(model, **settings, memory="80MiB")
    assert usual.memory is not None
    assert tight.memory is not None
    assert tight.memory.planned <= 80 * MIB < usual.memory.planned
    assert 1 < tight.memory.batch < 32
    alive = alive_in_forward_mode(model, Inputs.of(TRAIN[0][: tight.memory.batch]), Network.from_module(model).layers)
    assert alive <= tight.memory.parts["activations"] <= 2.25 * alive
    for name, mask in usual.masks.items():
        assert torch.equal(mask, tight.masks[name]), name


def test_scoring_has_a_plan_too(conv: nn.Module) -> None:
    found = look(job_of(conv), Silent())
    assert found.memory is not None
    assert found.memory.planned > 0
    with pytest.raises(UsageError, match="smallest chunks"):
        look(job_of(conv, memory="1MiB"), Silent())


def test_without_data_there_is_little_to_plan(conv: nn.Module) -> None:
    config = from_values({"device": "cpu", "memory": "100MiB"}).config
    plan = plan_of(make_job(config, conv, None, CPU))
    assert plan.report.parts["samples"] == 0
    assert plan.phase.name in ("scores (magnitude)", "ranking")


def wide() -> nn.Module:
    """Layer Grams that are far larger than the weights' own size."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 1500), nn.ReLU(), nn.Linear(1500, 4))


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError) as found:
        plan_of(job_of(wide(), memory="70MiB"))
    cause, remedy = found.value.cause, found.value.remedy
    assert found.value.exit_code == 2
    assert " (exact_obs) needs " in cause
    assert "(most for 3); " in cause
    assert "the limit is 70 MiB" in cause
    assert "prune.method=obd (" in remedy
    # What is said to fit does, to the last word.
    asked = remedy.rpartition("--memory ")[2]
    assert plan_of(job_of(wide(), memory=asked)).report.planned <= parse_size(asked)
    assert plan_of(job_of(wide(), memory="70MiB", prune__method="obd")).report.planned <= 70 * MIB
    with pytest.raises(UsageError, match="even in the smallest chunks"):
        plan_of(job_of(wide(), memory=parse_size(asked) - MIB))


def test_refinement_that_will_not_be_chosen_is_not_planned() -> None:
    """Without labels auto comes to features, which take less; with them that is a setting which would fit."""
    torch.manual_seed(0)
    how = {"prune__method": "magnitude", "prune__repair": "none", "prune__refine": "last", "prune__refine_steps": 1}
    least = {}
    for by in ("features", "gauss-newton"):
        least[by] = smallest(wide(), **how, prune__refine_by=by)
    assert least["features"] < least["gauss-newton"]
    limit = (least["features"] + least["gauss-newton"]) // 2
    outcome = pruned(wide(), **how, calibration__labels=False, memory=limit)
    assert any("matching the dense layers" in line for line in outcome.choices)
    with pytest.raises(UsageError, match="refinement by Gauss-Newton") as found:
        pruned(wide(), **how, memory=limit)  # which is not trained: labels are used
    assert found.value.remedy.startswith("what would fit: prune.refine_by=features, ")


@pytest.mark.parametrize("method", ["magnitude", "obs_fisher", "joint", "obs"])
def test_scoring_plans_for_the_layer_grams_of_its_repair(method: str) -> None:
    torch.manual_seed(0)
    grams = 8 * (37**2 + 1501**2)  # of wide(), in float64
    least = {}
    for repair in ("none", "least-squares"):
        least[repair] = smallest(wide(), "score", prune__method=method, prune__repair=repair)
    assert least["least-squares"] > grams
    assert method == "obs" or least["least-squares"] > grams + least["none"] - 8 * MIB


@pytest.mark.parametrize(
    ("method", "how", "possible"),
    [
        ("taylor1", {"prune__repair": "least-squares"}, True),
        ("taylor1", {"prune__repair": "least-squares", "calibration__labels": False}, False),
        ("joint", {}, True),
        ("joint", {"prune__repair": "obs"}, False),
    ],
)
def test_no_method_is_suggested_that_would_be_refused(method: str, how: dict[str, object], possible: bool) -> None:
    torch.manual_seed(0)
    settings = {"prune__refine": "none", "calibration__samples": 24, **how}
    limit = smallest(wide(), prune__method="exact_obs", **settings) - MIB
    with pytest.raises(UsageError) as found:
        plan_of(job_of(wide(), prune__method="exact_obs", memory=limit, **settings))
    assert (f"prune.method={method} (" in found.value.remedy) == possible
    if not possible:
        with pytest.raises(UsageError):
            pruned(ConvNet(), prune__sparsity=0.5, prune__method=method, **how)


def test_fewer_samples_are_suggested_where_they_help() -> None:
    torch.manual_seed(0)
    limit = smallest(wide(), prune__method="joint", calibration__samples=200) - MIB
    with pytest.raises(UsageError) as found:
        plan_of(job_of(wide(), prune__method="joint", calibration__samples=200, memory=limit))
    settings = [part for part in found.value.remedy.split() if part.startswith("calibration.samples=")]
    [said] = [int(part.removeprefix("calibration.samples=").rstrip(",")) for part in settings]
    assert plan_of(job_of(wide(), prune__method="joint", calibration__samples=said, memory=limit))


def test_the_report_has_it(conv: nn.Module) -> None:
    from prunetaylor.report.json_report import to_json

    document = json.loads(json.dumps(to_json(pruned(conv, prune__method="obd"), {})))
    assert set(document["memory"]) == {"planned", "limit", "parts", "phase", "batch"}
    assert document["memory"]["planned"] == sum(document["memory"]["parts"].values())


def test_fine_tuning_is_part_of_the_plan(conv: nn.Module) -> None:
    def fine_tuning(**settings: object) -> Phase:
        job = job_of(conv, finetune__epochs=1, **settings)
        return phase(job, "fine-tuning")

    usual, adamw = fine_tuning(), fine_tuning(finetune__optimizer="adamw")
    assert adamw.parts["optimizer"] - usual.parts["optimizer"] == 4 * sum(p.numel() for p in conv.parameters())
    half = fine_tuning(data__batch_size=32)
    assert half.parts["activations"] == pytest.approx(usual.parts["activations"] / 2, rel=1e-3)
    # No batch is larger than the training set.
    assert fine_tuning(data__batch_size=len(TRAIN[0])) == fine_tuning(data__batch_size=1 << 16)


def test_a_training_batch_that_does_not_fit_is_taken_in_parts(conv: nn.Module) -> None:
    how = {"finetune__epochs": 1, "data__batch_size": 200, "prune__method": "magnitude", "prune__refine": "none"}
    usual = plan_of(job_of(conv, **how))
    assert usual.phase.name == "fine-tuning"
    limit = usual.report.planned - MIB
    plan = plan_of(job_of(conv, memory=f"{limit}B", **how))
    assert plan.divisors == ChunkDivisors(training=plan.divisors.training)
    assert plan.divisors.training > 1
    assert plan.report.planned <= limit
    outcome = pruned(conv, memory=f"{limit}B", **how)
    assert any(line.startswith("micro-batches: each batch is split into ") for line in outcome.choices)


def test_each_process_plans_for_its_own_rows_of_a_training_batch(
    conv: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fine_tuning() -> int:
        job = job_of(conv, finetune__epochs=1, data__batch_size=100)
        return phase(job, "fine-tuning").parts["activations"]

    alone = fine_tuning()
    monkeypatch.setattr(memory_phases, "world", lambda: 4)
    assert fine_tuning() == pytest.approx(alone / 4, rel=1e-3)


def test_several_processes_get_the_batch_size_that_would_fit(conv: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_phases, "world", lambda: 2)
    how = {"finetune__epochs": 1, "prune__method": "magnitude", "prune__refine": "none"}
    fits = plan_of(job_of(conv, data__batch_size=16, **how)).report.planned
    with pytest.raises(UsageError, match=r"fine-tuning needs .*(?s:.)*data\.batch_size=") as found:
        plan_of(job_of(conv, memory=f"{fits}B", data__batch_size=200, **how))
    [said] = [word for word in found.value.remedy.split() if word.startswith("data.batch_size=")]
    size = int(said.removeprefix("data.batch_size=").rstrip(","))
    assert plan_of(job_of(conv, memory=f"{fits}B", data__batch_size=size, **how)).report.planned <= fits


def test_gradual_stages_leave_memory_for_the_optimizer(conv: nn.Module) -> None:
    def prediction(**settings: object) -> Phase:
        job = job_of(conv, finetune__epochs=3, **settings)
        return phase(job, "prediction")

    assert "optimizer" not in prediction().parts
    held = [
        prediction(prune__schedule="cubic", finetune__optimizer=name).parts["optimizer"] for name in ("sgd", "adamw")
    ]
    assert held[1] - held[0] == 4 * sum(p.numel() for p in conv.parameters())
    assert held[0] > 8 * sum(p.numel() for p in conv.parameters() if p.dim() > 1)
