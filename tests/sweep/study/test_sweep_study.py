"""The sweep's state in Optuna: every trial once, whoever comes and goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from prunetaylor.core.errors import OutputError, UsageError
from prunetaylor.pipeline.files.lock import try_lock
from prunetaylor.sweep.file import read
from prunetaylor.sweep.heartbeat import Heartbeat, is_alive, live_workers, new_worker_name
from prunetaylor.sweep.study.study import GONE, JOURNAL, MAX_RETURNS, Stopped, Study

GRID = """
method: grid
metric: {name: top1, goal: maximize}
parameters:
  prune.stages: {values: [auto, 2, [0.1, 0.5]]}
  prune.damping: {values: [0.5, 0.9]}
base: {model: {checkpoint: net.pt}}
"""
RANDOM = GRID.replace("grid", "random\nrun_cap: 5").replace("{values: [0.5, 0.9]}", "{min: 0.5, max: 0.9}")
BAYES = RANDOM.replace("random", "bayes")


def study(folder: Path, text: str = GRID, url: str | None = None) -> Study:
    (folder / "s.yaml").write_text(text)
    return Study(read(folder / "s.yaml"), folder, "d" * 64, url)


def measured(top1: float) -> dict[str, object]:
    return {"metrics": {"top1": top1, "nonzero": 10}, "interval": {"top1": [top1 - 1, top1 + 1]}, "reported": {}}


def test_a_grid_from_start_to_end(tmp_path: Path) -> None:
    one = study(tmp_path)
    assert one.enqueue_missing() == 6
    claimed = []
    while (trial := one.claim("me")) is not None:
        claimed.append(trial)
        one.complete(trial, measured(50.0 + trial.number))
    assert [trial.number for trial in claimed] == [1, 2, 3, 4, 5, 6]
    assert claimed[0].values == {"prune.stages": "auto", "prune.damping": 0.5}
    assert claimed[5].values == {"prune.stages": [0.1, 0.5], "prune.damping": 0.9}
    found = study(tmp_path).trials()
    assert [trial.state for trial in found] == ["done"] * 6
    assert found[2].values == (53.0,)
    assert found[2].interval == {"top1": (52.0, 54.0)}
    assert found[4].parameters == {"prune.stages": [0.1, 0.5], "prune.damping": 0.5}
    assert one.enqueue_missing() == 0


def test_two_processes_share_the_trials(tmp_path: Path) -> None:
    one, two = study(tmp_path), study(tmp_path)
    one.enqueue_missing()
    claimed = [who.claim(name) for _ in range(3) for who, name in ((one, "a"), (two, "b"))]
    assert [trial.number for trial in claimed if trial is not None] == [1, 2, 3, 4, 5, 6]
    assert one.claim("a") is None
    assert two.claim("b") is None
    assert {trial.worker for trial in one.trials()} == {"a", "b"}


def test_failed_and_lost_trials_are_run_again_once(tmp_path: Path) -> None:
    one = study(tmp_path)
    one.enqueue_missing()
    a, b, c, d = (one.claim(name) for name in ("w1", "w2", "w3", "w4"))
    assert a is not None
    assert b is not None
    assert c is not None
    assert d is not None
    one.complete(a, measured(90))
    one.fail(b, "out of memory")
    assert one.fail_trials_of("w3", "killed") == [3]
    assert [trial.state for trial in one.trials()] == ["done", "failed", "failed", "running", "waiting", "waiting"]
    assert [trial.cause for trial in one.trials()[1:3]] == ["out of memory", "killed"]
    again = study(tmp_path)
    assert again.enqueue_missing() == 5  # w4 holds no lock: it is gone
    assert again.enqueue_missing() == 5
    numbers = []
    while (trial := again.claim("new")) is not None:
        numbers.append(trial.number)
        again.complete(trial, measured(80 + trial.number))
    assert sorted(numbers) == [2, 3, 4, 5, 6]
    one.complete(d, measured(1))  # it comes back after all: too late
    assert [trial.values for trial in again.trials()] == [(90.0,), (82.0,), (83.0,), (84.0,), (85.0,), (86.0,)]


def test_a_trial_that_is_given_back_waits_again_at_once(tmp_path: Path) -> None:
    """With what was chosen for it; and only so often, until a user asks for it once more."""
    one = study(tmp_path, RANDOM)
    one.enqueue_missing(max_failures=1)
    seen = []
    for returns in range(MAX_RETURNS + 1):
        claimed = one.claim("w", "post 1", 2)
        assert claimed is not None
        assert (one.trials()[0].returns, one.trials()[0].threads) == (returns, 2)
        seen.append((claimed.number, claimed.values))
        for number in range(2, 6):  # so that it is the only one that waits
            if returns == 0:
                other = one.claim("other")
                assert other is not None
                assert other.number == number
                one.complete(other, measured(number))
        one.return_trial(claimed, "its node went down")
        one.maintain()
    assert seen == [seen[0]] * (MAX_RETURNS + 1)
    found = one.trials()[0]
    assert found.state == "failed"
    assert found.cause == f"returned to the queue {MAX_RETURNS} times, and again: its node went down"
    assert one.stop_reason
    assert one.enqueue_missing() == 1
    again = one.claim("w")
    assert again is not None
    assert again.values == seen[0][1]
    assert one.trials()[0].returns == 0


def test_a_trial_that_was_given_back_is_enqueued_once(tmp_path: Path) -> None:
    one, two = study(tmp_path), study(tmp_path)
    one.enqueue_missing()
    claimed = one.claim("w", "post 1")
    assert claimed is not None
    assert one.busy() == {"w", "post 1"}
    assert two.return_trials_of_job("post 1", "its job was cancelled")  # nobody of that name is at work
    one.return_trial(claimed, "stopped")  # it comes to say so itself: too late
    assert one.busy() == set()
    assert one.waiting == 5
    assert [trial.state for trial in one.trials()] == ["waiting"] * 6
    assert (one.trials()[0].returns, one.trials()[0].returned) == (1, "its job was cancelled")
    for _ in range(3):
        one.maintain()
    assert one.waiting == 6
    assert (one.trials()[0].returns, one.trials()[0].returned) == (1, "its job was cancelled")
    assert one.has_claimed("w")
    assert one.has_claimed("post 1")
    assert not one.has_claimed("post 2")


def test_an_engine_s_word_counts_once_a_worker_beats_no_more(tmp_path: Path) -> None:
    """A machine that is cut off works on: its trial is not begun a second time."""
    here = tmp_path / "workers" / "elsewhere-1-x"
    here.parent.mkdir()
    here.touch()
    one = study(tmp_path)
    one.enqueue_missing()
    one.claim("elsewhere-1-x", "post 1")
    assert not one.return_trials_of_job("post 1", "node lost")
    assert one.trials()[0].state == "running"
    for age, gone in ((14, False), (16, True)):
        os.utime(here, (time.time() - age,) * 2)
        assert is_alive(tmp_path, "elsewhere-1-x")  # nobody has said that it is gone
        assert one.return_trials_of_job("post 1", "node lost") == gone
    assert one.trials()[0].state == "waiting"


def test_a_trial_of_a_living_worker_is_left_alone(tmp_path: Path) -> None:
    one = study(tmp_path)
    one.enqueue_missing()
    code = """
