"""The file of a sweep: a strict subset of the YAML of W&B sweeps, and a configuration of prune to start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunetaylor.core import registry
from prunetaylor.core.config.asked import asked
from prunetaylor.core.config.keys import is_open, leaves, suggestion
from prunetaylor.core.config.paths import rooted
from prunetaylor.core.config.resolve import Resolved, Written, flat, override, resolve
from prunetaylor.core.config.values import Document, parse_value, read_document, read_file
from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.core.results.sweep import COSTS
from prunetaylor.pipeline.files.run_folder import MODEL_FILE
from prunetaylor.sweep import space
from prunetaylor.sweep.definition import OBJECTIVES, EarlyStop, Sweep, SweepObjective, default_goal
from prunetaylor.sweep.engines import load_engine
from prunetaylor.sweep.space import Parameter

METHODS = ("grid", "random", "bayes")
KEYS = ("name", "method", "metric", "metrics", "parameters", "run_cap", "early_terminate", "base", "engine")
IGNORED = ("program", "command", "project", "entity", "description", "controller", "settings", "job", "image_uri")
"""Keys of that format for running a script of one's own; they have no meaning here."""
_GOALS = ("maximize", "minimize")
_SYNONYMS = {
    **dict.fromkeys(("accuracy", "acc", "val_accuracy", "val_acc", "top-1", "top_1", "acc1"), "top1"),
    **dict.fromkeys(("flops", "macs"), "flops_nonzero"),
    **dict.fromkeys(("size", "file_size"), "bytes"),
    **dict.fromkeys(("time", "duration"), "seconds"),
}
"""Other words for the metrics, which an error answers with the name that is known here."""
COMMAND_LINE = "command line"


def read(file: Path, environ: Mapping[str, str] | None = None, pairs: Sequence[str] = ()) -> Sweep:
    """Read a sweep; ``environ`` and the command line's ``pairs`` override its base. A UsageError names the line."""
    try:
        text = read_file(file)
    except UnicodeDecodeError as err:
        raise UsageError(
            f"{file} is not a text file", "a sweep is a YAML file; a checkpoint is varied with -m"
        ) from err
    except OSError as err:
        raise UsageError(f"cannot read the sweep {file}: {err.strerror}", "name a YAML file, or MODEL with -m") from err
    document = read_document(text, str(file))
    _known_keys(document, file)
    values = document.values
    base = _base(document, file, environ or {}, pairs)
    objectives = _objectives(document, file, base)
    base = _measured_by(base, objectives, str(file))

    def where(path: Sequence[str]) -> str:
        return f"{file}:{document.lines[('parameters', *path)]}"

    sweep = Sweep(
        name=_name(document, file),
        method=_method(document, file),
        objectives=objectives,
        parameters=tuple(space.parameters(values.get("parameters") or {}, where, base)),
        run_cap=_count(document, file, "run_cap"),
        early=_early(document, file),
        base=base,
        engine=_engine(values.get("engine"), _at(document, file, "engine")),
        ignored=tuple(key for key in values if key in IGNORED),
    )
    return check(sweep, str(file))


def from_options(model: str, varied: Sequence[str], base: Resolved) -> Sweep:
    """Return the grid of a command line, whose -m options are ``varied``: KEY=VALUE,VALUE,... each."""
    columns: list[Parameter] = []
    for text in varied:
        key, equals, values = text.partition("=")
        if not equals or not values.strip():
            raise UsageError(f"-m {text!r} is not KEY=VALUE,VALUE,...", "such as -m prune.sparsity=0.5,0.7,0.9")
        if key in [one.key for one in columns]:
            raise UsageError(f"-m {key} is given twice", "give all of its values at once")
        columns.append(space.choices(key.strip(), _split(values, key), COMMAND_LINE, base))
    name = Path(model).parent.resolve().name if Path(model).name == MODEL_FILE else Path(model).stem
    return check(
        Sweep(name, "grid", (_default_objective(base),), tuple(columns), None, None, _absolute(base)), COMMAND_LINE
    )


def check(sweep: Sweep, name: str) -> Sweep:
    """Return the sweep if its parts are consistent; UsageError otherwise."""
    _refuse_contradictions(sweep)
    if sweep.method == "grid":
        space.grid(sweep.parameters)
    elif sweep.run_cap is None:
        raise UsageError(
            f"{name}: method {sweep.method} needs run_cap", "set the number of trials, such as run_cap: 50"
        )
    if sweep.size > space.MAX_TRIALS:
        raise UsageError(f"{name}: that would be {sweep.size:,} trials", "give fewer values, or a run_cap")
    if sweep.early is not None:
        if len(sweep.objectives) > 1:
            raise UsageError(
                f"{name}: early_terminate needs exactly one metric, not {len(sweep.objectives)}",
                "one trial may be better by one metric and worse by another: keep one metric, or omit early_terminate",
            )
        if sweep.objectives[0].name in COSTS:
            raise UsageError(
                f"{name}: early_terminate needs a metric such as top1 or loss, not {sweep.objectives[0].name}",
                "a trial has nothing else before it ends",
            )
    if not sweep.base.config.model.checkpoint and not any(p.key == "model.checkpoint" for p in sweep.parameters):
        raise UsageError(f"{name} names no checkpoint", "add base: {model: {checkpoint: model.pt}}, or give MODEL")
    return sweep


