"""The tokenizer in a model's folder, which somebody else may have written: its own code is never run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunetaylor.core.errors import CheckpointRefused, DataError, UsageError
from prunetaylor.core.json_file import read_json
from prunetaylor.core.text import first_line, neutral
from prunetaylor.data.text.padding import Padding
from prunetaylor.runtime.transformers_import import import_transformers, offline_and_quiet

_CONFIG = "tokenizer_config.json"
_LENGTHS = (("sentence_bert_config.json", "max_seq_length"), ("config.json", "max_position_embeddings"))
_UNLIMITED = 1 << 20
"""Lengths from here on mean that there is no limit."""


class Tokenizer:
    """A tokenizer with the length at which texts are cut."""

    def __init__(self, tokenizer: Any, longest: int | None) -> None:
        self._tokenizer, self.longest = tokenizer, longest
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        values = {"input_ids": pad, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
        self.padding = Padding(values, tokenizer.padding_side)

    def encode(self, texts: Sequence[str], others: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
        """Return a dictionary for each text, or pair of texts: its tokens, its mask, and what else the network takes.

        Raises DataError: the texts cannot be tokenised.
        """
        try:
            encoded = self._tokenizer(
                list(texts),
                None if others is None else list(others),
                truncation=self.longest is not None,
                max_length=self.longest,
                padding=False,
            )
        except Exception as error:  # a tokenizer that somebody else wrote
            raise DataError(
                f"the texts cannot be tokenised: {type(error).__name__}: {neutral(first_line(error))}",
                "name another tokenizer with data.tokenizer=DIR",
            ) from error
        return [{name: encoded[name][i] for name in encoded} for i in range(len(texts))]


def load_tokenizer(folder: str | None, longest: int | None, source: str) -> Tokenizer:
    """Return the tokenizer in ``folder``; texts are cut at ``longest`` tokens, by default where its files say.

    Raises UsageError (no folder, no transformers) and CheckpointRefused (it brings code, or cannot be read).
    """
    if folder is None:
        raise UsageError(f"{source} has texts, and there is no tokenizer", "name the folder of one: data.tokenizer=DIR")
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UsageError(f"{neutral(folder)} is no folder with a tokenizer", "nothing is fetched from a hub")
    if _read(place / _CONFIG).get("auto_map"):
        raise CheckpointRefused(
            f"{place / _CONFIG} brings code of its own (auto_map), which is never run",
            "if you trust it, tokenise in a function of yours: --data FILE.py:FUNCTION",
        )
    transformers = import_transformers(f"the tokenizer in {place}")
    try:
        with offline_and_quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:
        raise CheckpointRefused(
            f"the tokenizer in {place} cannot be read: {type(error).__name__}: {neutral(first_line(error))}",
            "save it again, tokenizer.save_pretrained(DIR), or name another with data.tokenizer=DIR",
        ) from error
    return Tokenizer(tokenizer, longest or _longest(place, tokenizer.model_max_length))


def _longest(folder: Path, own: int) -> int | None:
    stated = [_read(folder / name).get(key) for name, key in _LENGTHS]
    lengths = [value for value in (own, *stated) if isinstance(value, int) and 0 < value < _UNLIMITED]
    return min(lengths, default=None)


def _read(file: Path) -> dict[str, Any]:
    """Return a JSON object in the folder; empty if there is no such file, or nothing of the kind in it."""
    try:
        document = read_json(file)
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
