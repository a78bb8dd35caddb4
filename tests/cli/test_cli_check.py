"""check, and the gate of prune, through the real command line on the demo's network."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from support.verdicts import assert_valid_json, assert_valid_junit

METRIC = """
def balanced(outputs, targets):
    right = (outputs.argmax(1) == targets).double()
    return 100 * sum(right[targets == c].mean() for c in targets.unique()) / len(targets.unique())
"""


@pytest.fixture
def here(magnitude_run: Path, tmp_path: Path) -> Path:
    """A run and the file it pruned in tmp_path, where the command line works."""
    shutil.copytree(magnitude_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


VERDICTS = [("pass", 0), ("fail", 3), ("inconclusive", 4)]


def limit_for(status: str, here: Path) -> str:
    """A maximum by which the run's drop gets this verdict: it lies well outside of the drop's interval, or inside."""
    drop = json.loads((here / "runs" / "model-1" / "report.json").read_text())["drop_pp"]
    assert drop["low"] > 1
    return {"pass": f"{drop['high'] + 2:g}pp", "fail": f"{drop['low'] - 1:g}", "inconclusive": f"{drop['value']:g} pp"}[
        status
    ]


def test_in_a_process_of_its_own(here: Path, cli) -> None:
    done = cli("check", "runs/model-1", "--max-drop", "0.5", "--junit", "gate.xml", "--json", "-q")
    assert (done.returncode, done.stderr) == (3, "")
    assert_valid_json(json.loads(done.stdout))
    assert_valid_junit((here / "gate.xml").read_text())


@pytest.mark.parametrize(("status", "code"), VERDICTS)
def test_the_three_verdicts_and_their_files(here: Path, inline, status: str, code: int) -> None:
    limit = limit_for(status, here)
    words = ["check", "runs/model-1", "--max-drop", limit, "--junit", "gate.xml", "--markdown", "gate.md", "--json"]
    got, stdout, stderr = inline(*words)
    assert got == code, stderr
    document = json.loads(stdout)
    assert_valid_json(document)
    assert document["verdict"] == status
    assert document["checks"][0]["status"] == status
    assert document["configuration"]["gate"]["max_drop"] == float(limit.removesuffix("pp"))
    assert_valid_junit((here / "gate.xml").read_text())
    assert f"{status}: the gate" in (here / "gate.md").read_text()
    report = json.loads((here / "runs" / "model-1" / "report.json").read_text())
    assert document["drop"] == report["drop"]
    assert document["hashes"]["dense"] == report["hashes"]["checkpoint"]
    assert document["hashes"]["data"] == report["hashes"]["data"]
    assert document["pruned"] == report["pruned"]
    assert document["samples"] == document["flips"]["samples"] == 359
    lost, won = document["flips"]["lost"], document["flips"]["won"]
    assert document["drop"]["value"] == pytest.approx(100 * (lost - won) / 359)
    assert sum(one["lost"] for one in document["classes"]) == lost
    assert any("what the run pruned" in note for note in document["notes"])


def test_every_limit_and_github(here: Path, inline, monkeypatch) -> None:
    (here / "gate.yaml").write_text(
        "gate:\n  max_drop: 60pp\n  max_class_drop: 90\n  min_sparsity: 80%\n  max_size: 2MB\n  max_flops: 50%\n"
    )
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary.md"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(here / "outputs"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, stdout, stderr = inline("check", "runs/model-1", "-c", "gate.yaml")
    assert code == 0, stderr
    assert max(map(len, stdout.splitlines())) <= 80
    assert [line.split("  ")[0] for line in stdout.splitlines()[1:6]] == [
        "drop",
        "class drop",
        "sparsity",
        "size",
        "FLOPs",
    ]
    assert "verdict=pass" in (here / "outputs").read_text().splitlines()
    assert (here / "summary.md").read_text().startswith("### ")
    assert "::" not in stderr
    code, _, stderr = inline("check", "runs/model-1", "-c", "gate.yaml", "--max-size", "10kB", "--min-sparsity", "0.81")
    assert code == 3
    assert [line[:9] for line in stderr.splitlines() if line.startswith("::")] == ["::error t"] * 2


def test_what_cannot_be_written_keeps_nothing_else_from_being(here: Path, inline, monkeypatch) -> None:
    """A place that is full or gone costs its own file, and makes an error of any verdict; all else is there."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "none" / "summary.md"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(here / "outputs"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    words = ["check", "runs/model-1", "--data", "none", "--max-size", "10kB", "--json"]
    code, stdout, stderr = inline(*words, "--junit", "/dev/full", "--markdown", "gate.md")
    assert code == 1
    assert "cannot write /dev/full: No space left on device" in stderr
    assert "::error title=prunetaylor" in stderr
    assert json.loads(stdout)["verdict"] == "fail"
    assert "fail: the gate fails" in (here / "gate.md").read_text()
    assert "verdict=fail" in (here / "outputs").read_text()
    code, stdout, stderr = inline(*words, "--junit", "gate.xml")
    assert (code, json.loads(stdout)["verdict"]) == (1, "fail")
    assert "none/summary.md: No such file" in stderr
    assert_valid_junit((here / "gate.xml").read_text())


