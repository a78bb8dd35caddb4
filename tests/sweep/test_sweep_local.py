"""Whole sweeps on this machine, by the real command line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from prunetaylor.cli.main import run as run_command_line
from prunetaylor.core.config.resolve import resolve
from prunetaylor.pipeline.files.run_folder import REPORT
from support.sweeps import Inline, Run, Start

# no samples, so that a trial is quick; the first argument of the network's factory may be an accident
BLIND = """
method: grid
metric: {name: nonzero}
parameters:
  prune.sparsity: {values: [0.2, 0.4, 0.6, 0.8]}
base:
  model: {checkpoint: net.pt, arch: "net.py:make", args: {pause: 0.3}}
  data: {source: none}
  device: cpu
"""


def document(done: subprocess.CompletedProcess[str], code: int = 0) -> dict:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_grid_with_two_jobs(
    sweep: Run, inline: Inline, task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(sweep("sweep.yaml", "--jobs", "2", "--json", "-o", "out"))
    trials = found["trials"]
    assert sorted(trial["number"] for trial in trials) == [1, 2, 3, 4, 5, 6]
    assert {trial["state"] for trial in trials} == {"done"}
    assert [trial["rank"] for trial in trials] == [1, 2, 3, 4, 5, 6]
    top1 = [trial["metrics"]["top1"] for trial in trials]
    assert top1 == sorted(top1, reverse=True)
    assert "half of the test samples (60); winner reported on the other half (60)" in found["samples"]
    for trial in trials:
        report = json.loads((Path(trial["folder"]) / REPORT).read_text())
        assert report["sparsity"]["asked"] == trial["parameters"]["prune.sparsity"]
        assert report["configuration"]["prune"]["method"] == trial["parameters"]["prune.method"]
        assert report["pruned"]["metrics"] == trial["reported"]
        assert report["pruned"]["nonzero"] == trial["metrics"]["nonzero"]
        low, high = trial["interval"]["top1"]
        assert low <= trial["metrics"]["top1"] <= high
        assert any("reported on the other half (60)" in choice for choice in report["choices"])
    best = resolve(task / "out" / "best.yaml", {}, [], {}).config
    assert best.prune.sparsity == trials[0]["parameters"]["prune.sparsity"]
    assert best.prune.method == trials[0]["parameters"]["prune.method"]
    assert {path.name for path in (task / "out").glob("plot.*")} == {"plot.svg", "plot.png"}
    page = (task / "out" / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "best.yaml" in page
    for number in range(1, 7):
        link = f"trials/{number:04d}/report.html"
        assert f'<a href="{link}">{number}</a>' in page
        assert (task / "out" / link).is_file()
    (task / "elsewhere").mkdir()
    assert run_command_line(["report", str(task / "out"), "-o", str(task / "elsewhere" / "page.html")]) == 0
    assert 'href="../out/trials/0001/report.html"' in (task / "elsewhere" / "page.html").read_text()
    (task / "out" / "plot.svg").write_text("<svg><script>alert(1)</script></svg>")  # a page shows numbers, no files
    assert run_command_line(["report", str(task / "out")]) == 0
    assert "<script" not in (task / "out" / "report.html").read_text()
    assert len(list((task / "out").glob("dense-test-*"))) == 1

    assert json.loads(inline("sweep.yaml", "--json", "-o", "out")) == found  # nothing is run twice
    shown = inline("--show", "out")
    for trial in trials:
        assert f"{trial['metrics']['top1']:.2f} %" in shown
    assert "best: trial" in shown
    assert len(inline("--show", "out", "--csv").splitlines()) == 7
    monkeypatch.chdir(task.parent)
    assert run_command_line(["sweep", "--show", f"{task}/out", "--cost", "top1", "-q"]) == 0
    assert "no plot: top1 is already the vertical axis" in capsys.readouterr().err
    best = str(task / "out" / "best.yaml")
    assert run_command_line(["prune", "-c", best, "-q", "-o", str(task / "again")]) == 0  # from any directory
    monkeypatch.chdir(task)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--show", "out", "--jobs", "2"], "--show does not run anything"),
        (["--show", "out", "--engine", "ray"], "--show does not run anything"),
        (["s.yaml", "--worker", "--fail-fast"], "--worker only runs trials"),
        (["s.yaml", "--worker", "--json"], "--worker only runs trials"),
        (["s.yaml", "--fail-fast", "--max-failures", "3"], "--fail-fast is --max-failures 1"),
        (["s.yaml", "--csv", "--json"], "exclude each other"),
        (["s.yaml", "--cost", "nonzeros"], "did you mean 'nonzero'"),
    ],
)
def test_no_option_is_taken_and_left_aside(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["sweep", *words]) == 2
    assert message in capsys.readouterr().err


def test_results_that_cannot_be_written_are_printed(
    inline: Inline, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (task / "blind.yaml").write_text(BLIND.replace("[0.2, 0.4, 0.6, 0.8]", "[0.5]") + "  gate: {max_drop: 1pp}\n")
    assert run_command_line(["sweep", "blind.yaml", "-o", "out dir", "--cost", "bytes"]) == 0
    told = capsys.readouterr().err
    assert "gate: trials are ranked, not judged" in told
    (task / "out dir" / "best.yaml").unlink()
    (task / "out dir" / "best.yaml").mkdir()
    assert run_command_line(["sweep", "--show", "out dir"]) == 1
    told = capsys.readouterr()
    assert "best: trial 1 (sparsity=0.5)" in told.out
    assert "cannot write out dir/best.yaml: Is a directory" in told.err
    assert "prunetaylor sweep --show 'out dir'" in told.err
    assert len(inline("--show", "out dir", "--csv").splitlines()) == 2  # for programs, nothing is written


def test_a_trial_that_ends_its_process_well_has_failed(sweep: Run, task: Path) -> None:
    """And what waits behind it is run. Exit code 0 is no result, and stdin is not a trial's to read."""
    words = ["net.pt", "model.arch=net.py:make", "data.source=none", "device=cpu", "-o", "out"]
    done = sweep(*words, "-m", "model.args.fail=leaves,exits,reads,no", "--json")
    found = document(done, 6)
    assert {trial["number"]: trial["state"] for trial in found["trials"]} == {
        1: "failed", 2: "failed", 3: "done", 4: "done",
    }  # fmt: skip
    assert "1 (fail=leaves) failed: its code ended the process (os._exit(0)" in done.stderr
    assert "2 (fail=exits) failed: its code ended the process: sys.exit(0)" in done.stderr
    assert found["never_ran"] == 0
    assert {trial["threads"] for trial in found["trials"]} == {1}


