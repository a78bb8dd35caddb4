"""What the command line offers, and how fast it says so."""

import contextlib
import json
import os
import pty
import subprocess
import sys

import click
import pytest
import torch

from prunetaylor.cli.main import group
from prunetaylor.core.config.resolve import resolve

_HEAVY = ("torch", "torchvision", "numpy", "pydantic", "yaml", "rich")

_OPTIONS = {
    "check": "--arch --baseline --config --data --device --help --json --junit --markdown --max-class-drop --max-drop "
    "--max-flops --max-latency-ratio --max-size --min-sparsity --on-inconclusive --quiet --seed --trust-code --verbose "
    "-c -h -q -v",
    "compare": "--help --html --json --quiet --verbose -h -q -v",
    "config": "--config --help --json --schema -c -h",
    "demo": "--force --help --json --output --quiet --seed --verbose -h -o -q -v",
    "eval": "--arch --config --data --device --help --json --nproc --quiet --seed --trust-code --verbose -c -h -q -v",
    "inspect": "--help --json --quiet --verbose -h -q -v",
    "prune": "--arch --config --data --device --dry-run --epochs --force --help --json --memory --method --nproc "
    "--output --quiet --resume --seed --sparsity --trust-code --verbose -c -h -o -q -v",
    "report": "--help --json --output --quiet --verbose -h -o -q -v",
    "sweep": "--address --config --cost --csv --engine --fail-fast --help --jobs --json --max-failures --method "
    "--output --quiet --resume --show --storage --trust-code --vary --verbose --worker -c -h -m -o -q -v",
    "score": "--arch --config --data --device --help --json --memory --method --nproc --quiet --seed --trust-code "
    "--verbose -c -h -q -v",
}


def test_the_options_are_those_that_were_agreed() -> None:
    """A new option is a decision: settings belong into the configuration."""
    found = {}
    for name, command in group.commands.items():
        with command.make_context(name, [], resilient_parsing=True, parent=group.make_context("x", ["config"])) as ctx:
            options = [o for p in command.get_params(ctx) if p.param_type_name == "option" for o in p.opts]
        found[name] = " ".join(sorted(options))
    assert found == _OPTIONS


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["config", "-h"], ["--version"]])
def test_help_answers_at_once_without_heavy_imports(arguments: list[str]) -> None:
    code = f"""
import sys
from prunetaylor.cli.main import run
code = run({arguments!r})
heavy = sorted(set(sys.modules) & set({_HEAVY!r}))
print("LOADED", *heavy, file=sys.stderr)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == "LOADED\n"
    assert "prunetaylor" in done.stdout


def test_configuration_and_completion_import_no_torch() -> None:
    code = """
import os, sys
from prunetaylor.cli.main import run
run(["config", "seed=3"])
os.environ.update(_PRUNETAYLOR_COMPLETE="bash_complete", COMP_WORDS="prunetaylor prune prune.spar", COMP_CWORD="2")
try:
    run([])
except SystemExit:
    pass
print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "False\n"
    assert "plain,prune.sparsity=" in done.stdout


def test_every_option_and_command_is_explained(inline) -> None:
    for name in ["", *_OPTIONS]:
        code, stdout, _ = inline(*name.split(), "--help")
        assert code == 0
        assert max(map(len, stdout.splitlines())) <= 80
    text = " ".join(inline("prune", "--help")[1].split())
    for words in ("[default: 0.5]", "[default: 3 on a CUDA GPU, 0 elsewhere]", "0.8 or 80%", "[default: runs/NAME-N]"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prun"], "did you mean 'prune'"),
        (["PRUNE", "m.pt"], "did you mean 'prune'"),
        (["--sparsity", "0.5"], "No such option"),
        (["prune", "--sparcity", "0.5"], "Did you mean"),
        (["prune"], "no MODEL given"),
        (["eval"], "no MODEL given"),
        (["score"], "no MODEL given"),
        (["check", "a.pt", "--max-drop", "1"], "no such file: a.pt"),
        (["compare", "a"], "name two runs or more"),
        (["report", "a"], "holds no finished run"),
        (["prune", "a.pt", "b.pt"], "unexpected argument 'b.pt'"),
        (["prune", "m.pt", "prune.sparcity=0.8"], "did you mean 'prune.sparsity'"),
        (["prune", "m.pt", "--sparsity", "80"], "did you mean 80%"),
        (["prune", "m.pt", "--sparsity", "1.5"], "a fraction below 1, such as 0.5, or a percentage, such as 50%"),
        (["prune", "m.pt", "--sparsity", "1"], "the fraction removed, in [0, 1)"),
        (["prune", "m.pt", "--epochs", "-1"], "greater than or equal to 0"),
        (["prune", "m.pt", "-c", "none.yaml"], "cannot read the configuration none.yaml"),
        (["prune", "m.pt", "--seed", "x"], "a whole number"),
        (["config", "prune.sparcity"], "did you mean 'prune.sparsity'"),
        (["prune", "m.pt", "--method", "exact"], "prune.method"),
        (["config", "sparsity=0.3"], "did you mean 'prune.sparsity'"),
        (["demo", "--seed", "-1"], "greater than or equal to 0"),
    ],
)
def test_usage_errors_exit_with_2_and_say_what_was_meant(inline, tmp_path, arguments: list[str], message: str) -> None:
    code, stdout, stderr = inline(*arguments)
    assert code == 2, stderr
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert message in stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_the_bare_command_is_help_and_a_file_alone_is_told_what_to_run(inline, tmp_path) -> None:
    assert inline() == inline("--help")
    (tmp_path / "my net.pt").write_bytes(b"")
    code, _, stderr = inline("my net.pt")
    assert code == 2
    assert "prunetaylor prune 'my net.pt'" in stderr


