"""FILE.py:FUNCTION or package.module:FUNCTION: the user's own function, called without arguments.

It returns (train, test) or (train, validation, test); each is a map-style data set, a DataLoader of one, or tensors
(x, y). Training samples may be inputs alone, which have no labels.
"""

from __future__ import annotations

import contextlib
import sys

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, PruneTaylorError, UsageError
from prunetaylor.data.conversion import as_split
from prunetaylor.data.samples import RawSource, TensorSplit
from prunetaylor.runtime.user_code import load_object


def read(argument: str, cfg: DataSection, seed: int) -> RawSource:
    """Splits of what the function returns. UsageError where it cannot be found, DataError where it or its data fail."""
    function = load_object(argument)
    if not callable(function):
        raise UsageError(
            f"{argument} is a {type(function).__name__}, not a function",
            "name a function that takes no arguments and returns (train, test)",
        )
    try:
        # Stdout belongs to the run's result.
        with contextlib.redirect_stdout(sys.stderr):
            parts = function()
    except PruneTaylorError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{argument} failed: {type(error).__name__}: {error}", "fix the function; it is called without arguments"
        ) from error
    if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
        kind = f"{len(parts)} values" if isinstance(parts, tuple | list) else f"a {type(parts).__name__}"
        raise DataError(f"{argument} returned {kind}", "return (train, test) or (train, validation, test) data sets")
    names = ("train", "test") if len(parts) == 2 else ("train", "validation", "test")
    collate = None if cfg.collate is None else load_object(cfg.collate)
    splits = {
        n: as_split(part, f"{n} of {argument}", target=cfg.target, collate=collate)
        for n, part in zip(names, parts, strict=True)
    }
    return RawSource(
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        classes=None,
        # A data set has transforms of its own; only bare tensors are ours to augment.
        augment="usual" if isinstance(splits["train"], TensorSplit) else "none",
    )
