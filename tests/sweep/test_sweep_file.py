"""A sweep's file: what it may say, and what is said of everything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import IntDistribution

from prunetaylor.core.config.resolve import resolve
from prunetaylor.core.errors import PruneTaylorError, UsageError
from prunetaylor.sweep.definition import EarlyStop, SweepObjective
from prunetaylor.sweep.file import from_options, read, with_engine
from prunetaylor.sweep.space import Choices, Range, grid
from prunetaylor.sweep.study.sampling import make_distribution

BASE = "base: {model: {checkpoint: net.pt}}\n"
GRID, RANDOM = f"method: grid\n{BASE}", f"method: random\nrun_cap: 2\n{BASE}"
VARIED = "parameters: {prune.sparsity: {values: [0.5, 0.9]}}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text)
    return path


def domain(folder: Path, key: str, form: str) -> Choices | Range:
    text = f"method: random\nrun_cap: 3\n{BASE}parameters:\n  {key}: {form}\n"
    [one] = read(written(folder, text)).parameters
    assert one.key == key
    return one.domain


def test_everything_that_a_file_can_say(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {checkpoint: net.pt}\nprune: {stages: 2}\n")
    sweep = read(
        written(
            tmp_path,
            """
name: all
method: grid
metrics: [{name: top1, goal: maximize}, {name: nonzero}]
parameters:
  prune:
    parameters:
      sparsity: {values: [50%, 0.9]}
      stages: {distribution: int_uniform, min: 1, max: 3}
  prune.damping: {distribution: constant, value: 0.1}