def _refuse_contradictions(sweep: Sweep) -> None:
    """Raise UsageError for a setting that is both varied and set, and for stages that end at another sparsity."""
    varied = {one.key: one.domain for one in sweep.parameters}
    for key in varied:
        if sweep.base.origins.get(key) == COMMAND_LINE:
            raise UsageError(f"{key} is varied, and set on the command line too", "keep one of the two")
    stages, sparsity = varied.get("prune.stages"), varied.get("prune.sparsity")
    if sparsity is None or not isinstance(stages, space.Choices):
        return
    ends = {value[-1] for value in stages.values if isinstance(value, list)}
    if ends and not (isinstance(sparsity, space.Choices) and ends == set(sparsity.values)):
        raise UsageError(
            "prune.stages and prune.sparsity are varied together, and a list of stages ends at its own sparsity",
            "vary one of them, or give numbers of stages",
        )


def with_engine(sweep: Sweep, name: str | None, options: Mapping[str, Any]) -> Sweep:
    """Return the sweep with another engine or other options of it; None leaves a value as it is."""
    given = {key: value for key, value in options.items() if value is not None}
    before = sweep.engine if name in (None, sweep.engine["name"]) else {"name": name}
    return replace(sweep, engine=_engine({**before, **given}, COMMAND_LINE))


def _known_keys(document: Document, file: Path) -> None:
    for key in document.values:
        if key not in KEYS and key not in IGNORED:
            tail = close_match(key, KEYS) or suggestion(key, [name for name, _ in leaves()])
            raise UsageError(
                f"unknown key {key!r} ({file}:{document.lines[(key,)]}){tail}",
                f"a sweep has {', '.join(KEYS)}; settings belong beneath base, what varies beneath parameters",
            )


def _at(document: Document, file: Path, *path: str) -> str:
    return f"{file}:{document.lines[path]}" if path in document.lines else str(file)


def _base(document: Document, file: Path, environ: Mapping[str, str], pairs: Sequence[str]) -> Resolved:
    value = document.values.get("base")
    at = _at(document, file, "base")
    if value is None:
        base = resolve(None, environ, pairs, {})
    elif isinstance(value, str):
        base = resolve(file.parent / value, environ, pairs, {})
    elif isinstance(value, dict):
        lines = {path[1:]: line for path, line in document.lines.items() if path[0] == "base" and len(path) > 1}
        base = resolve(Written(value, lines, str(file)), environ, pairs, {})
    else:
        raise UsageError(f"base is {value!r} ({at})", "give the path of a configuration, or its keys")
    if base.is_set("output"):
        raise UsageError(f"base sets output ({base.origins['output']})", "name the sweep's folder with -o/--output")
    return _absolute(base)


def _absolute(base: Resolved) -> Resolved:
    """Make every path absolute: workers may start in another folder, and best.yaml may be used in any."""
    full = {key: (rooted(key, value), base.origins.get(key, "")) for key, value in flat(base).items()}
    return override(base, {key: row for key, row in full.items() if row[0] != flat(base)[key]})


def _name(document: Document, file: Path) -> str:
    name = document.values.get("name")
    if isinstance(name, dict | list | bool):
        raise UsageError(f"name is {name!r} ({_at(document, file, 'name')})", "it should be text")
    return str(name or file.stem)


def _method(document: Document, file: Path) -> str:
    method = document.values.get("method")
    if method not in METHODS:
        hint = close_match(method, METHODS) if isinstance(method, str) else ""
        text = f"method is {method!r}" if method is not None else "no method is named"
        raise UsageError(f"{text} ({_at(document, file, 'method')}){hint}", f"one of {', '.join(METHODS)}")
    return str(method)


def _objectives(document: Document, file: Path, base: Resolved) -> tuple[SweepObjective, ...]:
    single, several = document.values.get("metric"), document.values.get("metrics")
    at = _at(document, file, "metrics" if several is not None else "metric")
    if single is not None and several is not None:
        raise UsageError(f"{file} has metric and metrics", "keep one of the two")
    if single is None and several is None:
        return (_default_objective(base),)
    several = [single] if several is None else several
    if not isinstance(several, list) or not several:
        raise UsageError(f"metrics ({at}) should be a list", "such as metrics: [{name: top1}, {name: sparsity}]")
    objectives = tuple(_objective(one, at) for one in several)
    if len({one.name for one in objectives}) < len(objectives):
        raise UsageError(f"metrics ({at}) has the same name twice", "keep one of the two")
    return objectives


