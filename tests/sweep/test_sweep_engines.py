"""Every engine gives what the local one gives."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunetaylor import registry
from prunetaylor.config.schema import Section
from support.sweeps import Run


def results(done: subprocess.CompletedProcess[str]) -> dict[int, Any]:
    """What was measured, by trial; only the time may differ."""
    assert done.returncode == 0, done.stderr
    found = {}
    for trial in json.loads(done.stdout)["trials"]:
        assert trial["state"] == "done"
        metrics = {name: value for name, value in trial["metrics"].items() if name != "seconds"}
        found[trial["number"]] = (trial["rank"], trial["parameters"], metrics, trial["reported"], trial["worker"])
    return found


def without_workers(found: dict[int, Any]) -> dict[int, Any]:
    return {number: row[:-1] for number, row in found.items()}


@pytest.mark.parametrize("name", registry.names("sweep/engines"))
def test_every_engine_says_what_it_takes(name: str) -> None:
    engine = registry.load("sweep/engines", name)
    assert issubclass(engine.Options, Section)
    assert callable(engine.run)
    assert engine.__doc__
    engine.Options()


@pytest.mark.long
def test_submitit_gives_the_same(sweep: Run, task: Path) -> None:
    pytest.importorskip("submitit", reason="the engine slurm is an extra")
    text = (task / "sweep.yaml").read_text()
    (task / "slurm.yaml").write_text(text + "engine: {name: slurm, cluster: local, jobs: 2}\n")
    ours = results(sweep("sweep.yaml", "--json", "-o", "ours"))
    theirs = results(sweep("slurm.yaml", "--json", "-o", "theirs"))
    assert without_workers(theirs) == without_workers(ours)
    assert len(list((task / "theirs" / "slurm").glob("*_submitted.pkl"))) == 2


@pytest.fixture
def cluster(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two Ray nodes on this machine."""
    pytest.importorskip("ray", reason="the engine ray is an extra")
    from ray.cluster_utils import Cluster

    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes
    finally:
        nodes.shutdown()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_ray_nodes_give_the_same(sweep: Run, task: Path, cluster: Any) -> None:
    ours = results(sweep("sweep.yaml", "--json", "-o", "ours"))
    theirs = results(sweep("sweep.yaml", "--json", "-o", "theirs", "--engine", "ray", "--address", cluster.address))
    assert without_workers(theirs) == without_workers(ours)
    assert len({row[-1] for row in theirs.values()}) == 2  # both nodes worked