import sys
from pathlib import Path
from prunetaylor.sweep.heartbeat import Heartbeat
with Heartbeat(Path(sys.argv[1]), sys.argv[2]):
    print("here", flush=True)
    sys.stdin.read()
"""
    name = new_worker_name()
    command = [sys.executable, "-c", code, str(tmp_path), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        one.claim(name)
        assert is_alive(tmp_path, name)
        assert live_workers(tmp_path) == [name]
        one.return_trials_of_dead()
        assert one.trials()[0].state == "running"
        other.kill()
        other.wait()
    assert not is_alive(tmp_path, name)
    one.return_trials_of_dead()
    assert one.trials()[0].state == "waiting"
    assert one.trials()[0].returned == GONE
    assert live_workers(tmp_path) == []
    assert list((tmp_path / "workers").iterdir()) == []


def test_a_worker_elsewhere_is_alive_while_its_file_is_fresh(tmp_path: Path) -> None:
    path = tmp_path / "workers" / "otherhost-1-abc"
    path.parent.mkdir()
    path.touch()
    assert is_alive(tmp_path, path.name)
    os.utime(path, (time.time() - 1000, time.time() - 1000))
    assert not is_alive(tmp_path, path.name)


def test_a_worker_is_not_seen_before_it_holds_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would count as dead, and its file would be claimed away."""
    seen: list[list[str]] = []

    def lock(file: IO[str]) -> bool:
        seen.append(live_workers(tmp_path))
        return try_lock(file)

    monkeypatch.setattr("prunetaylor.sweep.heartbeat.try_lock", lock)
    with Heartbeat(tmp_path, "here-1"):
        assert seen == [[]]
        assert [path.name for path in (tmp_path / "workers").iterdir()] == ["here-1"]


def test_a_worker_that_left_is_not_there(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, "here-1"):
        assert (tmp_path / "workers" / "here-1").exists()
    assert not is_alive(tmp_path, "here-1")


@pytest.mark.parametrize("text", [RANDOM, BAYES])
def test_sampled_values_do_not_depend_on_who_asks(tmp_path: Path, text: str) -> None:
    """One trial at a time, in one process or in a new one for each trial."""
    found = []
    for name, fresh in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        one = study(tmp_path / name, text)
        assert one.enqueue_missing() == 5
        values = []
        for _ in range(5):
            one = study(tmp_path / name, text) if fresh else one
            trial = one.claim("w")
            assert trial is not None
            values.append(trial.values)
            one.complete(trial, measured(100 * trial.values["prune.damping"]))
        found.append(values)
    assert found[0] == found[1]
    assert len({row["prune.damping"] for row in found[0]}) == 5
    assert all(0.5 <= row["prune.damping"] <= 0.9 for row in found[0])