def _measured_by(base: Resolved, objectives: Sequence[SweepObjective], file: str) -> Resolved:
    """Return the base with the metric of the objectives: a trial is measured by one metric, and by its loss."""
    names = [one.name for one in objectives if one.name not in COSTS and one.name != "loss"]
    if not names or names == [base.config.metric]:
        return base
    if len(names) > 1:
        raise UsageError(f"{file} ranks by {' and '.join(names)}", "a trial has one metric, and its loss: keep one")
    if base.is_set("metric"):
        raise UsageError(
            f"{file} ranks by {names[0]}, and the trials' metric is {base.config.metric} ({base.origins['metric']})",
            f"set metric={names[0]} there, or omit it",
        )
    return override(base, {"metric": (names[0], file)})


def _default_objective(base: Resolved) -> SweepObjective:
    """Return the objective of a sweep that names none: the base's metric, or weights that remain without samples."""
    name = "nonzero" if base.config.data.source == "none" else asked(base.config.metric) or "top1"
    return SweepObjective(name, default_goal(name))


def _objective(entry: Any, at: str) -> SweepObjective:
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "name" not in entry:
        raise UsageError(f"a metric ({at}) needs a name", f"such as {{name: top1}}; one of {', '.join(OBJECTIVES)}")
    for key in entry:
        if key not in ("name", "goal"):
            raise UsageError(
                f"unknown key {key!r} of a metric ({at}){close_match(key, ('name', 'goal'))}", "name and goal"
            )
    name = str(entry["name"])
    if name not in OBJECTIVES and ":" not in name:
        similar = _SYNONYMS.get(name.lower())
        hint = f"; did you mean {similar!r}?" if similar else close_match(name, OBJECTIVES)
        raise UsageError(f"unknown metric {name!r} ({at}){hint}", f"one of {', '.join(OBJECTIVES)}")
    goal = entry.get("goal", default_goal(name))
    if goal not in _GOALS:
        raise UsageError(
            f"the goal of {name} is {goal!r} ({at}){close_match(str(goal), _GOALS)}", "maximize or minimize"
        )
    return SweepObjective(name, "maximize" if goal == "maximize" else "minimize")


def _count(document: Document, file: Path, key: str) -> int | None:
    count = document.values.get(key)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UsageError(f"{key} is {count!r} ({_at(document, file, key)})", "it should be a whole number from 1")
    return count


def _early(document: Document, file: Path) -> EarlyStop | None:
    entry, at = document.values.get("early_terminate"), _at(document, file, "early_terminate")
    if entry is None:
        return None
    if not isinstance(entry, dict) or entry.get("type") != "hyperband":
        raise UsageError(f"early_terminate ({at}) should have type hyperband", "such as {type: hyperband, min_iter: 1}")
    known = ("type", "min_iter", "max_iter", "eta")
    for key, value in entry.items():
        if key not in known:
            raise UsageError(
                f"unknown key {key!r} of early_terminate ({at}){close_match(key, known)}", ", ".join(known)
            )
        least = 2 if key == "eta" else 1
        if key != "type" and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UsageError(
                f"{key} of early_terminate is {value!r} ({at})", f"it should be a whole number from {least}"
            )
    early = EarlyStop(**{key: value for key, value in entry.items() if key != "type"})
    if early.max_iter is not None and early.max_iter < early.min_iter:
        raise UsageError(f"early_terminate ({at}): max_iter is below min_iter", "swap them")
    return early


def _engine(entry: Any, at: str) -> dict[str, Any]:
    """Return the engine's name and the options that were given; the engine itself checks them."""
    entry = {"name": "local"} if entry is None else {"name": entry} if isinstance(entry, str) else entry
    known = registry.names(registry.ENGINES)
    if not isinstance(entry, dict) or entry.get("name") not in known:
        name = entry.get("name") if isinstance(entry, dict) else entry
        raise UsageError(f"unknown engine {name!r} ({at}){close_match(str(name), known)}", f"known: {', '.join(known)}")
    options = load_engine(entry["name"]).Options
    for key, value in entry.items():
        if key == "name":
            continue
        if key not in options.model_fields:
            hint = close_match(key, options.model_fields)
            raise UsageError(
                f"the engine {entry['name']} has no {key!r} ({at}){hint}", f"it has {', '.join(options.model_fields)}"
            )
        try:
            options(**{key: value})
        except ValueError as err:
            text = str(err).splitlines()[2].strip().partition(" [")[0]
            raise UsageError(
                f"{key} of the engine {entry['name']} is {value!r} ({at}): {text}", f"correct {key} in the file"
            ) from err
    return dict(entry)


def _split(text: str, key: str) -> list[Any]:
    """Return the values between the commas; commas inside brackets and quotes do not separate."""
    try:
        values = parse_value(f"[{text}]")
    except UsageError as err:
        raise UsageError(f"-m {key}: {err.cause}", err.remedy) from err
    assert isinstance(values, list)
    info = dict(leaves()).get(key)
    if info is not None and not is_open(info) and info.annotation == list[str]:
        return [value if isinstance(value, list) else [value] for value in values]
    return values