run_cap: 5
base: base.yaml
engine: {name: local, jobs: 2}
program: train.py
project: mine
""",
        )
    )
    assert sweep.name == "all"
    assert sweep.objectives == (SweepObjective("top1", "maximize"), SweepObjective("nonzero", "minimize"))
    assert [one.key for one in sweep.parameters] == ["prune.sparsity", "prune.stages", "prune.damping"]
    assert sweep.parameters[0].domain == Choices((0.5, 0.9))
    assert sweep.parameters[0].origin.endswith("s.yaml:8")
    assert sweep.size == 5
    assert sweep.base.config.prune.stages == 2
    assert sweep.engine == {"name": "local", "jobs": 2}
    assert sweep.ignored == ("program", "project")
    rows = list(grid(sweep.parameters))
    assert len(rows) == 6
    assert rows[1] == {"prune.sparsity": 0.5, "prune.stages": 2, "prune.damping": 0.1}
    config = sweep.trial(2, rows[1])
    assert (config.config.prune.sparsity, config.config.prune.stages) == (0.5, 2)
    assert config.origins["prune.stages"] == "trial 2"
    assert with_engine(sweep, None, {"jobs": 3, "address": None}).engine == {"name": "local", "jobs": 3}
    assert with_engine(sweep, "slurm", {"jobs": 4}).engine == {"name": "slurm", "jobs": 4}


@pytest.mark.parametrize(
    ("key", "form", "expected"),
    [
        ("prune.sparsity", "{value: 80%}", Choices((0.8,))),
        ("prune.stages", "{values: [auto, 3, [0.5, 0.8]]}", Choices(("auto", 3, [0.5, 0.8]))),
        ("prune.sparsity", "{min: 50%, max: 0.9}", Range(0.5, 0.9)),
        ("finetune.epochs", "{min: 0, max: 4}", Range(0, 4, step=1)),
        ("finetune.lr", "{distribution: log_uniform_values, min: 0.001, max: 0.1}", Range(0.001, 0.1, log=True)),
        ("prune.refine_steps", "{distribution: log_uniform_values, min: 10, max: 900}", Range(10, 900, log=True)),
        ("prune.sparsity", "{distribution: q_uniform, min: 0.5, max: 0.9, q: 0.1}", Range(0.5, 0.9, step=0.1)),
        ("calibration.samples", "{distribution: q_uniform, min: 100, max: 500, q: 100}", Range(100, 500, step=100)),
        ("prune.damping", "{distribution: uniform, min: 1, max: 2}", Range(1.0, 2.0)),
        ("model.args.depth", "{values: [20, 56]}", Choices((20, 56))),
    ],
)
def test_what_a_parameter_may_be(tmp_path: Path, key: str, form: str, expected: object) -> None:
    assert domain(tmp_path, key, form) == expected


@pytest.mark.parametrize(("low", "high", "last"), [(0.1, 0.35, 0.3), (0.5, 0.95, 0.9), (0.1, 0.3, 0.3)])
def test_a_study_takes_every_step_of_a_grid(low: float, high: float, last: float) -> None:
    """No step is off by a bit: Optuna would sample another value in its place, and warn."""
    space = Range(low, high, step=0.1)
    known = make_distribution(space)
    assert space.grid()[-1] == last
    assert all(known._contains(known.to_internal_repr(value)) for value in space.grid())


def test_a_wide_range_is_not_counted_out() -> None:
    known = make_distribution(Range(0, 10**12, step=7))
    assert isinstance(known, IntDistribution)
    assert known.high == 10**12 - 10**12 % 7


def test_a_grid_of_steps_hits_both_ends() -> None:
    values = Range(0.5, 0.9, step=0.1).grid()
    assert values == pytest.approx((0.5, 0.6, 0.7, 0.8, 0.9))
    assert max(values) <= 0.9


@given(low=st.floats(0.01, 0.4), width=st.floats(0.01, 0.5), share=st.floats(0.001, 1))
def test_a_grid_stays_in_its_range(low: float, width: float, share: float) -> None:
    found = Range(low, low + width, step=share * width)
    values = found.grid()
    assert len(values) == found.count
    assert all(low <= value <= low + width for value in values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"method: gird\n{BASE}{VARIED}", "method is 'gird' .*s.yaml:1.*did you mean 'grid'"),
        (f"{BASE}{VARIED}", "no method is named"),
        (f"method: grid\n{BASE}{VARIED}prune: {{}}\n", "unknown key 'prune' .*s.yaml:4"),
        (f"method: grid\n{BASE}{VARIED}run_cpa: 3\n", "did you mean 'run_cap'"),
        (f"method: grid\n{BASE}", "varies nothing"),
        (f"method: random\n{BASE}{VARIED}", "method random needs run_cap"),
        (f"method: grid\nrun_cap: 0\n{BASE}{VARIED}", "run_cap is 0 .*s.yaml:2"),
        (f"method: grid\nmetric: {{name: los}}\n{BASE}{VARIED}", "unknown metric 'los'.*did you mean 'loss'"),
        (f"method: grid\nmetric: {{name: top1, goal: max}}\n{BASE}{VARIED}", "the goal of top1 is 'max'"),
        (f"method: grid\nmetric: {{name: [top1]}}\n{BASE}{VARIED}", r"unknown metric .*s.yaml:2"),
        (f"method: grid\nname: [a, b]\n{BASE}{VARIED}", "name is .*s.yaml:2"),
        (f"method: grid\nmetric: {{name: top1, target: 3}}\n{BASE}{VARIED}", "unknown key 'target' of a metric"),
        (f"method: grid\nmetric: top1\nmetrics: [loss]\n{BASE}{VARIED}", "has metric and metrics"),
        (f"method: grid\nmetrics: [top1, top1]\n{BASE}{VARIED}", "the same name twice"),
        (f"method: grid\n{VARIED}", "names no checkpoint"),
        (f"method: grid\nbase: {{output: x, model: {{checkpoint: a}}}}\n{VARIED}", "base sets output"),
        (f"method: grid\nbase: {{prun: {{}}}}\n{VARIED}", "unknown key 'prun' .*s.yaml:2"),
        (f"method: grid\nbase: nowhere.yaml\n{VARIED}", "cannot read the configuration .*nowhere.yaml"),
        (f"method: grid\n{BASE}{VARIED}engine: locl\n", "unknown engine 'locl'.*did you mean 'local'"),
        (f"method: grid\n{BASE}{VARIED}engine: {{name: local, job: 2}}\n", "has no 'job'.*did you mean 'jobs'"),
        (f"method: grid\n{BASE}{VARIED}engine: {{name: local, jobs: 0}}\n", "jobs of the engine local is 0"),
        (f"{GRID}parameters: {{prune.sparcity: {{value: 1}}}}\n", "did you mean 'prune.sparsity'"),
        (f"method: grid\nmetric: accuracy\n{BASE}{VARIED}", "unknown metric 'accuracy'.*did you mean 'top1'"),
        (f"{GRID}parameters: {{prune.sparsity: 0.5}}\n", r"write prune.sparsity: \{value: 0.5\}"),
        (f"{GRID}parameters: {{prune.sparsity: {{values: [0.5, 80]}}}}\n", "did you mean 80%"),
        (f"{GRID}parameters: {{prune.sparsity: {{values: [0.5, 50%]}}}}\n", "has the value 50% twice"),
        (f"{GRID}parameters: {{model.args.x: {{values: [1, true]}}}}\n", "has the value true twice"),
        (f"{GRID}parameters: {{prune.sparsity: {{values: []}}}}\n", "values should be a list"),
        (f"{GRID}parameters: {{prune.sparsity: {{vals: [1]}}}}\n", "did you mean 'values'"),
        (f"{GRID}parameters: {{prune: {{sparsity: {{value: 1}}}}}}\n", "unknown key 'sparsity'"),
        (f"{GRID}parameters: {{prune.sparsity: {{min: 0.5}}}}\n", "has min, but should have"),
        (f"{GRID}parameters: {{prune.sparsity: {{min: 0.5, max: 0.9}}}}\n", "too many values for method grid"),
        (f"{GRID}parameters: {{prune.sparsity: {{min: 0.9, max: 0.5}}}}\n", "min 0.9 is not below max 0.5"),
        (f"{GRID}parameters: {{prune.method: {{min: a, max: b}}}}\n", "'a' is not known"),
        (f"{GRID}parameters: {{output: {{value: x}}}}\n", "output .* cannot be varied"),
        (
            f"{RANDOM}parameters: {{finetune.lr: {{min: 1, max: 2, distribution: log_uniform}}}}\n",
            "log_uniform_values the values",
        ),
        (
            f"{RANDOM}parameters: "
            "{calibration.samples: {min: 10, max: 21, distribution: uniform}}\n",
            "a whole number",
        ),
        (
            f"{RANDOM}metrics: [top1, sparsity]\nearly_terminate: {{type: hyperband}}\n{VARIED}",
            "early_terminate needs exactly one metric, not 2",
        ),
        (
            f"method: random\nrun_cap: 2\nmetric: seconds\nearly_terminate: {{type: hyperband}}\n{BASE}{VARIED}",
            "early_terminate needs a metric such as top1 or loss",
        ),
        (
            f"{RANDOM}parameters: {{calibration.samples: {{min: 10, max: 20, distribution: q_uniform, q: 0.5}}}}\n",
            "a whole number",
        ),
        (f"method: grid\nearly_terminate: {{type: median}}\n{BASE}{VARIED}", "should have type hyperband"),
        (f"method: grid\nearly_terminate: {{type: hyperband, s: 2}}\n{BASE}{VARIED}", "unknown key 's'"),
        (
            f"method: random\nrun_cap: 20000\n{BASE}{VARIED}",
            "that would be 20,000 trials",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(written(tmp_path, text))
    assert caught.value.exit_code == 2


def test_hyperband(tmp_path: Path) -> None:
    text = f"method: grid\nearly_terminate: {{type: hyperband, min_iter: 2, eta: 4}}\n{BASE}{VARIED}"
    assert read(written(tmp_path, text)).early == EarlyStop(min_iter=2, max_iter=None, eta=4)


def test_paths_are_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on with a sweep, or prunes by its best configuration, may stand elsewhere."""
    monkeypatch.chdir(tmp_path)
    text = """
method: grid
parameters:
  data.source: {values: ["arrays:a.npz", "folder:~/b", "data.py:f", package.module:f, digits]}
  model.checkpoint: {values: [a.pt, b.pt]}
base:
  model: {arch: "nets/net.py:make"}
  data: {root: here}
  cache: {dir: ../cache}
  gate: {baseline: /dense.pt}
"""
    sweep = read(written(tmp_path, text))
    config = sweep.base.config
    assert (config.model.arch, config.data.root) == (f"{tmp_path}/nets/net.py:make", f"{tmp_path}/here")
    assert (config.cache.dir, config.gate.baseline) == (f"{tmp_path.parent}/cache", "/dense.pt")
    assert sweep.base.origins["data.root"].endswith("s.yaml:8")
    assert sweep.parameters[0].domain == Choices(
        (f"arrays:{tmp_path}/a.npz", "folder:~/b", f"{tmp_path}/data.py:f", "package.module:f", "digits")
    )
    assert sweep.parameters[1].domain == Choices((f"{tmp_path}/a.pt", f"{tmp_path}/b.pt"))


