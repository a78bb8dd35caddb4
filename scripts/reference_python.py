"""The page of the Python interface, from its docstrings and the comments beside the results' fields."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from reference_text import HEAD, prose, table
from torch import Tensor, nn

import prunetaylor
from prunetaylor.core.results.outcome import PruneResult
from prunetaylor.core.results.scores import Scores

_FIELD = re.compile(r"^    (\w+): ([^=#]+?)(?: = [^#]+?)?(?:  # (.*))?$", re.MULTILINE)


def python_page() -> str:
    """Return the page."""
    parts = [f"{HEAD}# Python\n", "Everything is in the package `prunetaylor`; importing it imports no torch.\n"]
    for name in ("prune", "score", "load", "keep_masks"):
        parts += [f"## {name}\n", *described(name, getattr(prunetaylor, name))]
    parts += ["## The result of prune\n", *documented(PruneResult), fields(PruneResult)]
    parts += ["### save\n", *described("save", prunetaylor.Result.save)]
    parts += ["## The result of score\n", *documented(Scores), fields(Scores)]
    parts.append("## Parts of results\n")
    for kind in dict.fromkeys([*parts_of(PruneResult), *parts_of(Scores)]):
        parts += [f"### {kind.__name__}\n", *documented(kind), fields(kind)]
    parts += ["## Errors\n", *documented(prunetaylor.PruneTaylorError), "[Exit codes](exit-codes.md) lists them all.\n"]
    return "\n".join(parts)


def hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields; those of torch are imported for type checks alone where they stand."""
    return typing.get_type_hints(kind, localns={"nn": nn, "Tensor": Tensor})


def parts_of(kind: Any) -> Iterator[type]:
    """Yield the dataclasses that the fields of a dataclass hold, and those that theirs hold."""
    for annotation in hints(kind).values():
        for part in (annotation, *typing.get_args(annotation)):
            if inspect.isclass(part) and dataclasses.is_dataclass(part):
                yield part
                yield from parts_of(part)


def described(name: str, function: Any) -> Iterator[str]:
    """Yield the signature of a function and its docstring."""
    given = inspect.signature(function)
    parameters = [one for key, one in given.parameters.items() if key != "self"]
    shown = [_parameter(one) for one in parameters]
    kinds = [one.kind for one in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    lines = "".join(f"    {one},\n" for one in shown)
    yield f"```text\n{name}(\n{lines}) -> {given.return_annotation}\n```\n"
    yield from documented(function)


def _parameter(one: inspect.Parameter) -> str:
    """Return a parameter as a stub file would write it."""
    default = "" if one.default is one.empty else f" = {one.default!r}"
    return f"{one.name}: {one.annotation}{default}"


def documented(thing: Any) -> Iterator[str]:
    """Yield the paragraphs of a docstring; the entries of Args, Returns and Raises become lists."""
    text = inspect.cleandoc(thing.__doc__ or "")
    if text.startswith(f"{getattr(thing, '__name__', '')}("):
        return  # a dataclass without a docstring has its signature there
    for part in re.split(r"\n\n(?!    )", text):
        head, _, rest = part.partition("\n")
        if head in ("Args:", "Returns:", "Raises:"):
            yield f"**{'Arguments' if head == 'Args:' else head[:-1]}**\n"
            yield from entries(inspect.cleandoc(rest), listed=head != "Returns:")
            continue
        said, code, example = part.partition("::\n\n")
        yield prose(" ".join(said.split())) + (":" if code else "") + "\n"
        if code:
            yield f"<!-- not run: an example from a docstring -->\n```python\n{inspect.cleandoc(example)}\n```\n"


def entries(text: str, *, listed: bool) -> Iterator[str]:
    """Yield "name: meaning" entries, whose further lines are indented, as a list."""
    for entry in re.split(r"\n(?! )", text) if listed else [text]:
        name, colon, meaning = entry.partition(": ")
        flat = prose(" ".join((meaning if colon and listed else entry).split()).replace("[default:", "Default:"))
        flat = flat.rstrip("]") if "Default:" in flat else flat
        yield f"- `{name}`: {flat}" if colon and listed else flat
    yield ""


def fields(kind: type) -> str:
    """Return a table of a result's fields, their types and what the comments beside them say."""
    source = inspect.getsource(kind)
    source = source.split("    def ")[0].split("    @property")[0]
    rows = [
        (f"`{name}`", f"`{annotation}`", prose(comment or "")) for name, annotation, comment in _FIELD.findall(source)
    ]
    return table(("field", "type", "meaning"), rows)
