"""Folders as transformers and sentence-transformers write them, with tiny networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunetaylor.runtime.torchvision_import import repair_imports

WORDS = "the cat dog sat ran on a mat road and then it was far too old".split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}


def transformers() -> Any:
    """Return transformers; the test is skipped without it."""
    repair_imports()
    return pytest.importorskip("transformers", reason="the extra transformers is not installed")


def bert_folder(folder: Path, kind: str = "BertModel", **save: Any) -> Path:
    """Write a BERT of two layers with its tokenizer, and return the folder."""
    library = transformers()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(library, kind)(library.BertConfig(**SIZES)).save_pretrained(folder, **save)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers().PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def with_pooling(folder: Path, mode: str = "mean", *, normalized: bool = True) -> Path:
    """Add what sentence-transformers keeps beside a network."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalized else [])]
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
    )
    (folder / "1_Pooling").mkdir()
    keys = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {f"pooling_mode_{key}": key.startswith(mode) and (mode != "mean" or key == "mean_tokens") for key in keys}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **pooling})
    return folder


def edit_config(folder: Path, **entries: Any) -> None:
    """Change entries of config.json."""
    file = folder / "config.json"
    write_json(file, json.loads(file.read_text()) | entries)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file."""
    file.write_text(json.dumps(value))
