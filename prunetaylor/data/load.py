"""The data section of a configuration, or a user's own objects, become ``Samples``."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from prunetaylor.core import registry
from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.code import NOBODY, Trust, is_code
from prunetaylor.core.config.paths import PATH_SCHEMES, rooted
from prunetaylor.core.config.schema import DataSection, Normalization
from prunetaylor.core.errors import CheckpointRefused, DataError, UsageError, close_match
from prunetaylor.core.progress import Detail
from prunetaylor.core.results.choice import Choice
from prunetaylor.data import augment as augmentation
from prunetaylor.data.conversion import as_split
from prunetaylor.data.inputs import Inputs
from prunetaylor.data.preprocess import Preprocess
from prunetaylor.data.samples import RawSource, Samples, Split, fingerprint
from prunetaylor.data.sources import load_source
from prunetaylor.data.transforms import Named
from prunetaylor.runtime.user_code import load_object

PYTHON = "python"
"""The source of samples that were given as Python objects."""
_NO_DATA = ("/dev/", "/proc/", "/sys/", "/net/")
"""Folders without ordinary files: devices, processes, machines that are mounted on access."""
_WAYS = (
    "digits, torchvision:NAME, folder:DIR, arrays:FILE.npz, csv:FILE, lines:FILE, hf-data:DIR, FILE.py:FUNCTION or none"
)
_RECORDED = {
    "root": str,
    "size": int,
    "target": str,
    "collate": str,
    "columns": list,
    "tokenizer": str,
    "max_length": int,
}
"""Settings of data that a checkpoint may have, and their types."""
_FOLDERS = ("root", "tokenizer")
_FORM = {"collate", "columns", "max_length", "target"}
"""Settings that say which form samples have."""
_TAKES: dict[str, set[str]] = {
    **{name: set() for name in ("arrays", "digits", "folder", "torchvision")},
    "code": {"collate", "target"},
    "csv": {"columns", "max_length", "target"},
    "hf_data": {"columns", "max_length", "target"},
    "lines": {"max_length"},
}
"""Those of our own sources; sources of other packages may take all."""


def load_samples(
    cfg: DataSection,
    *,
    recorded: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    trust: Trust = NOBODY,
    seed: int,
) -> Samples | None:
    """Return the samples that ``cfg`` names, or else those that the checkpoint recorded; None for "none".

    ``recorded`` may have source, normalize, augment and what ``_RECORDED`` lists. It may name files of this machine,
    and code only if ``trust`` covers that. ``tokenizer`` is the folder of the network's own one, for texts of any
    source. Raises UsageError if no source is known or it is invalid, CheckpointRefused for what a
    checkpoint may not ask for, and DataError for bad samples.
    """
    recorded, named = recorded or {}, cfg.collate
    spec, cfg = _source(cfg, recorded)
    if spec == "none":
        return None
    if cfg.tokenizer is None:
        cfg = cfg.model_copy(update={"tokenizer": tokenizer})
    with _recorded_words() if cfg.source is None else nullcontext():
        name, argument = split_spec(spec)
    _check_code(name, argument, cfg, named, trust)
    for key in _FORM - _TAKES.get(name, _FORM):
        if getattr(cfg, key) is not None:
            raise UsageError(f"data.{key} does not apply to {spec.partition(':')[0]}", f"leave out data.{key}")
    raw = load_source(name).read(argument, cfg, seed)
    first = _checked(raw, spec)
    preprocess, normalized = _preprocess(cfg, recorded, raw, spec)
    preprocess.check(first)
    augment, augmented = _augment(cfg, recorded, raw, first)
    return Samples(
        source=spec,
        train=raw.train,
        test=raw.test,
        validation=raw.validation,
        classes=raw.classes,
        preprocess=preprocess,
        augment=augment,
        fingerprint=fingerprint(raw.train, raw.validation, raw.test),
        choices=(normalized, augmented),
    )


def _check_code(name: str, argument: str, cfg: DataSection, named: str | None, trust: Trust) -> None:
    """Refuse code that only the checkpoint names; ``named`` is the collate function that the user named."""
    if name == "code" and cfg.source is None and not trust.covers("data.source", argument):
        raise CheckpointRefused(
            f"this checkpoint needs code for its data: {argument!r}; reading them would run it",
            f"if you trust it, pass --trust-code, or name it or other data: --data {shlex.quote(argument)}",
        )
    if named is None and cfg.collate is not None and not trust.covers("data.collate", cfg.collate):
        raise CheckpointRefused(
            f"this checkpoint needs code to combine its samples: {cfg.collate!r}; using it would run that code",
            f"if you trust it, pass --trust-code, or name it yourself: {shlex.quote(f'data.collate={cfg.collate}')}",
        )


def from_python(
    train: Any,
    test: Any = None,
    validation: Any = None,
    *,
    target: str | None = None,
    collate: str | None = None,
    normalize: str | Mapping[str, Any] | None = None,
    augment: str | Named | Callable[[Tensor], Tensor] = "none",
) -> Samples:
    """Return samples of map-style data sets, DataLoaders of them, or pairs (x, y) of tensors or arrays.

    ``target`` and ``collate`` are as in ``data.target`` and ``data.collate``.

    ``normalize`` is a known name, {"mean": [...], "std": [...]}, or None for inputs that are ready (uint8 is scaled to
    [0, 1] in any case). Without ``test`` results are measured on the training samples. Raises DataError for anything
    that is not a data set, or is empty.
    """
    function = None if collate is None else load_object(collate)

    def convert(samples: Any, name: str) -> Split:
        return as_split(samples, name, target=target, collate=function)

    splits = [convert(train, "train"), convert(train if test is None else test, "test")]
    held_out = None if validation is None else convert(validation, "validation")
    raw = RawSource(splits[0], splits[1], held_out, None)
    first = _checked(raw, PYTHON)
    preprocess = Preprocess.from_json(normalize)
    preprocess.check(first)
    change, _ = augmentation.load_augmentation(augment, first)
    return Samples(
        source=PYTHON,
        train=raw.train,
        test=raw.test,
        validation=held_out,
        classes=None,
        preprocess=preprocess,
        augment=change,
        fingerprint=fingerprint(raw.train, held_out, raw.test),
        choices=_choices_from_python(normalize, preprocess, change),
    )


def _choices_from_python(
    normalize: str | Mapping[str, Any] | None, preprocess: Preprocess, change: str | Named
) -> tuple[Choice[object], ...]:
    """Return the choices that the arguments amount to; transforms without a name are listed by their class."""
    usual = "the default from Python"
    names = change if isinstance(change, str) else [s if isinstance(s, str) else type(s).__name__ for s in change]
    return (
        Choice("data.normalize", preprocess.to_json() or "none", usual if normalize is None else AS_ASKED),
        Choice("data.augment", names, usual if names == "none" else AS_ASKED),
    )


def settings_to_record(cfg: DataSection, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, besides source, normalisation and augmentation, by which samples are found again.

    ``recorded`` are those of the checkpoint that is pruned, which stand in for settings that the user left out.
    """
    given = {**{key: getattr(cfg, key) for key in _RECORDED}, "validation": asked(cfg.validation)}
    values = {key: value or recorded.get(key) for key, value in given.items()}
    return {key: rooted(f"data.{key}", value) for key, value in values.items() if value}


