"""Samples of one text file: its text, and how they are shared out into those that test and those that train."""

from __future__ import annotations

import random
from pathlib import Path

from prunetaylor.core.config.asked import asked
from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError

TEST_SHARE = 0.2
_SEED = 0


def read_text(argument: str, scheme: str) -> str:
    """Return the text of the file that ``scheme:argument`` names.

    Raises UsageError (no file is named) and DataError (it cannot be read, or is not UTF-8).
    """
    if not argument:
        raise UsageError(f"the source {scheme} needs a file", f"use {scheme}:FILE")
    path = Path(argument).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", f"check the path after {scheme}:") from error
    except UnicodeDecodeError as error:
        cause = f"{path} is not UTF-8: {error.reason} at byte {error.start}"
        raise DataError(cause, "save it as UTF-8") from error


def shared_out(count: int, cfg: DataSection, source: str) -> tuple[list[int], list[int]]:
    """Return the indices of the training and of the test samples, each in the file's order.

    The share of the test is ``data.validation``, else a fifth, drawn with a fixed seed: every run sees the same split,
    so that a run, its gate and the trials of a sweep are comparable. Raises DataError: there are fewer than two.
    """
    if count < 2:
        raise DataError(f"{source} has fewer than two samples", "give two at least, one of them for the test")
    share = asked(cfg.validation)
    tested = min(count - 1, max(1, round(count * (TEST_SHARE if share is None else share))))
    test = set(random.Random(_SEED).sample(range(count), tested))
    return [i for i in range(count) if i not in test], sorted(test)
