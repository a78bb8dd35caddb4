"""A sweep as people write it: a strict subset of the YAML of W&B sweeps, and a prune configuration to start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunetaylor.core import registry
from prunetaylor.core.config.keys import is_open, leaves, suggestion
from prunetaylor.core.config.paths import rooted
from prunetaylor.core.config.resolve import Resolved, Written, flat, override, resolve
from prunetaylor.core.config.values import Document, parse_value, read_document, read_file
from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.pipeline.files.run_folder import MODEL_FILE
from prunetaylor.sweep import space
from prunetaylor.sweep.definition import METRICS, EarlyStop, Objective, Sweep
from prunetaylor.sweep.engines import load_engine
from prunetaylor.sweep.space import Parameter

METHODS = ("grid", "random", "bayes")
KEYS = ("name", "method", "metric", "metrics", "parameters", "run_cap", "early_terminate", "base", "engine")
IGNORED = ("program", "command", "project", "entity", "description", "controller", "settings", "job", "image_uri")
"""Keys of that format that say how and where a script of one's own is run."""
_GOALS = ("maximize", "minimize")
COMMAND_LINE = "command line"


def read(file: Path, environ: Mapping[str, str] | None = None, pairs: Sequence[str] = ()) -> Sweep:
    """The sweep in a file; ``environ`` and the command line's ``pairs`` go over its base. UsageError with the line."""
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
    said = document.values
    base = _base(document, file, environ or {}, pairs)

    def where(path: Sequence[str]) -> str:
        return f"{file}:{document.lines[('parameters', *path)]}"

    found = Sweep(
        name=_name(document, file),
        method=_method(document, file),
        objectives=_objectives(document, file, base),
        parameters=tuple(space.parameters(said.get("parameters") or {}, where, base)),
        run_cap=_count(document, file, "run_cap"),
        early=_early(document, file),
        base=base,
        engine=_engine(said.get("engine"), _at(document, file, "engine")),
        ignored=tuple(key for key in said if key in IGNORED),
    )
    return check(found, str(file))


def of_options(model: str, varied: Sequence[str], base: Resolved) -> Sweep:
    """The grid of a command line: ``varied`` are its KEY=VALUE,VALUE,... UsageError for what cannot be meant."""
    columns: list[Parameter] = []
    for text in varied:
        key, equals, values = text.partition("=")
        if not equals or not values.strip():
            raise UsageError(f"-m {text!r} is not KEY=VALUE,VALUE,...", "such as -m prune.sparsity=0.5,0.7,0.9")
        if key in [one.key for one in columns]:
            raise UsageError(f"-m {key} stands twice on the command line", "give all of its values at once")
        columns.append(space.choices(key.strip(), _split(values, key), COMMAND_LINE, base))
    name = Path(model).parent.resolve().name if Path(model).name == MODEL_FILE else Path(model).stem
    return check(Sweep(name, "grid", (_usual(base),), tuple(columns), None, None, _absolute(base)), COMMAND_LINE)


def check(sweep: Sweep, name: str) -> Sweep:
    """The sweep, if its parts go together; UsageError otherwise."""
    _refuse_contradictions(sweep)
    if sweep.method == "grid":
        space.grid(sweep.parameters)
    elif sweep.run_cap is None:
        raise UsageError(
            f"{name}: method {sweep.method} has no end without run_cap", "set the number of trials: run_cap: 50"
        )
    if sweep.size > space.MOST:
        raise UsageError(f"{name}: that would be {sweep.size:,} trials", "give fewer values, or a run_cap")
    if sweep.early is not None:
        if len(sweep.objectives) > 1:
            raise UsageError(
                f"{name}: early_terminate needs exactly one metric, not {len(sweep.objectives)}",
                "trials that are better in one way and worse in another cannot be told apart early: leave one out",
            )
        if sweep.objectives[0].name not in ("top1", "loss"):
            raise UsageError(
                f"{name}: early_terminate needs metric top1 or loss, not {sweep.objectives[0].name}",
                "nothing else is known before a trial ends",
            )
    if not sweep.base.config.model.checkpoint and not any(p.key == "model.checkpoint" for p in sweep.parameters):
        raise UsageError(f"{name} names no checkpoint", "add base: {model: {checkpoint: model.pt}}, or give MODEL")
    return sweep


