"""Import transformers late, and call it so that it neither fetches anything nor writes to the terminal."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from prunetaylor.core.errors import UsageError
from prunetaylor.core.requirements import install_hint
from prunetaylor.runtime.torchvision_import import repair_imports

_NAME = "transformers"


def import_transformers(purpose: str) -> ModuleType:
    """Return transformers; UsageError, which says that ``purpose`` needs it, if it cannot be imported."""
    repair_imports()  # transformers imports torchvision if that is installed
    try:
        return importlib.import_module(_NAME)
    except ImportError as error:
        raise UsageError(f"{purpose} needs transformers: {error}", install_hint(_NAME)) from error


@contextmanager
def offline_and_quiet(transformers: ModuleType) -> Iterator[None]:
    """Let nothing be fetched and nothing be shown in the block: neither warnings, progress bars nor log messages."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    logging = transformers.utils.logging
    offline, level, bars = constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
