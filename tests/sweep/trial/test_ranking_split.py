"""Which samples rank the trials, and which report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from prunetaylor.core.config.resolve import from_values
from prunetaylor.core.errors import DataError
from prunetaylor.core.progress import Silent
from prunetaylor.data.load import from_python
from prunetaylor.data.samples import Split
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.pipeline.job import Job, make_job
from prunetaylor.sweep.trial.files import read_description, write_description
from prunetaylor.sweep.trial.ranking_split import MIN_RANKING, has_lower_loss, split_for_ranking
from support.samples import fetch


def pairs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return x, (x[:, 0] > 0).long()


def a_job(train: int = 1500, test: int = 300, validation: int | None = None, *, noise: float = 0.0) -> Job:
    """A job whose network answers as its first input says; ``noise`` spoils the test samples."""
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-2.0, 0, 0, 0], [2.0, 0, 0, 0]]))
        net.bias.zero_()
    held = None if validation is None else pairs(validation, 3)
    x, y = pairs(test, 2)
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    samples = from_python(pairs(train, 1), (x, y), held)
    return make_job(from_values({"device": "cpu"}).config, net, samples, torch.device("cpu"))


def rows(split: Split) -> set[tuple[float, ...]]:
    return {tuple(row) for row in fetch(split, range(len(split)))[0].tolist()}


def assert_apart(job: Job, folder: Path, ranking: int, reporting: int) -> None:
    found = split_for_ranking(job, folder, 0, Silent())
    assert found is not None
    assert (len(found.ranking), len(found.samples.test)) == (ranking, reporting)
    used = rows(found.samples.train) | rows(found.samples.test)
    assert not rows(found.ranking) & used
    own = evaluate(job.network.module, job.batches(found.samples.test), job.task, job.metric)
    torch.testing.assert_close(found.dense_reporting.losses, own.losses)
    assert found.dense_reporting.metrics["top1"] == own.metrics["top1"]
    assert f"{ranking:,}" in found.description
    assert f"{reporting:,}" in found.description


def test_the_source_s_own_validation_ranks(tmp_path: Path) -> None:
    assert_apart(a_job(validation=50), tmp_path, 50, 300)


def test_training_samples_rank_where_the_network_knows_them_no_better(tmp_path: Path) -> None:
    assert_apart(a_job(), tmp_path, 150, 300)


def test_else_a_half_of_the_test_ranks(tmp_path: Path) -> None:
    assert_apart(a_job(noise=2.0), tmp_path, 150, 150)


def test_few_training_samples_do_not_rank(tmp_path: Path) -> None:
    assert_apart(a_job(train=10 * MIN_RANKING - 10), tmp_path, 150, 150)


def test_the_first_trial_chooses_for_all(tmp_path: Path) -> None:
    assert_apart(a_job(noise=2.0), tmp_path, 150, 150)
    assert_apart(a_job(), tmp_path, 150, 150)  # on its own it would rank on training samples


def test_the_dense_network_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split_for_ranking(a_job(), tmp_path, 0, Silent())
    monkeypatch.setattr("prunetaylor.sweep.trial.ranking_split.evaluate", lambda *args: pytest.fail("measured again"))
    assert_apart(a_job(), tmp_path, 150, 300)
    job = a_job()
    other = replace(job, samples=replace(job.samples, fingerprint="another"))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        split_for_ranking(other, tmp_path, 0, Silent())


def test_a_dense_file_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    split_for_ranking(a_job(), tmp_path, 0, Silent())
    for path in tmp_path.glob("dense-*"):
        path.write_bytes(path.read_bytes()[:40])
    assert_apart(a_job(), tmp_path, 150, 300)


def test_no_samples_or_one(tmp_path: Path) -> None:
    job = replace(a_job(), samples=None)
    assert split_for_ranking(job, tmp_path, 0, Silent()) is None
    with pytest.raises(DataError, match="1 test samples are too few"):
        split_for_ranking(a_job(train=20, test=1), tmp_path, 0, Silent())


def test_known_better_is_significant() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (Evaluation.from_samples(torch.rand(400, generator=generator), None, torch.zeros(400)) for _ in range(2))
    assert not has_lower_loss(a, b)
    assert has_lower_loss(a, Evaluation.from_samples(b.losses + 0.2, None, b.targets))
    assert not has_lower_loss(Evaluation.from_samples(b.losses + 0.2, None, b.targets), a)


def test_what_is_said_of_the_samples_is_kept(tmp_path: Path) -> None:
    assert read_description(tmp_path) == ""
    write_description(tmp_path, "halves")
    assert read_description(tmp_path) == "halves"
