"""The templates as printed, in environments that hold nothing: for the demo's network, and for a user's own net.py."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.fresh import ROOT, clone, empty_environment, is_clone, stranger
from support.verdicts import assert_valid_junit

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not is_clone(), reason="needs a git clone"),
]

OWN = {
    "net.py": """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
""",
    "train.py": """
import numpy as np, torch
from net import make

def samples(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    x = 0.3 * torch.randn(n, 1, 6, 6, generator=g)
    for i, k in enumerate(y.tolist()):
        x[i, 0, 3 * (k // 2): 3 * (k // 2) + 3, 3 * (k % 2): 3 * (k % 2) + 3] += 1
    return x, y

torch.manual_seed(0)
x, y = samples(1000, 1)
x_test, y_test = samples(2000, 2)
net = make()
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
for _ in range(60):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
torch.save(net.state_dict(), "model.pt")
np.savez("data.npz", x_train=x.numpy(), y_train=y.numpy(), x_test=x_test.numpy(), y_test=y_test.numpy())
""",
}
"""A user's own network and data, under the names that the templates' comments give them."""


def blocks(page: str, language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "how-to" / page).read_text(), re.DOTALL)
    return found


@dataclass(frozen=True)
class Place:
    """A folder to work in and an environment of its own; ``url`` is where the package is."""

    work: Path
    bin: Path
    url: str
    package: Path
    own: bool

    def run(self, script: str, **environment: str) -> str:
        """A step as a CI system runs it: bash, stopping at the first error; what it printed."""
        # the index of torch's CPU builds is printed for others; here the machine's own configuration has them
        usual = stranger(self.work.parent / "home") | {
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        usual |= {"PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin", "PIP_CONSTRAINT": str(self.package / "torch.txt")}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.work,
            env=usual | environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def adapted(self, text: str) -> str:
        """A value of a template as this user has it: where the package is, and which extras and arguments."""
        text = re.sub(r"git\+https://\S*?prunetaylor@main", self.url, text)
        if self.own:
            text = text.replace("prunetaylor[demo] @", "prunetaylor @")
            text = text.replace("--device cpu", "--device cpu --arch net.py:make --data arrays:data.npz")
        return text


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("package") / "prunetaylor")
    subprocess.run(["git", "update-server-info"], cwd=folder, check=True)
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch")]
    (folder / "torch.txt").write_text("\n".join(pins) + "\n")
    return folder


@pytest.fixture(scope="module")
def url(package: Path) -> Iterator[str]:
    """The address of the package's repository, as pip wants it; a path is none in `NAME @ git+URL`."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(package))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"git+http://127.0.0.1:{server.server_port}/.git@main"
        server.shutdown()


@pytest.fixture(scope="module", params=["demo", "own"])
def place(request: pytest.FixtureRequest, package: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """After GitLab's jobs have run: the first installs the package into the empty environment."""
    folder = tmp_path_factory.mktemp(request.param)
    work = folder / "work"
    work.mkdir()
    here = Place(work, empty_environment(folder / "venv"), url, package, request.param == "own")
    gate, prune = (next(iter(yaml.safe_load(text).values())) for text in blocks("gate-in-gitlab.md", "yaml"))
    job(here, prune, before=lambda: equip(here))
    job(here, gate)
    return here


def equip(here: Place) -> None:
    """What the user's repository holds."""
    if here.own:
        for name, text in OWN.items():
            (here.work / name).write_text(text)
        here.run("python train.py")
        assert "scikit-learn" not in here.run("python -m pip list")
    else:
        here.run("prunetaylor demo")


def job(here: Place, job: dict[str, Any], before: Callable[[], None] = lambda: None) -> None:
    """A job of GitLab's, its two scripts in one shell's environment; ``before`` the second."""
    values = {key: here.adapted(value) for key, value in job["variables"].items() if key != "PIP_EXTRA_INDEX_URL"}
    values = {key: value.replace("$CI_PROJECT_DIR", str(here.work)) for key, value in values.items()}
    here.run("\n".join(job["before_script"]), **values)
    before()
    here.run("\n".join(job["script"]), **values)


def test_gitlab(place: Place) -> None:
    assert_valid_junit((place.work / "gate.xml").read_text())
    assert "pass" in (place.work / "gate.md").read_text()
    assert (place.work / "runs" / "model-1" / "report.html").is_file()
    if not place.own:  # a fit that takes no time, as of the few weights there, is not kept
        assert any((place.work / ".cache" / "prunetaylor").rglob("*")), "the fits are kept where the job's cache is"


def test_github(place: Place) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    [workflow, more] = blocks("gate-in-github.md", "yaml")
    [step] = [s for s in yaml.safe_load(workflow)["jobs"]["gate"]["steps"] if s.get("id") == "gate"]
    given = step["with"] | {"torch-index": ""}
    if place.own:
        given |= {"extras": "", "arguments": place.adapted("--device cpu").replace(" ", "\n")}
    inputs = {name: str(given.get(name, one.get("default", ""))) for name, one in action["inputs"].items()}
    prune = yaml.safe_load(more)[-1]
    place.run(place.adapted(prune["run"]))
    for one in action["runs"]["steps"]:
        env = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], text)
            for name, text in one.get("env", {}).items()
        }
        files = {name: str(place.work / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        place.run(one["run"], GITHUB_ACTION_PATH=str(place.package), GITHUB_ACTIONS="true", **files, **env)
    outputs = dict(line.split("=", 1) for line in (place.work / "GITHUB_OUTPUT").read_text().splitlines())
    assert outputs["verdict"] == "pass"
    assert outputs["exit-code"] == "0"


def test_make(place: Place) -> None:
    text = "\n".join(blocks("gate-in-make.md", "make"))
    (place.work / "Makefile").write_text(place.adapted(text))
    (place.work / "runs" / "model-1" / "model.safetensors").unlink()
    said = place.run("make gate")
    assert "prunetaylor prune model.pt" in said
    assert (place.work / ".gate-passed").exists()
    place.run("make -q gate")
    place.run(f"git init -q .\n{blocks('gate-in-make.md', 'bash')[0]}\n.git/hooks/pre-push")
