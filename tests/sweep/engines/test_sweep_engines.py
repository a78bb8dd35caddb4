"""Every engine gives what the local one gives."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prunetaylor.cli.main import run as run_command_line
from prunetaylor.core import registry
from prunetaylor.core.config.schema import Section
from prunetaylor.sweep.engines import load_engine, ray
from support.sweeps import Inline, Run


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


@pytest.mark.parametrize("name", registry.names(registry.ENGINES))
def test_every_engine_says_what_it_takes(name: str) -> None:
    engine = load_engine(name)
    assert issubclass(engine.Options, Section)
    assert callable(engine.run)
    assert engine.__doc__
    engine.Options()


def error(name: str, text: str) -> Exception:
    """As Ray raises it, which need not be installed."""
    return type(name, (Exception,), {})(text)


@pytest.mark.parametrize(
    ("raised", "printed", "address", "cause", "remedy"),
    [
        (error("AuthenticationError", "no token was found"), "", "h:1", "requires a token", "RAY_AUTH_MODE=token"),
        (
            ConnectionError("failed"),
            "gcs: Unauthenticated: InvalidAuthToken",
            "h:1",
            "requires a token",
            "RAY_AUTH_TOKEN",
        ),
        (
            RuntimeError("Version mismatch: the cluster was started with Ray: 2.9"),
            "",
            "h:1",
            "other versions",
            "Python",
        ),
        (ConnectionRefusedError(111, "Connection refused"), "", "h:1", "no Ray cluster answers at h:1", "--address"),
        (ValueError("Invalid address format: foo"), "", "foo", "no Ray cluster answers at foo", "ray start --head"),
        (RuntimeError("no memory"), "", None, "Ray cannot start on this machine", "--engine local"),
    ],
)
def test_what_keeps_us_from_a_ray_cluster_is_named(
    raised: Exception, printed: str, address: str | None, cause: str, remedy: str
) -> None:
    found = ray.connection_error(raised, address, printed)
    assert found.exit_code == 2
    assert cause in found.cause
    assert remedy in found.remedy


def test_an_address_where_nobody_listens_is_refused_at_once(inline: Inline, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="the engine ray is an extra")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert run_command_line(["sweep", "sweep.yaml", "--engine", "ray", "--address", f"127.0.0.1:{port}"]) == 2
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.long
def test_submitit_gives_the_same(sweep: Run, task: Path) -> None:
    pytest.importorskip("submitit", reason="the engine slurm is an extra")
    text = (task / "sweep.yaml").read_text()
    (task / "slurm.yaml").write_text(text + "engine: {name: slurm, cluster: local, jobs: 2}\n")
    ours = results(sweep("sweep.yaml", "--json", "-o", "ours"))
    theirs = results(sweep("slurm.yaml", "--json", "-o", "theirs"))
    assert without_workers(theirs) == without_workers(ours)
    assert len(list((task / "theirs" / "slurm").glob("*/*_submitted.pkl"))) == 2