def test_what_never_ran_is_said(sweep: Run, task: Path) -> None:
    words = ["net.pt", "model.arch=net.py:make", "data.source=none", "device=cpu", "-o", "out"]
    done = sweep(*words, "-m", "model.args.fail=no,leaves,reads", "-m", "seed=1,2", "--json", "--fail-fast")
    found = document(done, 6)
    assert (found["counts"]["failed"], found["never_ran"]) == (1, 3)
    assert "error: of 6 trials 1 failed and 3 never ran" in done.stderr
    (task / "out" / "report.html").unlink()
    shown = sweep("--show", "out")
    assert shown.returncode == 6
    assert "1 failed and 3 never ran" in shown.stderr
    assert "3 of 6 trials never ran" in (task / "out" / "report.html").read_text()


@pytest.mark.long
def test_an_accident_costs_its_trial_only(sweep: Run, task: Path) -> None:
    words = ["net.pt", "model.arch=net.py:make", "data.source=none", "device=cpu", "-o", "out"]
    varied = ["-m", "model.args.fail=no,killed,bug,twice"]
    done = sweep(*words, *varied, "--json")
    found = document(done, 6)
    assert [trial["number"] for trial in found["trials"] if trial["state"] == "done"] == [1]
    assert found["counts"] == {"done": 1, "stopped": 0, "failed": 3, "running": 0, "waiting": 0}
    assert "2 (fail=killed) failed: its process died (signal SIGKILL" in done.stderr
    where = (task / "net.py").resolve()
    assert f"3 (fail=bug) failed: {where}:make called with (fail='bug') raised ZeroDivisionError" in done.stderr
    assert "4 (fail=twice) failed: its process died (exit code 3)" in done.stderr
    assert "error: of 4 trials 3 failed" in done.stderr
    text = (task / "out" / "trials" / "0003" / "error.txt").read_text()
    assert "ZeroDivisionError: a bug of somebody's" in text
    assert 'net.py", line' in text
    again = sweep("out", "--trust-code", "--json")  # the accident that happens once does not happen again
    states = {trial["number"]: trial["state"] for trial in document(again, 6)["trials"]}
    assert states == {1: "done", 2: "failed", 3: "failed", 4: "done"}
    assert not (task / "out" / "trials" / "0004" / "error.txt").exists()