def test_the_package_runs_as_a_module(tmp_path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prunetaylor", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)

    assert run("--version").stdout.startswith("prunetaylor ")
    assert run("prun").returncode == 2


def test_the_traceback_comes_with_vv_only(inline) -> None:
    assert "Traceback" not in inline("prune", "m.pt", "sead=1", "-v")[2]
    assert "Traceback" in inline("prune", "m.pt", "sead=1", "-vv")[2]


def test_config_prints_defaults_resolved_values_and_the_schema(inline, tmp_path, monkeypatch) -> None:
    (tmp_path / "c.yaml").write_text(inline("config")[1])
    with monkeypatch.context() as patch:
        patch.setenv("PRUNETAYLOR_SEED", "7")
        resolved = inline("config", "-c", "c.yaml", "prune.sparsity=80%")[1]
    lines = [" ".join(line.split()) for line in resolved.splitlines()]
    assert "sparsity: 0.8 # command line" in lines
    assert "seed: 7 # environment PRUNETAYLOR_SEED" in lines
    assert any(line.startswith("metric: auto # c.yaml:") for line in lines)
    assert json.loads(inline("config", "--schema")[1])["title"] == "prunetaylor configuration"
    document = json.loads(inline("config", "--json", "seed=4")[1])
    assert document["configuration"]["seed"] == 4
    assert document["origins"]["seed"] == "command line"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m prunetaylor.cli.main config --schema | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout) == 10
    assert done.stderr == ""


def _on_a_terminal(code: str, **variables: str) -> str:
    """What Python code writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    keep = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR", "COLUMNS")}
    env = {**keep, "TERM": "xterm-256color", **variables}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        chunks = []
        with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
            while chunk := os.read(ours, 4096):
                chunks.append(chunk)
        os.close(ours)
    assert process.returncode == 0
    return b"".join(chunks).decode()


_PROGRESS = """
from prunetaylor.cli.support.options import State
from prunetaylor.cli.terminal.progress import reporter
with reporter(State()) as shown:
    shown.phase("calibrate", 3)
    for _ in range(3):
        shown.step("loss 0.5")
    shown.note("layer [fc] skipped")
    shown.phase("measure")
"""


def test_bars_on_a_terminal_lines_in_ci() -> None:
    text = _on_a_terminal(_PROGRESS)
    assert "3/3" in text
    assert "\x1b[" in text
    assert "note: layer [fc] skipped" in text
    lines = _on_a_terminal(_PROGRESS, CI="true").splitlines()
    assert [line.split(" s] ")[1] for line in lines] == ["calibrate", "note: layer [fc] skipped", "measure"]


def test_colours_obey_no_color() -> None:
    code = "from prunetaylor.cli.main import run; run(['prun'])"
    assert "\x1b[31m" in _on_a_terminal(code)
    assert "\x1b" not in _on_a_terminal(code, NO_COLOR="1")


def examples(command: click.Command) -> list[str]:
    assert command.epilog
    return [line.strip().partition("  #")[0] for line in command.epilog.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("name", sorted(group.commands))
def test_every_help_has_examples_that_its_own_parser_accepts(name: str) -> None:
    command = group.commands[name]
    lines = [line for line in examples(command) if line.startswith("prunetaylor")]
    assert lines
    for line in lines:
        program, first, *words = line.partition(" > ")[0].split()
        assert (program, first) == ("prunetaylor", name)
        context = command.make_context(name, words, parent=click.Context(group))
        pairs = [word for word in context.params.get("words") or () if "=" in word]
        resolve(None, {}, pairs, {})
    shown = command.get_help(click.Context(command, info_name=name))
    assert not [line for line in shown.splitlines() if line != line.rstrip()]
    assert "\b" not in shown


@pytest.mark.parametrize("name", ["prune", "score", "eval", "inspect", "check"])
def test_a_missing_file_is_named_before_torch_is_imported(name: str) -> None:
    code = f"""
import sys
from prunetaylor.cli.main import run
assert run([{name!r}, "none.pt", *["--max-drop", "1"][: 2 * ({name!r} == "check")]]) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "no such file: none.pt" in done.stderr


@pytest.mark.parametrize("name", ["prune", "score", "eval", "check"])
def test_a_command_without_its_model_shows_its_own_form(name: str, inline) -> None:
    code, _, stderr = inline(name)
    assert code == 2
    assert f"prunetaylor {name} model.pt" in stderr


def test_a_device_that_this_torch_lacks_names_the_way(demo_model, inline) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    code, _, stderr = inline("eval", str(demo_model), "--device", "cuda")
    assert code == 2
    assert "install a CUDA build of torch, or use --device cpu" in stderr