def _refuse_contradictions(sweep: Sweep) -> None:
    """UsageError for a setting that is varied and given one value too, and for lists of stages that end elsewhere."""
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
    """The sweep on another engine, or with other options of its own: what is None stays as it is."""
    given = {key: value for key, value in options.items() if value is not None}
    before = sweep.engine if name in (None, sweep.engine["name"]) else {"name": name}
    return replace(sweep, engine=_engine({**before, **given}, COMMAND_LINE))


def _known_keys(document: Document, file: Path) -> None:
    for key in document.values:
        if key not in KEYS and key not in IGNORED:
            tail = close_match(key, KEYS) or suggestion(key, [name for name, _ in leaves()])
            raise UsageError(
                f"unknown key {key!r} ({file}:{document.lines[(key,)]}){tail}",
                f"a sweep has {', '.join(KEYS)}; settings stand beneath base, what varies beneath parameters",
            )


def _at(document: Document, file: Path, *path: str) -> str:
    return f"{file}:{document.lines[path]}" if path in document.lines else str(file)


def _base(document: Document, file: Path, environ: Mapping[str, str], pairs: Sequence[str]) -> Resolved:
    said = document.values.get("base")
    at = _at(document, file, "base")
    if said is None:
        found = resolve(None, environ, pairs, {})
    elif isinstance(said, str):
        found = resolve(file.parent / said, environ, pairs, {})
    elif isinstance(said, dict):
        lines = {path[1:]: line for path, line in document.lines.items() if path[0] == "base" and len(path) > 1}
        found = resolve(Written(said, lines, str(file)), environ, pairs, {})
    else:
        raise UsageError(f"base is {said!r} ({at})", "give the path of a configuration, or its keys")
    if found.is_set("output"):
        raise UsageError(f"base sets output ({found.origins['output']})", "name the sweep's folder with -o/--output")
    return _absolute(found)


def _absolute(base: Resolved) -> Resolved:
    """Every path in full: workers may be started elsewhere, and the best configuration is used anywhere."""
    full = {key: (rooted(key, value), base.origins.get(key, "")) for key, value in flat(base).items()}
    return override(base, {key: row for key, row in full.items() if row[0] != flat(base)[key]})


def _name(document: Document, file: Path) -> str:
    said = document.values.get("name")
    if isinstance(said, dict | list | bool):
        raise UsageError(f"name is {said!r} ({_at(document, file, 'name')})", "it should be text")
    return str(said or file.stem)


def _method(document: Document, file: Path) -> str:
    said = document.values.get("method")
    if said not in METHODS:
        hint = close_match(said, METHODS) if isinstance(said, str) else ""
        text = f"method is {said!r}" if said is not None else "no method is named"
        raise UsageError(f"{text} ({_at(document, file, 'method')}){hint}", f"one of {', '.join(METHODS)}")
    return str(said)


def _objectives(document: Document, file: Path, base: Resolved) -> tuple[Objective, ...]:
    said, several = document.values.get("metric"), document.values.get("metrics")
    at = _at(document, file, "metrics" if several is not None else "metric")
    if said is not None and several is not None:
        raise UsageError(f"{file} has metric and metrics", "keep one of the two")
    if said is None and several is None:
        return (_usual(base),)
    several = [said] if several is None else several
    if not isinstance(several, list) or not several:
        raise UsageError(f"metrics ({at}) should be a list", "such as metrics: [{name: top1}, {name: sparsity}]")
    found = tuple(_objective(one, at) for one in several)
    if len({one.name for one in found}) < len(found):
        raise UsageError(f"metrics ({at}) has the same name twice", "keep one of the two")
    return found


def _usual(base: Resolved) -> Objective:
    """The metric of a sweep that names none: the base's, or the weights that are left where there are no samples."""
    name = "nonzero" if base.config.data.source == "none" else base.config.metric
    return Objective(name, METRICS[name])