def test_the_frozen_file_is_the_same_sweep(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"weights")
    text = f"""
method: bayes
run_cap: 7
metric: {{name: loss}}
early_terminate: {{type: hyperband, max_iter: 9}}
parameters:
  prune.damping: {{min: 0.5, max: 0.9}}
  prune.stages: {{values: [auto, 2, [0.1, 0.9]]}}
  calibration.samples: {{distribution: q_uniform, min: 100, max: 500, q: 100}}
  prune.refine_steps: {{distribution: log_uniform_values, min: 10, max: 900}}
  finetune.epochs: {{min: 0, max: 3}}
base:
  model: {{checkpoint: {tmp_path}/net.pt, args: {{depth: 20}}}}
  prune: {{exclude: ["fc*"]}}
engine: {{name: slurm, jobs: 2, partition: gpu}}
"""
    sweep = read(written(tmp_path, text))
    again = read(written(tmp_path, sweep.dump()))
    assert again.plain() == sweep.plain()
    assert again.engine == sweep.engine == {"name": "slurm", "jobs": 2, "partition": "gpu"}
    assert again.digest() == with_engine(sweep, "local", {}).digest()
    assert again.digest() == sweep.digest()
    assert again.base.config == sweep.base.config
    before = sweep.digest()
    (tmp_path / "net.pt").write_bytes(b"others")
    assert sweep.digest() != before