def split_spec(spec: str) -> tuple[str, str]:
    """Return name and argument of a source: "folder:DIR" -> ("folder", "DIR"), "a.py:f" -> ("code", "a.py:f")."""
    head, _, argument = spec.partition(":")
    known = {name.replace("_", "-"): name for name in registry.names(registry.SOURCES)}
    if name := known.get(head.replace("_", "-")):
        return name, argument
    near = close_match(head, [*known, "none"])
    if is_code(spec) and not (near and _is_no_module(head)):
        return "code", spec
    if Path(spec).is_dir() or Path(spec).suffix == ".npz":
        near = f"; did you mean {('folder' if Path(spec).is_dir() else 'arrays') + ':' + spec!r}?"
    raise UsageError(f"unknown data source {spec!r}{near}", f"use {_WAYS}")


def _is_no_module(head: str) -> bool:
    """Return whether nothing can be imported: "torchvsion:CIFAR10" has the form of code too."""
    top = head.partition(".")[0]
    here = Path(top).exists() or Path(f"{top}.py").exists()
    return not head.endswith(".py") and not here and importlib.util.find_spec(top) is None


def _source(cfg: DataSection, recorded: Mapping[str, Any]) -> tuple[str, DataSection]:
    """Return the source's spec, and the section completed by the place that the checkpoint recorded."""
    if cfg.source is not None:
        return cfg.source, cfg
    spec = recorded.get("source")
    if not isinstance(spec, str) or not spec:
        raise UsageError(
            "no data given, and the checkpoint names none",
            f"add --data with {_WAYS}; none prunes by magnitude and measures nothing",
        )
    if spec == PYTHON:
        raise UsageError(
            "this run got its samples from Python, so its folder does not name them",
            f"name them with --data: {_WAYS}",
        )
    filled = {
        key: recorded[key]
        for key, kind in _RECORDED.items()
        if getattr(cfg, key) is None and isinstance(recorded.get(key), kind) and recorded[key]
    }
    share = recorded.get("validation")
    if asked(cfg.validation) is None and isinstance(share, float) and 0 < share < 1:
        filled["validation"] = share  # where samples are shared out, it says which ones test
    if "root" in filled and cfg.download:
        raise UsageError(
            f"data.download would write {spec} into {filled['root']}, a folder that the checkpoint chose",
            f"name it: {shlex.quote('data.root=' + filled['root'])}, or another folder",
        )
    for text in (spec, *(filled.get(key, "") for key in _FOLDERS)):
        if _elsewhere(text):
            raise CheckpointRefused(
                f"the checkpoint's data are not on this machine: {text!r}",
                "name the data yourself with --data",
            )
    return spec, cfg.model_copy(update=filled)


