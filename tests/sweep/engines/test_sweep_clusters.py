"""Whole sweeps on real clusters: a Slurm and two Ray nodes, all on this machine; jobs and nodes get lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prunetaylor.pipeline.files.run_folder import LOG, STAGING, STATE
from support import clusters
from support.sweeps import SWEEP, Run, Start

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray's own

# some seconds a trial, with a state after every epoch
SLOW = (
    SWEEP.replace("prune.sparsity: {values: [0.2, 0.5, 0.8]}", "seed: {values: [1, 2]}")
    .replace("prune.method: {values: [magnitude, random]}", "prune.sparsity: {values: [0.5]}")
    .replace("finetune: {epochs: 0}", "finetune: {epochs: 400, lr: 1.0e-4}\n  checkpoint: {every: 0}")
)


def results(done: subprocess.CompletedProcess[str] | tuple[int, str, str]) -> dict[int, Any]:
    code, stdout, stderr = (done.returncode, done.stdout, done.stderr) if not isinstance(done, tuple) else done
    assert code == 0, stderr
    return {trial["number"]: trial for trial in json.loads(stdout)["trials"]}


def measured(trials: dict[int, Any]) -> dict[int, Any]:
    """What every engine must come to; only the time may differ."""
    found = {}
    for number, trial in trials.items():
        assert trial["state"] == "done"
        metrics = {name: value for name, value in trial["metrics"].items() if name != "seconds"}
        found[number] = (trial["rank"], trial["parameters"], metrics, trial["reported"])
    return found


def until(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def with_states(folder: Path) -> list[int]:
    """The trials that are at work and have a state."""
    return sorted(int(state.parents[1].name) for state in folder.glob(f"trials/*/{STAGING}/{STATE}"))


def went_on(folder: Path, number: int) -> bool:
    log = (folder / "trials" / f"{number:04d}" / LOG).read_text()
    return "continues from the state of an earlier attempt" in log


@pytest.fixture(scope="module")
def slurm(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment with a Slurm of one node in it."""
    pytest.importorskip("submitit", reason="the engine slurm is an extra")
    if why := clusters.why_no_slurm():
        pytest.skip(why)
    with clusters.slurm() as more:
        environment.update(more)
        yield environment
        for name in more.keys() - {"PATH"}:
            del environment[name]


def test_slurm_gives_the_same(slurm: dict[str, str], sweep: Run, task: Path) -> None:
    ours = measured(results(sweep("sweep.yaml", "--json", "-o", "ours")))
    text = (task / "sweep.yaml").read_text()
    (task / "slurm.yaml").write_text(text + "engine: {name: slurm, jobs: 2}\n")
    done = sweep("slurm.yaml", "--json", "-o", "theirs")
    theirs = results(done)
    assert measured(theirs) == ours
    assert {trial["threads"] for trial in theirs.values()} == {1}
    assert len(list((task / "theirs" / "slurm").glob("*/*_submitted.pkl"))) == 2
    assert "sacct" not in done.stderr


def test_a_job_of_slurm_computes_with_the_cores_it_asks_for(slurm: dict[str, str], sweep: Run, task: Path) -> None:
    text = (task / "sweep.yaml").read_text().replace("[0.2, 0.5, 0.8]", "[0.5]")
    (task / "slurm.yaml").write_text(text + "engine: {name: slurm, cpus: 2}\n")
    assert {trial["threads"] for trial in results(sweep("slurm.yaml", "--json", "-o", "two")).values()} == {2}


@pytest.mark.parametrize("how", [[], ["--signal=USR2"], ["--signal=KILL", "--full"]])
def test_a_cancelled_job_costs_no_trial(
    slurm: dict[str, str], start: Start, task: Path, how: list[str], tmp_path: Path
) -> None:
    """Whether it is told before or not; a time limit and a preemption come as USR2."""
    (task / "slow.yaml").write_text(SLOW + "engine: {name: slurm}\n")
    process = start("slow.yaml", "--json", "-o", "out")
    until(lambda: with_states(task / "out"), process)
    time.sleep(1)
    (number,) = with_states(task / "out")
    subprocess.run(["scancel", *how, "--user=root"], env=slurm, check=True)
    stdout, stderr = process.communicate(timeout=200)
    trials = results((process.returncode, stdout, stderr))
    assert {number: trial["state"] for number, trial in trials.items()} == {1: "done", 2: "done"}
    assert {number: trial["returns"] for number, trial in trials.items()} == {1: 0, 2: 0} | {number: 1}
    assert went_on(task / "out", number)
    assert f"trial {number} returns to the queue and will continue" in stderr
    assert not any(word in stderr for word in ("sacct", "Traceback", "Bypassing"))


def test_a_partition_that_nobody_knows(slurm: dict[str, str], sweep: Run, task: Path) -> None:
    text = (task / "sweep.yaml").read_text()
    (task / "slurm.yaml").write_text(text + "engine: {name: slurm, partition: nowhere}\n")
    done = sweep("slurm.yaml", "-o", "out")
    assert done.returncode == 2
    assert "Slurm refuses the job" in done.stderr
    assert "invalid partition" in done.stderr


@pytest.fixture
def two_nodes(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A Ray cluster of two nodes on this machine, and the second of them."""
    pytest.importorskip("ray", reason="the engine ray is an extra")
    from ray.cluster_utils import Cluster

    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        second = nodes.add_node(**small)
        nodes.wait_for_nodes()
        yield nodes, second
    finally:
        nodes.shutdown()


def test_two_ray_nodes_give_the_same(sweep: Run, task: Path, two_nodes: tuple[Any, Any]) -> None:
    ours = measured(results(sweep("sweep.yaml", "--json", "-o", "ours")))
    address = two_nodes[0].address
    theirs = results(sweep("sweep.yaml", "--json", "-o", "theirs", "--engine", "ray", "--address", address))
    assert measured(theirs) == ours
    assert {trial["threads"] for trial in theirs.values()} == {1}
    assert len({trial["worker"] for trial in theirs.values()}) == 2  # both nodes worked


def test_a_lost_node_of_ray_costs_no_trial(start: Start, task: Path, two_nodes: tuple[Any, Any]) -> None:
    (task / "slow.yaml").write_text(SLOW)
    nodes, second = two_nodes
    process = start("slow.yaml", "--json", "-o", "out", "--engine", "ray", "--address", nodes.address)
    until(lambda: with_states(task / "out") == [1, 2], process)
    time.sleep(1)
    nodes.remove_node(second, allow_graceful=False)
    stdout, stderr = process.communicate(timeout=200)
    trials = results((process.returncode, stdout, stderr))
    assert {number: trial["state"] for number, trial in trials.items()} == {1: "done", 2: "done"}
    (lost,) = (number for number, trial in trials.items() if trial["returns"])
    assert trials[lost]["returns"] == 1
    assert went_on(task / "out", lost)
    assert "Ray has lost a node" in stderr
    assert "state-dump" not in stderr
    assert len(stderr.splitlines()) < 10
    assert (task / "out" / "ray.log").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of children")
def test_a_worker_that_the_system_stops_costs_no_trial(start: Start, task: Path) -> None:
    """As of a job with a time limit, in which somebody leads a sweep with workers of this machine."""
    (task / "slow.yaml").write_text(SLOW)
    process = start("slow.yaml", "--json", "-o", "out")
    until(lambda: with_states(task / "out"), process)
    (number,) = with_states(task / "out")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=200)
    trials = results((process.returncode, stdout, stderr))
    assert trials[number]["returns"] == 1
    assert went_on(task / "out", number)
    assert len({trial["worker"] for trial in trials.values()}) == 1  # of the attempts that count
