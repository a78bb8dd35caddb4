"""The templates for CI: parsed, and their shell steps run.

Steps run in bash with a prunetaylor that writes down its words and ends with the exit code asked for; then the real one
is given these words in this process, which has torch already, on a real run of the demo's network.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from prunetaylor.cli.main import group
from prunetaylor.cli.main import run as command
from support.verdicts import assert_valid_junit

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
INSTALLING = {"install", "extras", "torch-index"}


def block(page: str, language: str) -> str:
    """The first fenced block of a language in a page of docs/how-to/."""
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "docs" / "how-to" / page).read_text(), re.DOTALL)
    assert found, f"{page} has no {language}"
    return found[1]


@pytest.fixture
def here(good_run: Path, tmp_path: Path) -> Path:
    """model.pt and runs/model-1, and tools on the PATH that write down their words."""
    shutil.copytree(good_run, tmp_path / "work")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("prunetaylor", "python"):
        called = shlex.quote(str(tmp_path / name))
        (tools / name).write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" > {called}\nexit ${{{name.upper()}_CODE:-0}}\n")
        (tools / name).chmod(0o755)
    return tmp_path / "work"


def shell(here: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As both CI systems run a step: bash, stopping at the first error."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "PRUNETAYLOR_", "CI"))}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=here,
        env=kept | {"PATH": f"{here.parent / 'bin'}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def called(here: Path, tool: str = "prunetaylor") -> list[str]:
    return (here.parent / tool).read_text().splitlines()


def judged(here: Path, **environment: str) -> int:
    """The exit code of the real command line for the words that the step gave it, where the step gave them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name, value in environment.items():
            patch.setenv(name, value)
        return command(called(here))


def filled(text: str, values: dict[str, str]) -> str:
    """``${{ inputs.x }}`` and ``${{ steps.y.outputs.x }}`` as GitHub fills them in."""
    return re.sub(r"\$\{\{ [\w.]*?([\w-]+) \}\}", lambda found: values[found[1]], text)


def test_the_action_is_composite_and_its_steps_are_whole() -> None:
    assert ACTION["runs"]["using"] == "composite"
    steps = ACTION["runs"]["steps"]
    assert all({"shell", "run", "name"} <= step.keys() for step in steps)
    assert all("${{" not in step["run"] for step in steps), "an input in a script is run, not read"
    read = [re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value) for value in steps[1]["env"].values()]
    assert {found[1] for found in read if found} == ACTION["inputs"].keys() - INSTALLING
    assert all(one["description"] for one in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))


def test_the_actions_limits_are_the_commands() -> None:
    from prunetaylor.cli.check import check

    options = {option.removeprefix("--") for one in check.params for option in one.opts}
    assert ACTION["inputs"].keys() - {"pruned", "arguments"} - INSTALLING <= options


def workflow() -> list[dict[str, Any]]:
    found = yaml.safe_load(block("gate-in-github.md", "yaml"))
    assert found[True] == ["pull_request"]  # YAML 1.1 takes "on" for true; GitHub does not
    steps: list[dict[str, Any]] = found["jobs"]["gate"]["steps"]
    return steps


def run_action(here: Path, given: dict[str, str], code: int = 0) -> tuple[int, dict[str, str]]:
    """All shell steps of the action as GitHub runs them: what the last ended with, and its outputs."""
    assert given.keys() <= ACTION["inputs"].keys()
    inputs = {name: given.get(name, one.get("default", "")) for name, one in ACTION["inputs"].items()}
    done = None
    for step in ACTION["runs"]["steps"]:
        if step.get("if") == "inputs.install == 'true'" and inputs["install"] != "true":
            continue
        env = {name: filled(text, inputs) for name, text in step.get("env", {}).items()}
        done = shell(here, step["run"], GITHUB_ACTION_PATH="/the/action", PRUNETAYLOR_CODE=str(code), **env)
    assert done is not None
    assert done.returncode == code, done.stderr
    files = {"GITHUB_OUTPUT": here / "outputs", "GITHUB_STEP_SUMMARY": here / "summary.md"}
    got = judged(here, GITHUB_ACTIONS="true", **{name: str(path) for name, path in files.items()})
    lines = files["GITHUB_OUTPUT"].read_text().splitlines() if files["GITHUB_OUTPUT"].exists() else []
    return got, dict(line.split("=", 1) for line in lines)


def test_the_example_workflow_passes_and_tells(here: Path) -> None:
    [step] = [step for step in workflow() if step.get("uses", "").startswith("OWNER/prunetaylor")]
    code, outputs = run_action(here, step["with"])
    assert code == 0
    assert called(here, "python") == ["-m", "pip", "install", "--quiet", "/the/action[demo]"]
    assert called(here)[-2:] == ["--device", "cpu"]
    assert outputs["verdict"] == "pass"
    assert "the gate passes" in (here / "summary.md").read_text()
    assert_valid_junit((here / "gate.xml").read_text())
    declared = {name: one["value"] for name, one in ACTION["outputs"].items()}
    values = {name: filled(text, outputs) for name, text in declared.items()}
    [said] = [step for step in workflow() if step.get("name") == "Show the drop"]
    env = {name: filled(text, values) for name, text in said["env"].items()}
    assert shell(here, said["run"], **env).stdout == f"verdict pass, drop {outputs['drop']} pp\n"