def test_latency_is_measured_and_judged_or_refused(here: Path, inline) -> None:
    code, stdout, stderr = inline("check", "runs/model-1", "--max-latency-ratio", "1000", "--json")
    found = json.loads(stdout)
    assert found["latency"]["rounds"] > 10
    assert code == (0 if found["latency"]["steady"] else 4), stderr
    assert_valid_json(found)


@pytest.mark.parametrize(("how", "code"), [("pass", 0), ("warn", 0), ("fail", 3)])
def test_what_inconclusive_means_is_up_to_the_user(here: Path, inline, how: str, code: int) -> None:
    got, stdout, _ = inline(
        "check", "runs/model-1", "--max-drop", limit_for("inconclusive", here), "--on-inconclusive", how
    )
    assert got == code
    assert stdout.splitlines()[-1].startswith("inconclusive: the gate ")


def test_a_loss_and_a_metric_of_ones_own(here: Path, inline) -> None:
    code, stdout, stderr = inline("check", "runs/model-1", "--max-drop", "5", "metric=loss", "--json")
    assert code == 0, stderr
    loss = json.loads(stdout)
    rise = loss["pruned"]["metrics"]["loss"] - loss["dense"]["metrics"]["loss"]
    assert loss["checks"][0]["value"] == pytest.approx(rise, rel=1e-4)
    assert loss["checks"][0]["low"] < rise < loss["checks"][0]["high"]
    (here / "metrics.py").write_text(METRIC)
    code, stdout, stderr = inline(
        "check", "runs/model-1", "--max-drop", "0.1", "gate.metric=metrics.py:balanced", "--json"
    )
    assert code == 3, stderr
    own = json.loads(stdout)
    assert_valid_json(own)
    assert own["metric"] == {"name": "metrics.py:balanced", "goal": "max", "unit": ""}
    assert own["checks"][0]["value"] == pytest.approx(sum(c["drop"]["value"] for c in own["classes"]) / 10)


def test_a_share_that_is_no_mean_is_judged_in_points(here: Path, inline) -> None:
    code, stdout, stderr = inline("check", "runs/model-1", "--max-drop", "0.5pp", "gate.metric=f1", "--json")
    assert code == 3, stderr
    found = json.loads(stdout)
    assert_valid_json(found)
    assert found["metric"] == {"name": "f1", "goal": "max", "unit": "%"}
    assert found["drop"]["unit"] == found["checks"][0]["unit"] == "pp"
    assert set(found["dense"]["metrics"]) == {"f1", "loss"}
    assert "resample F1" in stderr
    assert "top" not in json.dumps({key: value for key, value in found.items() if key != "configuration"})


def test_plain_weights_borrow_the_others_network_and_data(here: Path, inline) -> None:
    content = torch.load(here / "model.pt", weights_only=True)
    torch.save(content["state_dict"], here / "plain.pt")
    code, stdout, stderr = inline("check", "runs/model-1", "--baseline", "plain.pt", "--max-drop", "60", "--json")
    assert code == 0, stderr
    assert "the baseline is not the file that this run pruned" in stdout
    code, stdout, stderr = inline("check", "plain.pt", "--baseline", "model.pt", "--max-drop", "2", "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["drop"]["value"] == 0


def test_without_data_what_needs_none_is_judged(here: Path, inline) -> None:
    code, stdout, stderr = inline("check", "runs/model-1", "--min-sparsity", "80%", "--data", "none", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert_valid_json(found)
    assert found["drop"] is None
    assert found["checks"][0]["value"] == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["runs/model-1"], 2, "no limit is set"),
        ([], 2, "no MODEL given"),
        (["runs/model-1", "--max-drop", "1%"], 2, "percentage points"),
        (["runs/model-1", "--max-drop", "-1"], 2, "greater than or equal to 0"),
        (["runs/model-1", "--max-drop", "inf"], 2, "not a number of percentage points"),
        (["runs/model-1", "--max-class-drop", "nanpp"], 2, "not a number of percentage points"),
        (["runs/model-1", "--min-sparsity", "80"], 2, "less than or equal to 1"),
        (["runs/model-1", "--max-size", "huge"], 2, "gate.max_size"),
        (["runs/model-1", "--on-inconclusive", "maybe"], 2, "gate.on_inconclusive"),
        (["runs/model-1", "--max-drop", "1", "--data", "none"], 2, "gate.max_drop cannot be judged without samples"),
        (["runs/model-1", "--max-drop", "1", "gate.metric=none.py:f"], 2, "none.py"),
        (["plain.pt", "--max-drop", "1"], 2, "does not name its dense network"),
        (["runs/model-1", "--max-drop", "1", "--baseline", "none.pt"], 2, "no such file"),
        (["runs/model-1", "--max-drop", "1", "--junit", "none/gate.xml"], 2, "there is no folder none"),
        (["runs/model-1", "--max-drop", "1", "--markdown", "runs"], 2, "is a folder"),
        (["code.safetensors", "--max-drop", "1", "--baseline", "model.pt"], 5, "--trust-code"),
    ],
)
def test_what_cannot_be_judged(here: Path, inline, arguments: list[str], code: int, message: str) -> None:
    from prunetaylor.network.checkpoint.write import write_model

    write_model(
        here / "code.safetensors", torch.nn.Linear(2, 2), arch="mine.py:net", args={}, data={"source": "digits"}
    )
    torch.save(torch.load(here / "model.pt", weights_only=True)["state_dict"], here / "plain.pt")
    got, stdout, stderr = inline("check", *arguments)
    assert got == code, stderr
    assert stdout == ""
    assert message in stderr
    assert not (here / "gate.xml").exists()