def ranking(found: dict) -> list[tuple[int, int, float]]:
    return [(trial["rank"], trial["number"], trial["values"][0]) for trial in found["trials"]]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in path.read_text().split()]


def interrupted(start: Start, how: str, after: float, jobs: int = 1) -> int:
    """Start the sweep, end it or a worker of it after so many seconds from the first trial's start; its exit code."""
    process = start("blind.yaml", "-o", "out", "--jobs", str(jobs))
    assert process.stderr is not None
    assert "4 trials" in process.stderr.readline()
    time.sleep(after)
    if how == "worker":
        for pid in workers_of(process)[:1]:
            os.kill(pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if how == "sweep" else signal.SIGINT)
    process.communicate(timeout=120)
    return process.returncode


def check_resumed(sweep: Run, task: Path) -> None:
    found = document(sweep("blind.yaml", "-o", "out", "--resume", "--json"))
    assert sorted(trial["number"] for trial in found["trials"]) == [1, 2, 3, 4]
    # 16 x 8 + 8 x 3 weights and 11 biases, of which that many are left
    assert ranking(found) == [(1, 4, 41.0), (2, 3, 72.0), (3, 2, 102.0), (4, 1, 133.0)]
    folders = sorted(path.name for path in (task / "out" / "trials").iterdir())
    assert folders == ["0001", "0002", "0003", "0004"]
    assert all((task / "out" / "trials" / name / REPORT).exists() for name in folders)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of children")
@pytest.mark.parametrize(("how", "after"), [("sweep", 4.0), pytest.param("worker", 2.0, marks=pytest.mark.long)])
def test_a_sweep_that_was_killed_goes_on(sweep: Run, start: Start, task: Path, how: str, after: float) -> None:
    (task / "blind.yaml").write_text(BLIND)
    code = interrupted(start, how, after)
    assert code == -signal.SIGKILL if how == "sweep" else code in (0, 6)
    check_resumed(sweep, task)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of children")
@pytest.mark.parametrize("how", ["sweep", "worker"])
@pytest.mark.parametrize("moment", range(5))
def test_killed_at_random_moments(sweep: Run, start: Start, task: Path, how: str, moment: int) -> None:
    (task / "blind.yaml").write_text(BLIND.replace("pause: 0.3", "pause: 1.0"))
    interrupted(start, how, random.Random(f"{how} {moment}").uniform(0, 10), jobs=2)
    check_resumed(sweep, task)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of children")
def test_ctrl_c_stops_the_workers_and_can_be_resumed(sweep: Run, start: Start, task: Path) -> None:
    (task / "blind.yaml").write_text(BLIND.replace("pause: 0.3", "pause: 30"))
    process = start("blind.yaml", "-o", "out")
    assert process.stderr is not None
    process.stderr.readline()
    workers = []
    deadline = time.monotonic() + 60
    while not (task / "out" / "trials" / "0001").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
        workers = workers_of(process)
    joined = start("blind.yaml", "-o", "out")  # nobody else may lead it meanwhile
    assert joined.communicate(timeout=60)[1].count("is running") == 1
    assert joined.returncode == 2
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "`prunetaylor sweep out " in told  # and the code that it names
    assert "continues it" in told
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    states = {trial["number"]: trial for trial in document(sweep("--show", "out", "--json"), 6)["trials"]}
    assert states[1]["state"] == "waiting"
    assert states[1]["returned"] == "interrupted"
    assert states[2]["state"] == "waiting"


@pytest.mark.long
def test_a_worker_joins(sweep: Run, start: Start, task: Path) -> None:
    (task / "blind.yaml").write_text(BLIND.replace("pause: 0.3", "pause: 4"))
    leader = start("blind.yaml", "-o", "out", "--json")
    while not (task / "out" / "trials" / "0001").exists():
        assert leader.poll() is None
        time.sleep(0.1)
    helper = sweep("blind.yaml", "-o", "out", "--worker")
    assert helper.returncode == 0, helper.stderr
    assert helper.stdout == ""
    told, _ = leader.communicate(timeout=120)
    found = json.loads(told)
    assert ranking(found) == [(1, 4, 41.0), (2, 3, 72.0), (3, 2, 102.0), (4, 1, 133.0)]
    assert len({trial["worker"] for trial in found["trials"]}) == 2
    nothing = sweep("blind.yaml", "-o", "nowhere", "--worker")
    assert nothing.returncode == 2
    assert "nowhere does not hold this sweep" in nothing.stderr
