"""Code that only a file names is run by no command, whatever else stands on the command line or in the environment."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from prunetaylor import load
from prunetaylor.core.errors import PruneTaylorError
from prunetaylor.network.checkpoint.write import write_model
from prunetaylor.sweep.file import read
from prunetaylor.sweep.folder import prepare_folder
from support.sweeps import write_task

CANARY = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from torch import nn
def make(**_): return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
def data(): raise SystemExit("data")
def function(outputs, targets): return outputs.sum()
"""
_SAMPLES = ["--data", "arrays:data.npz"]
_NETWORK = ["--arch", "net.py:make"]
_QUICK = ["device=cpu", "calibration.samples=40", "prune.method=magnitude", "prune.refine=none", "finetune.epochs=0"]
COMMANDS = {
    "eval": ["eval", "FILE"],
    "prune": ["prune", "FILE", "-o", "out", *_QUICK],
    "prune --dry-run": ["prune", "FILE", "--dry-run", *_QUICK],
    "prune with a gate": ["prune", "FILE", "-o", "out", "gate.max_drop=90", *_QUICK],
    "score": ["score", "FILE", *_QUICK],
    "check": ["check", "FILE", "--max-drop", "90", "--baseline", "net.pt"],
    "check --baseline": ["check", "net.pt", "--max-drop", "90", "--baseline", "FILE"],
    "check of two": ["check", "FILE", "--max-drop", "90", "--baseline", "FILE"],
}
NETWORK_CHANNELS = {
    "nothing": ([], {}),
    "null": (["model.arch=null"], {}),
    "tilde": (["model.arch=~"], {}),
    "a section of null": (["model={arch: null}"], {}),
    "arguments only": (["model.args.fail=no"], {}),
    "a configuration of null": (["-c", "null.yaml"], {}),
    "the run's own configuration": (["-c", "run/config.yaml"], {}),
    "an empty variable": ([], {"PRUNETAYLOR_MODEL_ARCH": ""}),
    "a variable of null": ([], {"PRUNETAYLOR_MODEL_ARCH": "null"}),
    "a blank variable": ([], {"PRUNETAYLOR_MODEL_ARCH": " "}),
    "other code": (["loss=net.py:make"], {}),
}
DATA_CHANNELS = {
    "nothing": ([], {}),
    "null": (["data.source=null"], {}),
    "a configuration of null": (["-c", "null.yaml"], {}),
    "an empty variable": ([], {"PRUNETAYLOR_DATA_SOURCE": ""}),
    "other settings of data": (["data.normalize=none", "data.batch_size=8"], {}),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's network and samples, and beside them what somebody else sent: files, a run's folder, a sweep's."""
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path)
    (tmp_path / "evil.py").write_text(CANARY)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    net.load_state_dict(torch.load("net.pt", weights_only=True))
    evil = f"{tmp_path}/evil.py"
    write_model("network.safetensors", net, arch=f"{evil}:make", args={}, data={})
    write_model("data.safetensors", net, arch=None, args={}, data={"source": f"{evil}:data"})
    write_model("longer.safetensors", net, arch=None, args={}, data={"source": f"code:{evil}:data"})
    (tmp_path / "run").mkdir()
    write_model("run/model.safetensors", net, arch=f"{evil}:make", args={}, data={"source": f"{evil}:data"})
    (tmp_path / "run" / "config.yaml").write_text("model:\n  arch: null\n  args: {}\ndata: {source: null}\n")
    document = {"schema_version": 1, "configuration": {"model": {"arch": f"{evil}:make", "checkpoint": "net.pt"}}}
    (tmp_path / "run" / "report.json").write_text(json.dumps(document))
    (tmp_path / "null.yaml").write_text("model: {arch: null}\ndata: {source: null}\nprune: {refine: none}\n")
    return tmp_path


