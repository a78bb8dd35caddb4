"""hf-data:DIR: a data set of Hugging Face, as its ``save_to_disk`` writes it (extra ``datasets``).

Of several splits, ``train`` calibrates and trains, ``validation`` chooses and ``test`` reports; with one of the two, it
reports. A single split is shared out: a fifth, or the share ``data.validation``, are the test samples.

The column of the targets is ``data.target``, else one with a usual name; ``data.columns`` chooses the inputs. A single
column of images or numbers is the network's argument, several are keyword arguments; one or two columns of text are
tokenised, by the tokenizer of the network's folder or of ``data.tokenizer``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.core.requirements import install_hint
from prunetaylor.core.text import first_line, neutral
from prunetaylor.data.conversion import as_split
from prunetaylor.data.images import Images, image_splits
from prunetaylor.data.samples import RawSource, Split
from prunetaylor.data.sources._columns import CHOOSE, choose_columns
from prunetaylor.data.sources._file import shared_out
from prunetaylor.data.text.padding import Padding
from prunetaylor.data.text.tokenizer import load_tokenizer

_SAVE = "write it with datasets.Dataset.save_to_disk(DIR)"
_TESTS = ("test", "validation", "val", "dev")
"""Splits that may report, the first that is there."""


def read(argument: str, cfg: DataSection, seed: int) -> RawSource:
    """Inputs as the columns hold them, targets int64 (N,) or as they are. DataError where the folder cannot be read."""
    if not argument:
        raise UsageError("the source hf-data needs a folder", "use hf-data:DIR")
    source, parts = f"hf-data:{argument}", _open(argument)
    first = next(iter(parts.values()))
    inputs, target = choose_columns(first.column_names, cfg, source)
    classes = getattr(first.features[target], "num_classes", None) if target is not None else None
    if classes is not None and [type(first.features[name]).__name__ for name in inputs] == ["Image"]:
        images = [
            Images(_opener(part, inputs[0]), f"image {{}} of {name} of {source}".format, torch.tensor(part[target][:]))
            for name, part in parts.items()
        ]
        splits = dict(zip(parts, image_splits(images, cfg.size), strict=True))
        return _source(splits, classes, "usual", cfg, source)
    splits = {name: _split(part, inputs, target, cfg, f"{name} of {source}") for name, part in parts.items()}
    return _source(splits, classes, "none", cfg, source)


def _open(folder: str) -> dict[str, Any]:
    """Return the splits by name."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise UsageError(f"the source hf-data needs datasets: {error}", install_hint("datasets")) from error
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(f"{place} is not a folder", _SAVE)
    try:
        opened = datasets.load_from_disk(str(place))
    except Exception as error:  # foreign bytes can raise anything
        raise DataError(
            f"{place} cannot be read: {type(error).__name__}: {neutral(first_line(error))}", _SAVE
        ) from error
    return dict(opened) if isinstance(opened, Mapping) else {"samples": opened}


def _source(splits: dict[str, Split], classes: int | None, augment: str, cfg: DataSection, source: str) -> RawSource:
    if len(splits) == 1:
        (whole,) = splits.values()
        train, test = shared_out(len(whole), cfg, source)
        return RawSource(whole.subset(train), whole.subset(test), None, classes, augment=augment)
    tests = [name for name in _TESTS if name in splits]
    if "train" not in splits or not tests:
        raise DataError(f"{source} has the splits {', '.join(splits)}", "it needs train, and test or validation")
    validation = splits[tests[1]] if len(tests) > 1 else None
    return RawSource(splits["train"], splits[tests[0]], validation, classes, augment=augment)


def _split(part: Any, inputs: list[str], target: str | None, cfg: DataSection, name: str) -> Split:
    texts = [column for column in inputs if _is_text(part.features[column])]
    if texts and (len(texts) < len(inputs) or len(texts) > 2):
        raise DataError(
            f"{name} has {neutral(', '.join(inputs))} as inputs, of which {neutral(texts[0])} is text",
            f"inputs are one or two columns of text, or columns without text: {CHOOSE}",
        )
    if texts:
        tokenizer = load_tokenizer(cfg.tokenizer, cfg.max_length, name)
        samples = tokenizer.encode(*(part[column][:] for column in texts))
        if target is not None:
            samples = [{**sample, target: value} for sample, value in zip(samples, part[target][:], strict=True)]
        return as_split(samples, name, target=target, collate=tokenizer.padding)
    sequences = len(inputs) > 1 and any(hasattr(part.features[column], "feature") for column in inputs)
    padding = load_tokenizer(cfg.tokenizer, None, name).padding if sequences and cfg.tokenizer else Padding()
    rows = _Rows(part, inputs, target)
    return as_split(rows, name, target=target if len(inputs) > 1 else None, collate=padding if sequences else None)


class _Rows:
    """The rows of a data set: dictionaries, or with a single column of inputs its value and the target."""

    def __init__(self, part: Any, inputs: list[str], target: str | None) -> None:
        self._part, self._inputs, self._target = part, inputs, target

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Any:
        row = self._part[index]
        if len(self._inputs) == 1:
            value = row[self._inputs[0]]
            return value if self._target is None else (value, row[self._target])
        return {name: row[name] for name in [*self._inputs, *([self._target] if self._target else [])]}


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _opener(part: Any, column: str) -> Callable[[int], Image.Image]:
    return lambda index: part[index][column]