def test_a_baseline_that_changed_or_went_is_not_taken_for_it(here: Path, inline) -> None:
    content = torch.load(here / "model.pt", weights_only=True)
    content["state_dict"]["fc2.bias"] += 1
    torch.save(content, here / "model.pt")
    code, _, stderr = inline("check", "runs/model-1", "--max-drop", "1")
    assert code == 2
    assert "has changed since" in stderr
    (here / "model.pt").unlink()
    code, _, stderr = inline("check", "runs/model-1", "--max-drop", "1")
    assert code == 2
    assert "--baseline" in stderr


@pytest.mark.parametrize(("status", "code"), VERDICTS)
def test_prune_judges_what_it_has_written(here: Path, inline, status: str, code: int) -> None:
    limit = limit_for(status, here)
    words = ["--sparsity", "80%", "--epochs", "0", "prune.method=magnitude", "device=cpu", "-o", "gated", "--json"]
    got, stdout, stderr = inline("prune", "model.pt", *words, f"gate.max_drop={limit}")
    assert got == code, stderr
    document = json.loads(stdout)
    assert json.loads((here / "gated" / "report.json").read_text()) == document
    assert_valid_json(document["gate"])
    assert document["gate"]["verdict"] == status
    assert document["gate"]["drop"] == document["drop"]
    assert document["gate"]["files"]["pruned"] == document["files"]["model"]
    assert f"{status}: the gate" in stderr
    again, stdout, _ = inline("prune", "model.pt", *words, f"gate.max_drop={limit}", "--resume")
    assert (again, json.loads(stdout)) == (code, document)
    log = [json.loads(line) for line in (here / "gated" / "log.jsonl").read_text().splitlines()]
    assert (log[-1]["event"], log[-1]["exit_code"]) == ("gate", code)


def test_processes_share_the_gates_work_and_one_speaks(here: Path, cli) -> None:
    words = ["--sparsity", "80%", "--epochs", "0", "prune.method=magnitude", "device=cpu", "-o", "two", "--json"]
    done = cli("prune", "model.pt", "--nproc", "2", *words, f"gate.max_drop={limit_for('fail', here)}")
    assert done.returncode == 3, done.stderr
    gate = json.loads(done.stdout)["gate"]
    alone = json.loads((here / "runs" / "model-1" / "report.json").read_text())
    assert (gate["verdict"], gate["flips"]) == ("fail", alone["flips"])
    assert done.stderr.count("the gate fails") == 1


def test_a_run_is_kept_where_its_verdict_cannot_be_had(here: Path, inline) -> None:
    words = ["--epochs", "0", "prune.method=magnitude", "device=cpu", "-o", "kept", "-q"]
    code, stdout, stderr = inline("prune", "model.pt", *words, "gate.max_drop=1", "gate.baseline=none.pt")
    assert code == 2
    assert "no such file" in stderr
    assert json.loads((here / "kept" / "report.json").read_text())["gate"] is None
    code, stdout, _ = inline("prune", "model.pt", *words[:-3], "gate.max_drop=1", "metric=top1", "--data", "none")
    assert code == 2
    assert stdout == ""
    assert len(list((here / "runs").iterdir())) == 1


def test_a_dry_run_says_what_the_gate_would_be(here: Path, inline) -> None:
    code, stdout, stderr = inline(
        "prune", "model.pt", "--dry-run", "--sparsity=80%", "gate.max_drop=0.5pp", "gate.min_sparsity=80%"
    )
    assert code == 0, stderr
    assert "gate       max_drop 0.5, min_sparsity 0.8" in stdout.splitlines()


def test_people_read_both_tables(here: Path, inline) -> None:
    words = ["--sparsity", "80%", "--epochs", "0", "prune.method=magnitude", "device=cpu"]
    code, stdout, _ = inline("prune", "model.pt", *words, "gate.max_drop=0.5", "gate.min_sparsity=80%")
    assert code == 3
    assert max(len(line) for line in stdout.splitlines() if "prunetaylor" not in line) <= 80  # commands stay whole
    assert stdout.index("written") < stdout.index("one-sided 95 %")
    assert "fail: the gate fails, exit code 3" in stdout.splitlines()