def test_a_sampled_trial_that_failed_keeps_its_values(tmp_path: Path) -> None:
    one = study(tmp_path, BAYES)
    one.enqueue_missing()
    first = one.claim("w")
    assert first is not None
    one.fail(first, "x")
    one.enqueue_missing()
    values = {}
    while (trial := one.claim("w")) is not None:
        values[trial.number] = trial.values
    assert values[1] == first.values


def test_fixed_values_survive_the_death_of_an_attempt(tmp_path: Path) -> None:
    one = study(tmp_path)
    one.enqueue_missing()
    attempt = one.study.ask()
    attempt.suggest_categorical("prune.stages", ["auto", 2, "[0.1, 0.5]"])
    one.enqueue_missing()
    values = {}
    while (trial := one.claim("w")) is not None:
        values[trial.number] = trial.values
    assert values[1] == {"prune.stages": "auto", "prune.damping": 0.5}


def test_no_trial_is_taken_after_the_last_failure_that_is_allowed(tmp_path: Path) -> None:
    """Whoever looks: the worker itself may be faster than its leader."""
    one, two = study(tmp_path), study(tmp_path)
    one.enqueue_missing(max_failures=2)
    for number in (1, 2):
        trial = two.claim("w")
        assert trial is not None
        assert trial.number == number
        two.fail(trial, "x")
    assert two.claim("w") is None
    assert one.stop_reason == "2 failed"
    assert one.enqueue_missing() == 6
    assert two.claim("w") is not None


def test_looking_writes_nothing(tmp_path: Path) -> None:
    study(tmp_path).enqueue_missing()
    before = (tmp_path / JOURNAL).read_bytes()
    assert len(study(tmp_path).trials()) == 6
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_line_of_the_journal_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    one = study(tmp_path)
    one.enqueue_missing()
    for _ in range(2):
        trial = one.claim("w")
        assert trial is not None
        one.complete(trial, measured(70))
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])  # of the line that ends the second
    again = study(tmp_path)
    assert [trial.state for trial in again.trials()[:2]] == ["done", "running"]
    assert again.enqueue_missing() == 5
    assert [trial.state for trial in study(tmp_path).trials()] == ["done"] + ["waiting"] * 5


@pytest.mark.parametrize("spoil", [lambda lines: [*lines[:3], b"{\n", *lines[3:]], lambda lines: [*lines[:3], b"[]\n"]])
def test_a_damaged_journal_is_refused_with_the_way_out(
    tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]]
) -> None:
    study(tmp_path).enqueue_missing()
    journal = tmp_path / JOURNAL
    journal.write_bytes(b"".join(spoil(journal.read_bytes().splitlines(keepends=True))))
    with pytest.raises(OutputError, match=r"journal\.log is damaged") as caught:
        study(tmp_path)
    assert "move it away" in caught.value.remedy


def test_stop_hands_out_nothing_more(tmp_path: Path) -> None:
    one, two = study(tmp_path), study(tmp_path)
    one.enqueue_missing()
    one.claim("w")
    one.stop("2 failed")
    assert two.claim("w") is None
    assert two.stop_reason == "2 failed"
    two.enqueue_missing()
    assert one.claim("w") is not None


def test_several_objectives(tmp_path: Path) -> None:
    one = study(tmp_path, GRID.replace("metric: {name: top1, goal: maximize}", "metrics: [top1, nonzero]"))
    one.enqueue_missing()
    trial = one.claim("w")
    assert trial is not None
    one.complete(trial, measured(70))
    assert one.trials()[0].values == (70.0, 10.0)


def test_hyperband_stops_the_worse(tmp_path: Path) -> None:
    text = GRID.replace("method: grid", "method: grid\nearly_terminate: {type: hyperband, max_iter: 9, eta: 3}")
    one = study(tmp_path, text)
    one.enqueue_missing()
    stopped = 0
    for _ in range(6):
        trial = one.claim("w")
        assert trial is not None
        try:
            for epoch in range(1, 10):
                trial.trial.report(100.0 - 10 * trial.number, epoch)
                if trial.trial.should_prune():
                    raise Stopped
        except Stopped:
            stopped += 1
            one.mark_stopped(trial)
        else:
            one.complete(trial, measured(100.0 - 10 * trial.number))
    states = [trial.state for trial in one.trials()]
    assert states.count("stopped") == stopped > 0
    assert states[0] == "done"
    ended = next(trial for trial in one.trials() if trial.state == "stopped")
    assert ended.progress[-1][1] == 100.0 - 10 * ended.number
    assert one.enqueue_missing() == 0


def test_a_database_serves_as_well(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    one = study(tmp_path, url=url)
    assert one.enqueue_missing() == 6
    trial = one.claim("w")
    assert trial is not None
    one.complete(trial, measured(70))
    assert [trial.state for trial in study(tmp_path, url=url).trials()] == ["done"] + ["waiting"] * 5


def test_a_storage_that_cannot_be_opened_is_refused_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open the storage postgresql") as caught:
        study(tmp_path, url="postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in caught.value.cause