def test_a_failing_action_has_written_everything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"pruned": "runs/model-1", "max-size": "10kB", "install": "false"}
    code, outputs = run_action(here, given, code=3)
    assert code == 3
    assert outputs["verdict"] == "fail"
    assert "::error title=prunetaylor%3A size fail::" in capsys.readouterr().err
    assert_valid_junit((here / "gate.xml").read_text())
    assert not (here.parent / "python").exists()


def test_no_input_is_run(here: Path) -> None:
    hostile = "$(touch hacked); touch hacked `touch hacked`"
    code, _ = run_action(here, dict.fromkeys(ACTION["inputs"], hostile) | {"install": "false"})
    assert code == 2
    assert called(here)[:4] == ["check", hostile, "--baseline", hostile]
    assert not list(here.glob("hacked*"))


def test_the_gitlab_job(here: Path) -> None:
    [(name, job)] = yaml.safe_load(block("gate-in-gitlab.md", "yaml")).items()
    assert name == "compression-gate"
    assert job["allow_failure"] == {"exit_codes": [4]}
    assert job["artifacts"]["reports"]["junit"] == "gate.xml"
    script = "\n".join([*job["before_script"], *job["script"]])
    assert shell(here, script, PRUNETAYLOR_CODE="4", **job["variables"]).returncode == 4
    assert called(here, "python") == ["-m", "pip", "install", "--quiet", job["variables"]["PACKAGE"]]
    assert judged(here) == 0
    assert_valid_junit((here / "gate.xml").read_text())
    assert all((here / path).is_file() for path in job["artifacts"]["paths"])


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_makefile_judges_once(here: Path) -> None:
    (here / "Makefile").write_text(block("gate-in-make.md", "make"))
    done = shell(here, "make gate")
    assert done.returncode == 0, done.stderr
    assert judged(here) == 0
    assert "the gate passes" in (here / "gate.md").read_text()
    assert shell(here, "make -q gate").returncode == 0
    (here / "model.pt").touch()
    failed = shell(here, "make gate LIMITS='--max-size 10kB'", PRUNETAYLOR_CODE="3")
    assert failed.returncode == 2
    assert "Error 3" in failed.stderr
    assert judged(here) == 3
    assert shell(here, "make -q gate").returncode == 1


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("git") is None, reason="make and git are needed")
def test_the_hook_stops_a_push(here: Path) -> None:
    (here / "Makefile").write_text("gate:\n\texit 3\n")
    assert shell(here, f"git init -q . && {block('gate-in-make.md', 'bash')}").returncode == 0
    assert shell(here, ".git/hooks/pre-push").returncode == 2


def scripts() -> list[str]:
    """Every shell script of the templates, with the variables that are set beside it filled in."""
    found = [step["run"] for step in ACTION["runs"]["steps"]]
    for page in ("gate-in-github.md", "gate-in-gitlab.md"):
        for text in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "how-to" / page).read_text(), re.DOTALL):
            document = yaml.safe_load(text)
            steps = (
                document if isinstance(document, list) else document.get("jobs", {}).get("gate", {}).get("steps", [])
            )
            found += [step["run"] for step in steps if "run" in step]
            for job in document.values() if page == "gate-in-gitlab.md" else ():
                assert job["variables"]["PIP_CACHE_DIR"].startswith("$CI_PROJECT_DIR/.cache/")
                assert job["cache"]["paths"] == [".cache/"]
                lines = "\n".join([*job["before_script"], *job["script"]])
                found.append(re.sub(r"\$([A-Z]+)", lambda name, job=job: job["variables"][name[1]], lines))
    page = (ROOT / "docs" / "how-to" / "gate-in-make.md").read_text()
    makefile = "\n".join(re.findall(r"```make\n(.*?)```", page, re.DOTALL))
    values = dict(re.findall(r"^(\w+) \?= (.*)$", makefile, re.MULTILINE))
    recipes = "\n".join(line.strip() for line in makefile.splitlines() if line.startswith("\t")).replace("$@", "stamp")
    return [*found, re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], recipes)]


@pytest.mark.parametrize("script", scripts())
def test_every_step_is_bash(script: str, tmp_path: Path) -> None:
    done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_parser_accepts_every_command() -> None:
    written = [line for script in scripts() for line in script.splitlines() if line.startswith("prunetaylor ")]
    lines = [shlex.split(line) for line in written if '"${' not in line]  # the action's own are run above
    assert {words[1] for words in lines} == {"check", "prune"}
    assert len(lines) >= 5
    for _, name, *words in lines:
        for more in ([], ["--arch", "net.py:make", "--data", "arrays:data.npz"]):
            group.commands[name].make_context(name, [*words, *more], parent=click.Context(group))