@pytest.mark.parametrize("channel", NETWORK_CHANNELS)
def test_a_network_that_only_the_file_names_is_not_imported(
    here: Path, inline, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    words, variables = NETWORK_CHANNELS[channel]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, command in COMMANDS.items():
        for file in ("network.safetensors", "run"):
            given = [file if word == "FILE" else word for word in command]
            code, _, stderr = inline(*given, *_SAMPLES, *words)
            assert code in (2, 5), (name, file, stderr)
            assert not (here / "ran").exists(), (name, file)
    assert "--arch" in stderr or code == 2


@pytest.mark.parametrize("channel", DATA_CHANNELS)
def test_data_that_only_the_file_names_are_not_read(
    here: Path, inline, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    words, variables = DATA_CHANNELS[channel]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, command in COMMANDS.items():
        for file in ("data.safetensors", "longer.safetensors", "run"):
            given = [file if word == "FILE" else word for word in command]
            code, _, stderr = inline(*given, *_NETWORK, *words)
            assert code in (2, 5), (name, file, stderr)
            assert not (here / "ran").exists(), (name, file)
            assert "--data" in stderr


@pytest.mark.parametrize("words", [["inspect", "network.safetensors"], ["inspect", "run"], ["report", "run"]])
def test_what_only_looks_runs_nothing(here: Path, inline, words: list[str]) -> None:
    inline(*words)
    assert not (here / "ran").exists()


def test_the_trap_works_and_the_printed_remedies_open_it(here: Path, inline) -> None:
    for file, more in (("network.safetensors", _SAMPLES), ("data.safetensors", _NETWORK)):
        code, _, stderr = inline("eval", file, *more)
        assert code == 5
        named, trusted = stderr.rpartition("data: " if file == "data.safetensors" else "name it: ")[2], "--trust-code"
        for remedy in (shlex.split(named), [trusted]):
            (here / "ran").unlink(missing_ok=True)
            inline("eval", file, *more, *remedy)
            # A file that was imported once is not imported again: only the first remedy touches the canary.
            assert (here / "ran").exists() or remedy == [trusted] or file == "data.safetensors"


def test_python_runs_nothing_either(here: Path) -> None:
    for arguments in ({}, {"arch": None}, {"args": {"fail": "no"}}, {"trust_code": False}):
        for file in ("network.safetensors", "run"):
            with pytest.raises(PruneTaylorError):
                load(file, **arguments)
    assert not (here / "ran").exists()
    assert load("network.safetensors", arch="net.py:make")[1].in_features == 16


SWEPT = {
    "the network": {"arch": '"net.py:make"', "with": '"evil.py:make"'},
    "the data": {"arch": '"arrays:data.npz"', "with": '"evil.py:data"'},
    "the data, in full": {"arch": '"arrays:data.npz"', "with": '"code:evil.py:data"'},
    "the loss": {"arch": "device: cpu", "with": 'device: cpu\n  loss: "evil.py:function"'},
    "the metric": {"arch": "device: cpu", "with": 'device: cpu\n  gate: {metric: "evil.py:function", max_drop: 90}'},
    "a parameter": {
        "arch": "parameters:",
        "with": 'parameters:\n  model.arch: {values: ["net.py:make", "evil.py:make"]}',
    },
}


@pytest.mark.parametrize("what", SWEPT)
def test_the_folder_of_a_sweep_is_nobodys_word(here: Path, inline, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    text = (here / "sweep.yaml").read_text().replace(SWEPT[what]["arch"], SWEPT[what]["with"])
    (here / "theirs.yaml").write_text(text)
    prepare_folder(read(here / "theirs.yaml"), here / "theirs", resume=False)
    monkeypatch.setenv("PRUNETAYLOR_MODEL_ARCH", "")
    for words in (
        ["theirs"],
        ["theirs/sweep.yaml"],
        ["-o", "theirs"],
        ["theirs", "--resume"],
        ["theirs", "--worker"],
        ["theirs", "--engine", "slurm"],
        ["theirs", "model.arch=net.py:other"],
        ["theirs", "model.arch=null"],
    ):
        code, _, stderr = inline("sweep", *words)
        assert code == (2 if "model.arch" in words[-1] else 5), (words, stderr)
        assert code == 2 or "--trust-code" in stderr
    inline("sweep", "--show", "theirs")
    inline("report", "theirs")
    assert not (here / "ran").exists()


def test_a_cluster_that_a_folder_names_is_not_joined(here: Path, inline) -> None:
    with (here / "sweep.yaml").open("a") as file:
        file.write("engine: {name: ray, address: 'evil.example:6379'}\n")
    prepare_folder(read(here / "sweep.yaml"), here / "theirs", resume=False)
    code, _, stderr = inline("sweep", "theirs", f"model.arch={here}/net.py:make")
    assert code == 5
    assert "--address evil.example:6379" in stderr


def test_workers_have_the_users_word_from_the_leader(here: Path, cli) -> None:
    """A folder with the digest of the user's own sweep, and other code in its file."""
    text = (
        (here / "sweep.yaml").read_text().replace("[0.2, 0.5, 0.8]", "[0.5]").replace("[magnitude, random]", "[random]")
    )
    (here / "sweep.yaml").write_text(text)
    folder = prepare_folder(read(here / "sweep.yaml"), here / "out", resume=False)
    forged = (folder / "sweep.yaml").read_text().replace("net.py:make", "evil.py:make")
    (folder / "sweep.yaml").write_text(forged)
    done = cli("sweep", "sweep.yaml", "-o", "out", "-q", env={"PRUNETAYLOR_MODEL_ARCH": ""})
    assert done.returncode == 6, done.stderr
    assert not (here / "ran").exists()
    found = json.loads(cli("sweep", "--show", "out", "--json").stdout)["trials"]
    assert "evil.py:make" in found[0]["cause"]


def test_fits_are_cached_where_the_user_says_not_the_sweep_s_folder(here: Path, cli) -> None:
    text = (
        (here / "sweep.yaml").read_text().replace("[0.2, 0.5, 0.8]", "[0.5]").replace("[magnitude, random]", "[random]")
    )
    (here / "theirs.yaml").write_text(text.replace("base:\n", "base:\n  cache: {dir: chosen}\n"))
    prepare_folder(read(here / "theirs.yaml"), here / "theirs", resume=False)
    words = ["sweep", "theirs", f"model.arch={here}/net.py:make", "-q"]
    assert cli(*words, env={"PRUNETAYLOR_CACHE_DIR": "mine"}).returncode == 0
    report = json.loads((here / "theirs" / "trials" / "0001" / "report.json").read_text())
    assert report["configuration"]["cache"]["dir"] == str(here / "mine")


@pytest.mark.parametrize(
    "data",
    [
        {"source": "arrays://server/share/x.npz"},
        {"source": r"arrays:\\server\share\x.npz"},
        {"source": "folder:https://example.org/x"},
        {"source": "arrays:/dev/stdin"},
        {"source": "folder:/proc/self"},
        {"source": "torchvision:MNIST", "root": "//server/share"},
    ],
)
def test_data_of_a_file_lie_on_this_machine(here: Path, inline, data: dict[str, str]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    write_model("far.safetensors", net, arch=None, args={}, data=data)
    code, _, stderr = inline("eval", "far.safetensors", *_NETWORK)
    assert code == 5
    assert "--data" in stderr


def test_nothing_is_downloaded_into_a_folder_that_a_file_chose(here: Path, inline) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    write_model("far.safetensors", net, arch=None, args={}, data={"source": "torchvision:MNIST", "root": "chosen"})
    code, _, stderr = inline("eval", "far.safetensors", *_NETWORK, "data.download=true")
    assert code == 2
    assert "data.root=chosen" in stderr
    assert not os.path.exists("chosen")


@pytest.mark.parametrize(
    "data",
    [
        {"source": "aray:data.npz"},
        {"source": "arrays:data.npz", "normalize": "imagenett"},
        {"source": "arrays:data.npz", "augment": ["NoSuchTransform"]},
    ],
)
def test_invalid_words_of_a_checkpoint_are_the_checkpoints_fault(here: Path, inline, data: dict[str, object]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    write_model("odd.safetensors", net, arch=None, args={}, data=data)
    code, _, stderr = inline("eval", "odd.safetensors", *_NETWORK)
    assert code == 5
    assert "the checkpoint's own words about its data" in stderr
