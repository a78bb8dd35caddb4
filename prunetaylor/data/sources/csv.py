"""csv:FILE: a table with a header; a column holds the targets, the others are the inputs.

The column of the targets is ``data.target``, else one with a usual name (label, labels, target, targets, y); without
one the samples have no labels. ``data.columns`` chooses the inputs. Numbers become features (N, F). One or two columns
of text are tokenised, by the tokenizer of the network's folder or of ``data.tokenizer``. A fifth of the rows, or the
share ``data.validation``, are the test samples.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence

import torch
from torch import Tensor

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError
from prunetaylor.core.text import neutral
from prunetaylor.data.conversion import as_split
from prunetaylor.data.samples import RawSource, Split, TensorSplit
from prunetaylor.data.sources._columns import CHOOSE, choose_columns
from prunetaylor.data.sources._file import read_text, shared_out
from prunetaylor.data.text.tokenizer import load_tokenizer

_DELIMITERS = ",;\t|"
Table = dict[str, list[str]]
"""The columns of a table by name, each with the text of every row."""


def read(argument: str, cfg: DataSection, seed: int) -> RawSource:
    """Inputs float32 (N, F) or tokens, targets int64 or float32 (N,). DataError names the row that is malformed."""
    table = _table(read_text(argument, "csv"), argument)
    inputs, target = choose_columns(list(table), cfg, f"csv:{argument}")
    train, test = shared_out(len(table[inputs[0]]), cfg, f"csv:{argument}")
    targets, classes = (None, None) if target is None else _targets(target, table[target])
    samples = _samples({name: table[name] for name in inputs}, targets, cfg, f"csv:{argument}")
    return RawSource(samples.subset(train), samples.subset(test), None, classes, augment="none")


def _table(text: str, path: str) -> Table:
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[: 1 << 16], _DELIMITERS)
    except csv.Error:  # a single column
        dialect = csv.excel
    try:
        rows = [row for row in csv.reader(text.splitlines(), dialect, strict=True) if row]
    except csv.Error as error:
        raise DataError(f"{path} is malformed: {error}", "write it with Python's csv module") from error
    if len(rows) < 2 or len(set(rows[0])) < len(rows[0]):
        raise DataError(f"{path} has no header with distinct names and rows below it", "name its columns in line 1")
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise DataError(
                f"row {number} of {path} has {len(row)} values, the header names {len(header)} columns", "complete it"
            )
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(header)}


def _samples(table: Table, targets: Tensor | None, cfg: DataSection, source: str) -> Split:
    texts = [name for name, values in table.items() if not all(map(_is_number, values))]
    if not texts:
        features = torch.stack([_numbers(name, values) for name, values in table.items()], 1)
        return TensorSplit(features, targets)
    if len(table) > 2 or len(texts) < len(table):
        raise DataError(
            f"the column {neutral(texts[0])} of {source} is not numeric: {neutral(_first_text(table[texts[0]]), 40)!r}",
            f"inputs are numbers, or one or two columns of text: {CHOOSE}",
        )
    tokenizer = load_tokenizer(cfg.tokenizer, cfg.max_length, source)
    samples = tokenizer.encode(*table.values())
    if targets is not None:
        samples = [{**sample, "labels": target} for sample, target in zip(samples, targets.tolist(), strict=True)]
    return as_split(samples, source, collate=tokenizer.padding)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_text(values: Sequence[str]) -> str:
    return next(value for value in values if not _is_number(value))


def _numbers(name: str, values: Sequence[str]) -> Tensor:
    numbers = torch.tensor([float(value) for value in values], dtype=torch.float64).float()
    if not bool(torch.isfinite(numbers).all()):
        row = int((~torch.isfinite(numbers)).nonzero()[0]) + 1
        raise DataError(f"the column {neutral(name)!r} has {float(numbers[row - 1])} in row {row}", "leave the row out")
    return numbers


def _targets(name: str, values: Sequence[str]) -> tuple[Tensor, int | None]:
    """Return class ids and the number of classes, or real numbers; text is numbered in its sorted order."""
    if not all(map(_is_number, values)):
        names = sorted(set(values))
        number = {one: i for i, one in enumerate(names)}
        return torch.tensor([number[value] for value in values]), len(names)
    numbers = _numbers(name, values)
    if bool((numbers != numbers.round()).any() | (numbers < 0).any()) or any("." in value for value in values):
        return numbers, None
    return numbers.long(), int(numbers.max()) + 1
