"""config.json of a folder that somebody else may have written: read, bounded, and freed of everything but a network.

Nothing in it may run code, fetch or open anything: not the folder's own modules (``auto_map``), not a kernel or a
pretrained backbone that it names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.core.text import neutral
from prunetaylor.network.checkpoint.huggingface.folder import CONFIG, read_object

_DROPPED = re.compile(
    r"_name_or_path|transformers_version|_commit_hash|(_?attn|_?experts)_implementation\w*|use_kernels|kernel_config|"
    r"fusion_config|distributed_config|transformers_weights|(torch_)?dtype|torchscript|task_specific_params|"
    r"gradient_checkpointing|label2id|\w*(tp|pp|ep)_plan"
)
"""Entries about where a network came from or how it is computed, which this package decides itself."""
_PRETRAINED = re.compile(r"pretrain|download|checkpoint", re.IGNORECASE)
_CODE = "auto_map"
_PLAIN = re.compile(r"[\w.,:|@ +-]{0,200}")
_LARGEST = 1 << 27
_MOST_LAYERS = 10_000
_BASES = re.compile(r"theta|base", re.IGNORECASE)
"""Numbers that are no sizes."""


class NetworkConfig(NamedTuple):
    """The description of a network: its type, its class if it is named, and the arguments of its configuration."""

    model_type: str
    architecture: str | None
    values: dict[str, Any]


def read_config(folder: Path) -> NetworkConfig:
    """Return what config.json says about the network.

    Raises CheckpointRefused: it is malformed, brings code of its own, or describes quantised weights.
    """
    file = folder / CONFIG
    document = read_object(file)
    values = _cleaned(document, file)
    model_type, named = document.get("model_type"), document.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if not isinstance(model_type, str) or not re.fullmatch(r"[\w-]{1,100}", model_type):
        raise CheckpointRefused(f"{file} names no model_type", "give a folder that transformers wrote")
    if architecture is not None and not (isinstance(architecture, str) and architecture.isidentifier()):
        raise CheckpointRefused(f"{file} names no class in architectures", "give a folder that transformers wrote")
    return NetworkConfig(model_type, architecture, values)


def _cleaned(section: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return a section of the configuration without what is dropped, all its values checked."""
    if section.get(_CODE):
        raise CheckpointRefused(
            f"{file} brings code of its own ({_CODE}), which is never run",
            "if you trust it, build the network in a function of yours: --arch FILE.py:FACTORY",
        )
    if section.get("quantization_config"):
        raise CheckpointRefused(
            f"{file} describes quantised weights (quantization_config)", "prune the network before it is quantised"
        )
    cleaned: dict[str, Any] = {}
    for key, value in section.items():
        if _DROPPED.fullmatch(key):
            continue
        if key == "id2label" and isinstance(value, dict):
            cleaned["num_labels"] = len(value)
        elif _PRETRAINED.search(key) and value is True:
            cleaned[key] = False
        elif _is_plain(value):
            cleaned[key] = _checked(key, value, file)
    return cleaned


def _checked(key: str, value: Any, file: Path) -> Any:
    if isinstance(value, dict):
        return _cleaned(value, file)
    if isinstance(value, list):
        return [_checked(key, one, file) for one in value]
    if isinstance(value, int) and not isinstance(value, bool):
        _require_size(key, value, file)
    return value


def _is_plain(value: Any) -> bool:
    """Return whether a value has no text but plain words; paths, addresses and prose mean nothing to a network."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not isinstance(value, str) or (_PLAIN.fullmatch(value) is not None and not value.startswith("."))


def _require_size(key: str, value: int, file: Path) -> None:
    most = _MOST_LAYERS if "layer" in key else _LARGEST
    if abs(value) > most and not _BASES.search(key):
        raise CheckpointRefused(
            f"{file} has {neutral(key, 60)}={value}, far more than networks have", "copy the folder again"
        )
