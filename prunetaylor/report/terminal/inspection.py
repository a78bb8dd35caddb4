"""The contents of a checkpoint file in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from prunetaylor.core.results.inspection import Inspection
from prunetaylor.report.formats import percent, shorten, size
from prunetaylor.report.terminal.tables import new_table, pairs_table, print_list


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Print a checkpoint's form, its metadata, and every tensor."""
    facts = pairs_table()
    for label, value in inspection_facts(inspection):
        facts.add_row(label, value)
    console.print(facts)
    console.print()
    table = new_table("tensor", "shape", "type", "non-zero", "zeros")
    for tensor in inspection.tensors:
        note = f"same as {shorten(tensor.tied_to)}" if tensor.tied_to else percent(tensor.sparsity)
        name, cells = shorten(tensor.name), (tensor.dtype, f"{tensor.nonzero:,}", note)
        table.add_row(name, "x".join(map(str, tensor.shape)) or "scalar", *cells)
    console.print(table)
    bad = [f"{t.name}: {t.nonfinite:,} values are NaN or infinite" for t in inspection.tensors if t.nonfinite]
    print_list(console, "not finite", bad)
    print_list(console, "notes", inspection.notes)


def inspection_facts(inspection: Inspection) -> list[tuple[str, str]]:
    """Return label and value of what is printed above the table of tensors, without empty values."""
    metadata, zeros = inspection.metadata, percent(inspection.sparsity)
    form = inspection.form if inspection.container == inspection.form else f"{inspection.form} ({inspection.container})"
    facts = [
        ("path", str(inspection.path)),
        ("form", form),
        ("file", size(inspection.bytes)),
        ("sha256", inspection.sha256),
        ("prefix removed", inspection.prefix_removed),
        ("tensors", f"{len(inspection.tensors):,} with {inspection.elements:,} values, {zeros} of them zeros"),
    ]
    if metadata is None:
        facts.append(("metadata", "none: the file does not name its network or data"))
    else:
        facts += [("network", metadata.arch or ""), ("arguments", _flat(metadata.args)), ("data", _flat(metadata.data))]
        facts.append(("removed", _removed(metadata.masks)))
    return [(label, value) for label, value in facts if value]


def _removed(masks: Mapping[str, Mapping[str, int]]) -> str:
    size, kept = (sum(mask.get(key, 0) for mask in masks.values()) for key in ("size", "kept"))
    return f"{size - kept:,} of {size:,} prunable weights ({percent(1 - kept / size)})" if size else ""


def _flat(mapping: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in mapping.items())