@contextmanager
def _recorded_words() -> Iterator[None]:
    """Refuse the checkpoint for words about its data that are invalid, as the user has not written them."""
    try:
        yield
    except (UsageError, DataError) as err:
        remedy = "name the data, data.normalize or data.augment yourself"
        raise CheckpointRefused(f"the checkpoint's own words about its data: {err.cause}", remedy) from err


def _elsewhere(text: str) -> bool:
    """Return whether opening ``text`` could reach another machine, or something that is no plain file."""
    scheme, _, rest = text.partition(":")
    path = rest if scheme in PATH_SCHEMES else text
    slashed = path.replace("\\", "/")
    return "://" in path or slashed.startswith("//") or "\0" in path or slashed.startswith(_NO_DATA)


def _checked(raw: RawSource, spec: str) -> Inputs:
    """Return the first training sample; raise DataError for empty splits and inputs of different shape or type."""
    parts: dict[str, Split | None] = {"training": raw.train, "test": raw.test, "validation": raw.validation}
    first: Inputs | None = None
    for name, split in parts.items():
        if split is None:
            continue
        if len(split) == 0:
            raise DataError(f"the {name} set of {spec} is empty", "give at least one sample")
        sample = split.fetch([0])[0]
        if first is None:
            first = sample
        elif split.collate is None and sample.describe() != first.describe():
            raise DataError(
                f"a {name} input of {spec} is {sample.describe()}, a training input is {first.describe()}",
                "give them one shape and type",
            )
    assert first is not None
    return first


def _preprocess(
    cfg: DataSection, recorded: Mapping[str, Any], raw: RawSource, spec: str
) -> tuple[Preprocess, Choice[object]]:
    key, given = "data.normalize", asked(cfg.normalize)
    if given is not None:
        preprocess = Preprocess.from_json(given.model_dump() if isinstance(given, Normalization) else given)
        return preprocess, Choice(key, preprocess.to_json() or "none", AS_ASKED)
    if "normalize" in recorded and asked(recorded["normalize"]) is not None:
        with _recorded_words():
            preprocess = Preprocess.from_json(recorded["normalize"])
        reason = "from the checkpoint"
        return preprocess, Choice(key, preprocess.to_json() or "none", reason, f"normalization: {reason}")
    source = spec.partition(":")[0]
    line = f"normalization: {raw.normalize} (default for {source}; set data.normalize if you trained with another)"
    return Preprocess.from_json(raw.normalize), Choice(key, raw.normalize, f"the default for {source}", line)


def _augment(
    cfg: DataSection, recorded: Mapping[str, Any], raw: RawSource, first: Inputs
) -> tuple[str | Named, Choice[object]]:
    key, given, named = "data.augment", asked(cfg.augment), recorded.get("augment")
    if given is not None:
        name = augmentation.load_augmentation(given, first)[0]
        return name, Choice(key, name, AS_ASKED)
    if isinstance(named, str | list) and asked(named) is not None:
        _require_small(named, first)
        with _recorded_words():
            name = augmentation.load_augmentation(named, first)[0]
        reason = "from the checkpoint"
        return name, Choice(key, name, reason, Detail(f"augmentation: {reason}"))
    name, reason = augmentation.load_augmentation(raw.augment, first)[0], "default for such samples"
    return name, Choice(key, name, reason, Detail(f"augmentation: {name} ({reason})"))


def _require_small(named: Any, first: Inputs) -> None:
    """Raise CheckpointRefused if the sizes in a file's transforms (Pad, Resize) would fill the memory."""
    sizes, pending = 0.0, [named]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list | tuple):
            pending += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int | float):
            sizes += abs(value)
    if sizes > max(4096, 16 * max(max(tensor.shape[1:], default=1) for tensor in first.tensors())):
        raise CheckpointRefused(
            f"the file's own augmentation has sizes far above those of its images {first.describe()}",
            "name one with data.augment, or leave it out with data.augment=none",
        )