def test_the_command_line_makes_a_grid(tmp_path: Path) -> None:
    base = resolve(None, {}, ["seed=2"], {"model.checkpoint": "runs/a/model.safetensors"})
    varied = ["calibration.holdout=50%,0.9", "prune.exclude=[fc1,fc2],conv1", "prune.stages=1,[0.2,0.4]"]
    sweep = from_options("runs/a/model.safetensors", varied, base)
    assert sweep.name == "a"
    assert sweep.size == 8
    assert sweep.parameters[0].domain == Choices((0.5, 0.9))
    assert sweep.parameters[1].domain == Choices((["fc1", "fc2"], ["conv1"]))
    assert sweep.parameters[2].domain == Choices((1, [0.2, 0.4]))
    assert sweep.objectives == (SweepObjective("top1", "maximize"),)
    with pytest.raises(UsageError, match="is not KEY=VALUE,VALUE"):
        from_options("a.pt", ["prune.sparsity"], base)
    with pytest.raises(UsageError, match=r"did you mean 'prune\.sparsity'"):
        from_options("a.pt", ["sparsity=0.1"], base)
    with pytest.raises(UsageError, match="given twice"):
        from_options("a.pt", ["seed=1,2", "seed=3"], base)


def test_a_sweep_is_read_led_and_ranked_without_torch() -> None:
    code = """
import sys
import prunetaylor.sweep.leader, prunetaylor.sweep.results, prunetaylor.sweep.worker
import prunetaylor.report.terminal.sweep, prunetaylor.report.pareto, prunetaylor.cli.terminal.live_table
from prunetaylor.core import registry
from prunetaylor.sweep.engines import load_engine
for name in registry.names(registry.ENGINES):
    load_engine(name)
assert not {"torch", "ray", "submitit", "matplotlib"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@given(st.text(max_size=60))
def test_no_text_does_anything_but_a_clean_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PruneTaylorError):
        read(path)


def test_trials_are_measured_by_the_metric_that_ranks(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(f"method: grid\nmetrics: [f1, loss, sparsity]\n{BASE}{VARIED}")
    sweep = read(file)
    assert [(one.name, one.goal) for one in sweep.objectives] == [
        ("f1", "maximize"),
        ("loss", "minimize"),
        ("sparsity", "maximize"),
    ]
    assert sweep.base.config.metric == "f1"
    assert sweep.base.origins["metric"] == str(file)
    with pytest.raises(UsageError, match="ranks by f1, and the trials' metric is auc"):
        read(file, pairs=["metric=auc"])
    file.write_text(f"method: grid\nmetrics: [f1, auc]\n{BASE}{VARIED}")
    with pytest.raises(UsageError, match="ranks by f1 and auc"):
        read(file)
    (tmp_path / "own.py").write_text("def error(outputs, targets): return 0.0\nerror.goal = 'min'\n")
    file.write_text(f"method: grid\nmetric: {tmp_path}/own.py:error\n{BASE}{VARIED}")
    assert read(file).objectives[0].goal == "minimize"
