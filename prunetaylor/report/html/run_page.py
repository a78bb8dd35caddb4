"""The HTML page of a run, from its report.json: at the end of the run, or later."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from prunetaylor.core.config.schema import Config
from prunetaylor.core.results.judgement import prediction_check, prediction_status
from prunetaylor.core.results.metric import describe_metric
from prunetaylor.core.results.outcome import LEVELS, Drop, Stage
from prunetaylor.core.results.verdict import Check
from prunetaylor.report.formats import change, count, drop_label, drop_text, first_order, metric, number, percent, size
from prunetaylor.report.html import figures
from prunetaylor.report.html.page import clip, figure, flat, render
from prunetaylor.report.measured_drop import measured_drop
from prunetaylor.report.titles import title
from prunetaylor.report.verdict_text import allowed, interval, shown

Document = Mapping[str, Any]

_LAYERS = 1000
_CLASSES = 50


def run_page(document: Document, name: str) -> str:
    """Return the page of a run called ``name``; ``document`` is its report.json, or KeyError is raised."""
    metric_name, cut = document["metric"]["name"], document["sparsity"]
    classes = [one for one in document.get("classes", []) if one["lost"] or one["won"]]
    return render(
        "run.html",
        title=f"{name}: {_verdict(document)['text']}",
        name=name,
        verdict=_verdict(document),
        warnings=[one["text"] for one in document.get("warnings", [])],
        tiles=_tiles(document, metric_name),
        summary=f"Requested sparsity {percent(cut['asked'])}{_share(cut)}; the run took "
        f"{_total(document['seconds'].get('total'))} on {document['device']}.",
        gate=_gate(document.get("gate")),
        sides=sides(document),
        facts=facts(document),
        drawn=_figures(document, metric_name),
        stages=[_stage(i, stage) for i, stage in enumerate(document["stages"], 1)],
        epochs=[
            (
                str(one["epoch"]),
                percent(one.get("sparsity", document["sparsity"]["obtained"])),
                number(one["loss"]),
                number(one["validation"]),
                number(one["seconds"], 3),
            )
            for one in document["epochs"]
        ],
        layers=[
            (clip(one["name"], 120), "x".join(map(str, one["shape"])), f"{one['removed']:,}", percent(one["sparsity"]))
            for one in document["layers"][:_LAYERS]
        ],
        classes=[_class(one) for one in classes[:_CLASSES]],
        classes_summary=f"{len(classes)} of {len(document.get('classes', []))} classes changed",
        skipped=[f"{one['name']}: {one['why']}" for one in document["skipped"]],
        choices=document["choices"],
        command=_command(document),
        facts_of_origin=_origin(document),
        configuration=flat(document["configuration"]),
    )


def _share(cut: Mapping[str, Any]) -> str:
    """Return the share of prunable parameters, which an old report lacks."""
    share = cut.get("prunable_share")
    return "" if share is None else f" of the prunable weights, which are {percent(share)} of all parameters"


def _verdict(document: Document) -> dict[str, str]:
    """Return the run's verdict; for an old report without one, the share of removed weights."""
    verdict = document.get("verdict")
    if not verdict:
        return {"level": "", "text": f"{percent(document['sparsity']['obtained'])} of the weights removed"}
    return {"level": verdict["level"] if verdict["level"] in LEVELS else "", "text": verdict["text"]}


def _tiles(document: Document, metric_name: str) -> list[tuple[str, str, str]]:
    """Return (label, number, note) for the numbers that people look for first."""
    dense, pruned, cut = (document[key] for key in ("dense", "pruned", "sparsity"))
    tiles = []
    before, after = (side["metrics"].get(metric_name) for side in (dense, pruned))
    if before is not None:
        tiles.append(
            (title(metric_name), _arrow(metric(metric_name, before), metric(metric_name, after)), "test samples")
        )
    described, drop = measured_drop(document)
    if drop is not None:
        value, _, bounds = drop_text(drop, described.unit).partition(", ")
        tiles.append((drop_label(described), value, bounds))
    tiles.append(("weights removed", percent(cut["obtained"]), f"{cut['removed']:,} of {cut['prunable']:,} prunable"))
    if dense["flops_nonzero"] and pruned["flops_nonzero"] is not None:
        work = _arrow(count(dense["flops_nonzero"]), count(pruned["flops_nonzero"]))
        tiles.append(("FLOPs, non-zero", work, _less(dense, pruned, "flops_nonzero")))
    else:
        tiles.append(("file size", _arrow(size(dense["bytes"]), size(pruned["bytes"])), _less(dense, pruned, "bytes")))
    return tiles


def _arrow(before: str, after: str) -> str:
    """Return both numbers with an arrow between them, and no line break before a unit."""
    return " \u2192 ".join(text.replace(" ", "\u00a0") for text in (before, after))


def sides(document: Document) -> list[tuple[str, ...]]:
    """Return the rows of the table that compares the dense and the pruned network."""
    dense, pruned = document["dense"], document["pruned"]
    described, measured = measured_drop(document)
    rows: list[tuple[str, ...]] = []
    for name in dense["metrics"]:
        before, after = dense["metrics"][name], pruned["metrics"].get(name)
        drop = measured if name == described.name else None
        rows.append((title(name), metric(name, before), metric(name, after), _change(name, before, after, drop)))
    for key, label in (("nonzero", "non-zero parameters"), ("parameters", "parameters")):
        rows.append((label, f"{dense[key]:,}", f"{pruned[key]:,}", _less(dense, pruned, key)))
    for key, label in (("flops", "FLOPs"), ("flops_nonzero", "FLOPs, non-zero")):
        rows.append((label, count(dense[key]), count(pruned[key]), _less(dense, pruned, key)))
    rows.append(("file", size(dense["bytes"]), size(pruned["bytes"]), ""))  # of two forms of files
    return rows