def _objective(said: Any, at: str) -> Objective:
    said = {"name": said} if isinstance(said, str) else said
    if not isinstance(said, dict) or "name" not in said:
        raise UsageError(f"a metric ({at}) needs a name", f"such as {{name: top1}}; one of {', '.join(METRICS)}")
    for key in said:
        if key not in ("name", "goal"):
            raise UsageError(
                f"unknown key {key!r} of a metric ({at}){close_match(key, ('name', 'goal'))}", "name and goal"
            )
    name = str(said["name"])
    if name not in METRICS:
        raise UsageError(f"unknown metric {name!r} ({at}){close_match(name, METRICS)}", f"one of {', '.join(METRICS)}")
    goal = said.get("goal", METRICS[name])
    if goal not in _GOALS:
        raise UsageError(
            f"the goal of {name} is {goal!r} ({at}){close_match(str(goal), _GOALS)}", "maximize or minimize"
        )
    return Objective(name, "maximize" if goal == "maximize" else "minimize")


def _count(document: Document, file: Path, key: str) -> int | None:
    said = document.values.get(key)
    if said is not None and (isinstance(said, bool) or not isinstance(said, int) or said < 1):
        raise UsageError(f"{key} is {said!r} ({_at(document, file, key)})", "it should be a whole number from 1")
    return said


def _early(document: Document, file: Path) -> EarlyStop | None:
    said, at = document.values.get("early_terminate"), _at(document, file, "early_terminate")
    if said is None:
        return None
    if not isinstance(said, dict) or said.get("type") != "hyperband":
        raise UsageError(f"early_terminate ({at}) should have type hyperband", "such as {type: hyperband, min_iter: 1}")
    known = ("type", "min_iter", "max_iter", "eta")
    for key, value in said.items():
        if key not in known:
            raise UsageError(
                f"unknown key {key!r} of early_terminate ({at}){close_match(key, known)}", ", ".join(known)
            )
        least = 2 if key == "eta" else 1
        if key != "type" and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UsageError(
                f"{key} of early_terminate is {value!r} ({at})", f"it should be a whole number from {least}"
            )
    found = EarlyStop(**{key: value for key, value in said.items() if key != "type"})
    if found.max_iter is not None and found.max_iter < found.min_iter:
        raise UsageError(f"early_terminate ({at}): max_iter is below min_iter", "swap them")
    return found


def _engine(said: Any, at: str) -> dict[str, Any]:
    """The engine's name and the options that were given, checked by the engine itself."""
    said = {"name": "local"} if said is None else {"name": said} if isinstance(said, str) else said
    known = registry.names(registry.ENGINES)
    if not isinstance(said, dict) or said.get("name") not in known:
        name = said.get("name") if isinstance(said, dict) else said
        raise UsageError(f"unknown engine {name!r} ({at}){close_match(str(name), known)}", f"known: {', '.join(known)}")
    options = load_engine(said["name"]).Options
    for key, value in said.items():
        if key == "name":
            continue
        if key not in options.model_fields:
            hint = close_match(key, options.model_fields)
            raise UsageError(
                f"the engine {said['name']} has no {key!r} ({at}){hint}", f"it has {', '.join(options.model_fields)}"
            )
        try:
            options(**{key: value})
        except ValueError as err:
            text = str(err).splitlines()[2].strip().partition(" [")[0]
            raise UsageError(f"{key} of the engine {said['name']} is {value!r} ({at}): {text}", "") from err
    return dict(said)


def _split(text: str, key: str) -> list[Any]:
    """The values between the commas; brackets and quotes keep theirs."""
    try:
        values = parse_value(f"[{text}]")
    except UsageError as err:
        raise UsageError(f"-m {key}: {err.cause}", err.remedy) from err
    assert isinstance(values, list)
    info = dict(leaves()).get(key)
    if info is not None and not is_open(info) and info.annotation == list[str]:
        return [value if isinstance(value, list) else [value] for value in values]
    return values
