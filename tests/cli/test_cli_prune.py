"""prune and eval through the real command line, on the demo's network."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from prunetaylor import load
from prunetaylor.core.config.resolve import resolve

_SMALL = ["calibration.samples=200", "prune.stages=2", "prune.method=obs", "prune.refine_steps=10"]
_FILES = ["config.yaml", "log.jsonl", "model.safetensors", "report.html", "report.json"]


@pytest.fixture(scope="module")
def pruned(
    demo_model: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> tuple[Path, dict, str]:
    """(working directory, the --json document, stderr) of one run, small enough for a test."""
    here = tmp_path_factory.mktemp("pruned")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "prunetaylor.cli.main",
            "prune",
            str(demo_model),
            "--sparsity",
            "80%",
            "--json",
            *_SMALL,
        ],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return here, json.loads(done.stdout), done.stderr


def test_the_report_is_truthful(pruned, demo_model: Path) -> None:
    here, document, _ = pruned
    folder = here / "runs" / "model-1"
    assert sorted(file.name for file in folder.iterdir()) == _FILES
    assert json.loads((folder / "report.json").read_text()) == document
    assert document["files"]["folder"] == str(folder.resolve())
    assert all(Path(file).exists() for file in document["files"].values())
    cut = document["sparsity"]
    assert cut["asked"] == 0.8
    assert cut["removed"] == round(0.8 * cut["prunable"])
    network = load(folder)
    layers = {layer["name"]: layer for layer in document["layers"]}
    assert sum(layer["removed"] for layer in layers.values()) == cut["removed"]
    for name, layer in layers.items():
        weight = network.get_submodule(name).weight
        assert list(weight.shape) == layer["shape"]
        assert int((weight == 0).sum()) >= layer["removed"]
    nonzero = sum(int(p.count_nonzero()) for p in network.parameters())
    assert document["pruned"]["nonzero"] == nonzero
    assert document["pruned"]["bytes"] == (folder / "model.safetensors").stat().st_size
    assert document["dense"]["metrics"]["top1"] > 97
    drop = document["drop_pp"]
    expected = document["dense"]["metrics"]["top1"] - document["pruned"]["metrics"]["top1"]
    assert drop["value"] == pytest.approx(expected)
    assert drop["low"] <= drop["value"] <= drop["high"]
    assert drop["value"] < 5
    assert document["stages"][-1]["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert document["pruned"]["flops"] == document["dense"]["flops"]
    assert document["pruned"]["flops_nonzero"] < 0.5 * document["dense"]["flops_nonzero"]
    assert set(document["hashes"]) == {"checkpoint", "data", "model"}
    assert document["seconds"]["total"] > 0


def test_the_saved_configuration_has_origins_and_can_be_reused(pruned) -> None:
    here, document, _ = pruned
    path = here / "runs" / "model-1" / "config.yaml"
    assert "sparsity: 0.8                               # command line" in path.read_text()
    assert resolve(path, {}, [], {}).config.model_dump() == document["configuration"]


def test_progress_on_a_pipe_is_one_line_a_phase_and_is_logged(pruned) -> None:
    here, _, stderr = pruned
    assert "\r" not in stderr
    assert "\x1b" not in stderr
    assert all(line.startswith("[") and " s] " in line for line in stderr.splitlines())
    log = [json.loads(line) for line in (here / "runs" / "model-1" / "log.jsonl").read_text().splitlines()]
    phases = [line["name"] for line in log if line["event"] == "phase"]
    shown = [line.split(" s] ", 1)[1] for line in stderr.splitlines()]
    assert [text for text in shown if not text.startswith("note: ")] == phases
    assert log[-1]["event"] == "done"
    assert len(phases) >= 3


def test_eval_measures_what_the_report_says(pruned, inline) -> None:
    here, document, _ = pruned
    code, stdout, stderr = inline("eval", str(here / "runs" / "model-1"), "--json")
    assert code == 0, stderr
    measured = json.loads(stdout)
    assert measured["metrics"]["top1"] == pytest.approx(document["pruned"]["metrics"]["top1"])
    assert measured["metrics"]["loss"] == pytest.approx(document["pruned"]["metrics"]["loss"], rel=1e-4)
    for key in ("parameters", "nonzero", "flops", "flops_nonzero"):
        assert measured[key] == document["pruned"][key]
    code, stdout, stderr = inline("eval", str(here / "runs" / "model-1" / "model.safetensors"), "-q")
    assert code == 0
    assert stderr == ""
    assert any(line.split()[:1] == ["top1"] for line in stdout.splitlines())


def test_the_same_seed_gives_the_same_weights(pruned, demo_model: Path, inline, tmp_path: Path) -> None:
    here, _, _ = pruned
    config = str(here / "runs" / "model-1" / "config.yaml")
    code, stdout, stderr = inline("prune", str(demo_model), "-c", config, "-o", "again", "-q")
    assert code == 0, stderr
    assert stdout == f"{(tmp_path / 'again').resolve()}\n"
    assert stderr == ""
    first, second = load(here / "runs" / "model-1").state_dict(), load(tmp_path / "again").state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)


def test_a_table_for_people_fine_tuning_and_the_next_number(demo_model: Path, inline, tmp_path: Path) -> None:
    (tmp_path / "runs" / "model-4").mkdir(parents=True)
    code, stdout, stderr = inline(
        "prune", str(demo_model), "--sparsity", "0.9", "--epochs", "1", "prune.method=magnitude"
    )
    assert code == 0, stderr
    assert max(len(line) for line in stdout.splitlines() if "prunetaylor" not in line) <= 80  # commands stay whole
    assert "\x1b" not in stdout
    labels = {line.split("  ")[0] for line in stdout.splitlines()}
    assert {"top1", "parameters", "non-zero", "sparsity", "drop", "layer", "epoch", "written"} <= labels
    assert "  runs/model-5/model.safetensors" in stdout.splitlines()
    report = json.loads((tmp_path / "runs" / "model-5" / "report.json").read_text())
    assert len(report["epochs"]) == 1
    assert report["sparsity"]["removed"] == round(0.9 * report["sparsity"]["prunable"])


def test_without_data_it_prunes_by_magnitude_and_says_what_it_cannot_know(
    demo_model: Path, inline, tmp_path: Path
) -> None:
    code, stdout, stderr = inline("prune", str(demo_model), "--data", "none", "-o", "r")
    assert code == 0, stderr
    assert "accuracy not measured" in stdout
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["drop_pp"] is None
    assert report["dense"]["metrics"] == {}
    assert report["sparsity"]["obtained"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_weights_stored_in_another_type_are_given_back_in_it_and_it_is_said(
    kind: torch.dtype, demo_model: Path, inline, tmp_path: Path
) -> None:
    content = torch.load(demo_model, weights_only=True)
    content["state_dict"] = {k: v.to(kind) if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    torch.save(content, tmp_path / "other.pt")
    code, stdout, stderr = inline("prune", "other.pt", "--dry-run", "--json")
    assert code == 0, stderr
    assert any(
        f"{str(kind).removeprefix('torch.')} in the file and in the output, computed in float32" in line
        for line in json.loads(stdout)["summary"]
    )


def test_a_dry_run_writes_nothing(demo_model: Path, inline, tmp_path: Path) -> None:
    code, stdout, stderr = inline("prune", str(demo_model), "--dry-run", "--json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert any("digits" in line for line in document["summary"])
    plan = {one["key"]: one["value"] for one in document["plan"]}
    assert plan["prune.method"] == "exact_obs"
    assert plan["finetune.epochs"] == 0
    assert all(one["reason"] for one in document["plan"])
    code, stdout, _ = inline("prune", str(demo_model), "--dry-run", "--sparsity", "80%")
    assert code == 0
    assert "71,706 weights" in stdout
    code, _, stderr = inline("prune", str(demo_model), "--dry-run", "--epochs", "1", "finetune.rewind=true")
    assert code == 2
    assert "finetune.rewind applies to gradual schedules" in stderr
    gradual = ["--epochs", "2", "prune.schedule=cubic"]
    for more, message in (
        (["prune.during=9"], "during=9 is more than"),
        (["prune.stages=500"], "500 stages do not"),
    ):
        code, _, stderr = inline("prune", str(demo_model), "--dry-run", *gradual, *more)
        assert code == 2
        assert message in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_has_the_plan_of_the_run(demo_model: Path, inline, tmp_path: Path) -> None:
    words = [str(demo_model), "--device", "cpu", "prune.method=obd", "prune.refine=last", "prune.refine_steps=2"]
    words += ["--epochs", "1", "calibration.samples=60"]
    code, stdout, stderr = inline("prune", *words, "--dry-run", "--json")
    assert code == 0, stderr
    code, _, stderr = inline("prune", *words, "-q", "-o", str(tmp_path / "r"))
    assert code == 0, stderr
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert json.loads(stdout)["plan"] == report["plan"]
    assert {"data.normalize", "data.augment", "data.workers", "calibration.labels"} <= {
        one["key"] for one in report["plan"]
    }


def test_a_dry_run_lists_a_choice_once(demo_model: Path, inline) -> None:
    code, stdout, stderr = inline("prune", str(demo_model), "--dry-run")
    assert code == 0, stderr
    assert stdout.count("exact_obs (") == 1
    assert "exact_obs" not in stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.pt"], 2, "no such file"),
        (["truncated.pt"], 5, "truncated.pt"),
        (["nan.pt"], 5, "NaN"),
        (["MODEL", "--arch", "builtin:lenet"], 5, "do not fit"),
        (["MODEL", "--arch", "none.py:net"], 2, "none.py"),
        (["MODEL", "--data", "folder:none"], 2, "none"),
        (["MODEL", "--data", "digitz"], 2, "did you mean 'digits'"),
        (["MODEL", "--device", "gpu"], 2, "device"),
        (["MODEL", "prune.exclude=none*"], 2, "none*"),
        (["MODEL", "-o", "taken"], 2, "not belong to a run"),
        (["MODEL", "-o", "file/deeper"], 2, "cannot write"),
    ],
)
def test_bad_input_is_an_error_that_leaves_nothing(
    demo_model: Path, inline, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "truncated.pt").write_bytes(demo_model.read_bytes()[:5000])
    content = torch.load(demo_model, weights_only=True)
    content["state_dict"]["fc1.weight"][3, 4] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    got, stdout, stderr = inline("prune", *(str(demo_model) if word == "MODEL" else word for word in arguments))
    assert got == code, stderr
    assert stdout == ""
    assert message in stderr
    assert "Traceback" not in stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_is_not_overwritten_without_force(demo_model: Path, inline, tmp_path: Path) -> None:
    arguments = ["prune", str(demo_model), "--data", "none", "-o", "r", "-q"]
    assert inline(*arguments)[0] == 0
    before = (tmp_path / "r" / "model.safetensors").read_bytes()
    code, _, stderr = inline(*arguments, "--sparsity", "0.9")
    assert code == 2
    assert "--force" in stderr
    assert (tmp_path / "r" / "model.safetensors").read_bytes() == before
    assert inline(*arguments, "--sparsity", "0.9", "--force")[0] == 0
    assert (tmp_path / "r" / "model.safetensors").read_bytes() != before
    assert sorted(file.name for file in (tmp_path / "r").iterdir()) == _FILES


def _start(model: Path, cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A run that would take minutes."""
    arguments = ["prune", str(model), "--epochs", "1000", "prune.method=magnitude", "-o", "new/run"]
    return subprocess.Popen(
        [sys.executable, "-m", "prunetaylor.cli.main", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_run_leaves_its_state_at_most(
    demo_model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    with _start(demo_model, tmp_path, environment) as run:
        log = tmp_path / "new" / "run" / ".partial" / "log.jsonl"
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text().count('"phase"') >= 3):
            assert time.monotonic() < deadline
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.05)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        stdout, stderr = run.communicate(timeout=30)
    assert run.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line and not line.startswith("[")]
    assert errors[0].startswith("error: ")
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert kept in ([], ["new/run/.partial/log.jsonl", "new/run/.partial/state.pt"])
    assert len(errors) == (2 if kept else 1)


def test_a_disk_that_is_full_leaves_nothing(demo_model: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-m", "prunetaylor.cli.main", "prune", str(demo_model), "--data", "none", "-o", "r"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