def _change(name: str, before: float | None, after: float | None, drop: Drop | None) -> str:
    if before is None or after is None:
        return "-"
    if drop is None or math.isinf(drop.high) or not describe_metric(name).is_share:
        return change(name, before, after)
    return f"{change(name, before, after)} ({-drop.high:+.2f} to {-drop.low:+.2f})"


def _less(dense: Document, pruned: Document, key: str) -> str:
    before, after = dense[key], pruned[key]
    return f"{100 * (after / before - 1):+.2f} %" if before and after is not None else "-"


def facts(document: Document) -> list[str]:
    """Return sentences about the drop, the flips, the convergence and the predictions."""
    lines = []
    described, drop = measured_drop(document)
    if drop is None:
        lines.append("The drop is not known: there were no samples to measure it on.")
    else:
        text = drop_text(drop, described.unit).replace("95 %", "paired 95 %")
        label = drop_label(described)
        lines.append(f"{label[0].upper()}{label[1:]} {text}, on test samples (not used for pruning).")
    if flips := document.get("flips"):
        lines.append(
            f"Of {flips['samples']:,} test samples, {flips['lost']:,} became wrong and {flips['won']:,} became right; "
            f"McNemar's exact p {number(flips['mcnemar_p'], 3)}."
        )
    if first := document["first_order"]:
        lines.append(
            f"Convergence: the gradient's norm is {number(first['gradient_norm'], 3)}, where sampling noise gives "
            f"{number(first['noise_norm'], 3)}. First-order term: {percent(first['share'])} of the change predicted "
            f"for a probe{first_order(first['kept'], first.get('labels', True))}."
        )
    if stages := document["stages"]:
        text = prediction_check([_as_stage(stage) for stage in stages]).text
        lines.append(f"{text[0].upper()}{text[1:]}.")
    return lines


def _figures(document: Document, metric_name: str) -> list[tuple[str, Any, str]]:
    against, samples = figures.metric_by_stage(document)
    return [
        figure(f"{title(metric_name)} vs sparsity", against, samples),
        figure("Sparsity by layer", figures.sparsity_by_layer(document["layers"][:_LAYERS])),
        figure("Scores of removed and kept weights (last stage)", figures.saliency(document.get("histogram"))),
        figure(
            "Predicted vs measured change",
            figures.predictions(document["stages"]),
            "Change of the error since the dense network, on held-out calibration samples. Changes that are not "
            "positive are left out. Stages outside the band that are not marked as off are within noise.",
        ),
        figure(
            "Fine-tuning",
            figures.finetuning(document["epochs"], metric_name),
            "The best epoch is chosen on validation samples.",
        ),
        figure(
            "Drop by class",
            figures.class_drops(document.get("classes", [])),
            "The classes that lost the most, on test samples.",
        ),
    ]


def _as_stage(stage: Document) -> Stage:
    return Stage(**{one.name: stage[one.name] for one in fields(Stage) if one.name in stage})


def _stage(index: int, stage: Document) -> tuple[str, ...]:
    changes = (number(stage[key]) for key in ("predicted_change", "measured_change"))
    how = prediction_status(_as_stage(stage))
    since = number(stage.get("cumulative_ratio"), 3) + (f" {how}" if how in ("off", "noise") else "")
    ratios = (number(stage.get("gain_ratio"), 3), since)
    reached = percent(stage["sparsity"]) + ("" if stage.get("accepted", True) else " (taken back)")
    return (str(index), reached, *changes, *ratios, number(stage["seconds"], 3))


def _class(one: Document) -> tuple[str, ...]:
    drop = one["drop"]
    counts = (f"{one[key]:,}" for key in ("samples", "lost", "won"))
    return (str(one["label"]), *counts, f"{drop['value']:.2f} pp", f"{drop['low']:.2f} to {drop['high']:.2f}")


def _gate(gate: Document | None) -> dict[str, Any] | None:
    if not gate:
        return None
    checks = [Check(**{k: v for k, v in one.items() if k != "bound"}) for one in gate["checks"]]
    return {
        "verdict": gate["verdict"] if gate["verdict"] in ("pass", "fail") else "inconclusive",
        "text": f"Gate: {gate['verdict']}, exit code {gate['exit_code']}",
        "rows": [(one.label, shown(one.value, one), interval(one), allowed(one), one.status) for one in checks],
        "why": [f"{one.label}: {one.why}" for one in checks],
    }


def _command(document: Document) -> str:
    """Return a command that repeats the run with its own configuration and seed."""
    if (document["configuration"].get("model") or {}).get("checkpoint") is None:
        changed = _changed(document["configuration"], Config().model_dump())
        return f"prunetaylor.prune(model, train, test, settings={changed!r})"
    config = document["files"].get("config", "config.yaml")
    return f"prunetaylor prune -c {shlex.quote(config)} -o again"


def _changed(value: Any, default: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings that differ from their default, by dotted key."""
    if not (isinstance(value, dict) and isinstance(default, dict) and default):
        return {} if value == default else {prefix: value}
    parts = (_changed(inner, default.get(key), f"{prefix}.{key}".lstrip(".")) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}


def _origin(document: Document) -> list[tuple[str, str]]:
    rows = [("seed", str(document["seed"])), ("device", document["device"])]
    rows += [(f"version of {name}", str(version)) for name, version in document["versions"].items() if version]
    rows += [(f"sha256 of the {name}", value) for name, value in document["hashes"].items()]
    return rows + [(what, file) for what, file in document["files"].items()]


def _total(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "some time"
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.1f} seconds"
