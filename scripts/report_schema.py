"""The JSON schema of report.json, from the dataclasses of a run's result."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal

from pydantic import TypeAdapter, create_model
from reference_python import hints, parts_of

from prunetaylor.core.results.outcome import PruneResult

_COMMENT = re.compile(r"^    (\w+): [^#]+  # (.+)$", re.MULTILINE)


def _metric() -> Any:
    return create_model("Metric", name=(str, ...), goal=(Literal["max", "min"], ...), unit=(Literal["%", ""], ...))


def _metric_drop() -> Any:
    number = (float, ...)
    return create_model("MetricDrop", value=number, low=number, high=number, unit=(Literal["pp", ""], ...)) | None


def report() -> Any:
    """Return the type of the whole report: its keys and what each holds."""
    of = hints(PruneResult)
    kinds: dict[str, Any] = {
        "schema_version": Literal[1],
        **{key: of[key] for key in ("verdict", "warnings", "method")},
        "metric": _metric(),
        **{key: of[key] for key in ("dense", "pruned", "constant", "sparsity")},
        "drop": _metric_drop(),
        "drop_pp": of["drop"],
        **{key: of[key] for key in ("loss_rise", "stages")},
        "believed_to": float | None,
        "prediction_check": of["verdict"],
        **{key: of[key] for key in ("first_order", "layers", "skipped", "epochs", "choices")},
        "plan": list[create_model("PlanChoice", key=(str, ...), value=(Any, ...), reason=(str, ...))],
        **{key: of[key] for key in ("seconds", "memory", "time", "flips", "classes", "histogram", "unfinished")},
        "gate": dict[str, Any] | None,
        "files": dict[str, str],
        **{key: of[key] for key in ("seed", "device")},
        "versions": dict[str, str | None],
        "hashes": of["hashes"],
        "configuration": dict[str, Any],
    }
    return create_model("Report", **{key: (kind, ...) for key, kind in kinds.items()})


def report_schema() -> dict[str, Any]:
    """Return the schema. A number that is not finite is null in JSON, and nothing is left out."""
    schema: dict[str, Any] = TypeAdapter(report()).json_schema(mode="serialization")
    for kind in parts_of(PruneResult):
        _describe(schema["$defs"][kind.__name__], kind)
    for one in [schema, *schema["$defs"].values()]:
        one |= {"required": list(one["properties"]), "additionalProperties": False}
    schema["properties"]["gate"] = {"anyOf": [{"$ref": "verdict.schema.json"}, {"type": "null"}]}
    cleaned: dict[str, Any] = _with_null(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cleaned, "title": "report.json"}


def _describe(definition: dict[str, Any], kind: type) -> None:
    """Put the comments beside a dataclass's fields into its definition."""
    for name, comment in _COMMENT.findall(inspect.getsource(kind)):
        if name in definition["properties"]:
            definition["properties"][name]["description"] = comment


def _with_null(value: Any) -> Any:
    """Return a copy in which every number may be null, without titles and defaults."""
    if isinstance(value, list):
        return [_with_null(one) for one in value]
    if not isinstance(value, dict):
        return value
    copy = {
        key: _with_null(one) for key, one in value.items() if key not in ("title", "default") or isinstance(one, dict)
    }
    return copy | {"type": ["number", "null"]} if copy.get("type") == "number" else copy
