"""One trial in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunetaylor.core.config.code import Trust
from prunetaylor.core.errors import NumericsError, OutputError, PruneTaylorError
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.measure.metrics import load_metric
from prunetaylor.network.checkpoint.load import load
from prunetaylor.pipeline.files.run_folder import REPORT
from prunetaylor.sweep.file import read
from prunetaylor.sweep.study.study import ClaimedTrial, Stopped, Study
from prunetaylor.sweep.trial.files import current_phase, trial_folder, write_error
from prunetaylor.sweep.trial.run import TrialContext, explain, intervals, run_trial


@pytest.fixture
def home(task: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(task)
    return task


def begin(home: Path, text: str) -> tuple[Study, ClaimedTrial, TrialContext]:
    (home / "sweep.yaml").write_text(text)
    (home / "out").mkdir(exist_ok=True)
    study = Study(read(home / "sweep.yaml"), home / "out", "d" * 64, None)
    study.enqueue_missing()
    claimed = study.claim("me")
    assert claimed is not None
    return study, claimed, TrialContext(home / "out", 1, Trust(everything=True))


def test_a_trial_is_an_ordinary_run(home: Path) -> None:
    study, claimed, place = begin(home, (home / "sweep.yaml").read_text())
    measured = run_trial(study.sweep, place, claimed)
    folder = trial_folder(home / "out", 1)
    assert {path.name for path in folder.iterdir()} == {
        "report.json", "report.html", "model.safetensors", "config.yaml", "log.jsonl", "trial.json",
    }  # fmt: skip
    module = load(str(folder), trust_code=True)
    left = sum(int(p.count_nonzero()) for p in module.parameters())
    assert left == measured["metrics"]["nonzero"]
    report = json.loads((folder / REPORT).read_text())
    assert report["seconds"]["total"] == measured["metrics"]["seconds"]
    assert run_trial(study.sweep, place, claimed) == json.loads(json.dumps(measured))  # as after a death before telling
    stranger = ClaimedTrial(1, {**claimed.values, "prune.sparsity": 0.7}, claimed.trial)
    with pytest.raises(OutputError, match="not this trial"):
        run_trial(study.sweep, place, stranger)


def test_epochs_are_reported_and_a_stopped_trial_leaves_no_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (home / "sweep.yaml").read_text().replace("epochs: 0", "epochs: 4")
    text = text.replace("method: grid", "method: grid\nearly_terminate: {type: hyperband, max_iter: 4}")
    study, claimed, place = begin(home, text)
    said: list[tuple[int, float]] = []
    monkeypatch.setattr(type(claimed.trial), "report", lambda self, value, step: said.append((step, value)))
    monkeypatch.setattr(type(claimed.trial), "should_prune", lambda self: len(said) == 3)
    with pytest.raises(Stopped):
        run_trial(study.sweep, place, claimed)
    assert [step for step, _ in said] == [1, 2, 3]
    assert all(50 < value <= 100 for _, value in said)
    folder = trial_folder(home / "out", 1)
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]
    study.mark_stopped(claimed)
    assert study.trials()[0].state == "stopped"


def test_stages_are_reported_where_there_are_no_epochs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        (home / "sweep.yaml")
        .read_text()
        .replace("stages: 1", "stages: [0.1, 0.15, 0.2]")
        .replace("[0.2, 0.5, 0.8]", "[0.2]")
    )
    text = text.replace("method: grid", "method: grid\nearly_terminate: {type: hyperband}")
    study, claimed, place = begin(home, text)
    said: list[tuple[int, float]] = []
    monkeypatch.setattr(type(claimed.trial), "report", lambda self, value, step: said.append((step, value)))
    monkeypatch.setattr(type(claimed.trial), "should_prune", lambda self: False)
    run_trial(study.sweep, place, claimed)
    report = json.loads((trial_folder(home / "out", 1) / REPORT).read_text())
    changes = [stage["cumulative_measured"] for stage in report["stages"]]
    assert said == [(i, -change) for i, change in enumerate(changes, 1)]  # more is better, as of top1
    assert len(said) == 3


def test_a_trial_that_did_not_reach_its_sparsity_has_failed(home: Path) -> None:
    text = (home / "sweep.yaml").read_text().replace("epochs: 0", "epochs: 3, lr: 1.0e+6")
    text = text.replace("stages: 1", "stages: 2, schedule: linear")
    study, claimed, place = begin(home, text)
    with pytest.raises(NumericsError, match="training loss"):
        run_trial(study.sweep, place, claimed)


def test_a_metric_that_nobody_knows_fails_the_trial(home: Path) -> None:
    text = (home / "sweep.yaml").read_text().replace('"arrays:data.npz", normalize: none', "none")
    study, claimed, place = begin(home, text)
    with pytest.raises(PruneTaylorError, match="the trial has no top1, but the sweep ranks by it"):
        run_trial(study.sweep, place, claimed)
    assert not (trial_folder(home / "out", 1) / REPORT).exists()


def test_a_trial_s_numbers_are_tracked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, object]] = []

    class Tracker:
        def measured(self, step: int, values: dict[str, float]) -> None:
            told.append(("measured", sorted(values)))

        def close(self) -> None:
            told.append(("close", None))

    def start(folder: Path, run: str, settings: dict[str, object]) -> Tracker:
        told.append((run, settings["prune.sparsity"]))
        return Tracker()

    monkeypatch.setattr("prunetaylor.report.trackers.mlflow.open", start)
    study, claimed, place = begin(home, (home / "sweep.yaml").read_text() + "  track: [mlflow]\n")
    run_trial(study.sweep, place, claimed)
    assert told[0] == ("sweep-0001", 0.2)
    assert any(what == "measured" for what, _ in told)
    assert told[-1] == ("close", None)


def test_trials_at_the_same_time_share_the_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, claimed, place = begin(home, (home / "sweep.yaml").read_text())
    monkeypatch.setattr("prunetaylor.sweep.trial.run.free_bytes", lambda device: 40 * 2**30)
    run_trial(study.sweep, TrialContext(place.folder, 2, Trust(everything=True)), claimed)
    report = json.loads((trial_folder(home / "out", 1) / REPORT).read_text())
    assert report["memory"]["limit"] == 18 * 2**30


def interval(name: str, values: torch.Tensor) -> tuple[float, float] | None:
    metric = load_metric(name)
    evaluation = Evaluation.from_samples(values.double(), None, values, metric=metric, records=[values])
    return intervals(evaluation, metric).get(name)


def test_intervals() -> None:
    """Wilson's, by his formula for 8 of 10, and the normal one."""
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    correct = torch.tensor([True] * 8 + [False] * 2)
    assert interval("top1", correct) == pytest.approx((49.0162, 94.3318), abs=1e-3)
    half = 1.959964 * float(losses.std()) / 2
    assert interval("loss", losses) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-5)
    low, high = interval("top1", torch.ones(4, dtype=torch.bool))
    assert 0 < low < 100 == high
    assert interval("loss", losses[:1]) is None


def test_causes_in_one_line() -> None:
    assert explain(MemoryError("x")).startswith("out of memory: try")
    assert explain(torch.OutOfMemoryError("CUDA")).startswith("out of memory: try")
    assert explain(ZeroDivisionError("a\nb")) == "ZeroDivisionError: a b"
    assert explain(PruneTaylorError("cause", "remedy")) == "cause"
    assert len(explain(ValueError("x" * 5000))) < 400


def test_an_error_keeps_the_log_of_a_process_that_was_killed(tmp_path: Path) -> None:
    number = trial_folder(tmp_path, 1)
    (number / ".partial").mkdir(parents=True)
    (number / ".partial" / "log.jsonl").write_text('{"event": "phase", "name": "stage 1"}\n')
    assert current_phase(tmp_path, 1) == "stage 1"
    write_error(number, "killed", "Fatal Python error")
    assert (number / "error.txt").read_text() == "killed\n\nFatal Python error\n"
    assert "stage 1" in (number / "log.jsonl").read_text()
    assert not (number / ".partial").exists()
    assert current_phase(tmp_path, 1) == ""
