"""The modules of a sentence-transformers folder: what becomes of a network's outputs for each token.

The network stays as it is, with its own names of layers and tensors: a forward hook makes the sentence's embedding of
its last hidden states (Reimers and Gurevych 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.core.json_file import read_json
from prunetaylor.core.text import neutral
from prunetaylor.network.checkpoint.huggingface.folder import CONFIG, read_object

MODULES = "modules.json"
_FORM = "{} is not as sentence-transformers writes it"
_COPY = "copy the whole folder again"


def _cls(hidden: Tensor, mask: Tensor) -> Tensor:
    first = mask.to(torch.uint8).argmax(1)  # tokens may be padded on the left
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def _last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    last = mask.shape[1] - 1 - mask.to(torch.uint8).flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)


def _sum(hidden: Tensor, weights: Tensor) -> Tensor:
    return (hidden * weights[..., None].to(hidden.dtype)).sum(1)


def _count(hidden: Tensor, weights: Tensor) -> Tensor:
    return weights.to(hidden.dtype).sum(1, keepdim=True).clamp(min=1e-9)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _sum(hidden, mask) / _count(hidden, mask)


def _mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    return _sum(hidden, mask) / _count(hidden, mask).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _sum(hidden, weights) / _count(hidden, weights)


MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
"""Functions of hidden states (B, T, D) and a mask (B, T), 1 for tokens that count, that return (B, D)."""
_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Pooling(NamedTuple):
    """The way from the tokens' hidden states to an embedding: modes, whose results are concatenated, and its norm."""

    modes: tuple[str, ...]
    normalized: bool

    def attach(self, module: nn.Module) -> None:
        """Let ``module`` return embeddings (B, D) in place of its own outputs."""
        module.register_forward_hook(self._embed, with_kwargs=True)

    def _embed(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Tensor:
        hidden: Tensor = result[0]
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        pooled = torch.cat([MODES[mode](hidden, mask) for mode in self.modes], 1)
        return normalize(pooled) if self.normalized else pooled

    def __str__(self) -> str:
        return f"{' and '.join(self.modes)} of the tokens{', normalised' if self.normalized else ''}"


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the network itself: ``folder``, or the subfolder that its modules.json names for it."""
    for kind, path in _modules(folder):
        if kind == "Transformer":
            return path
    return folder


def read_pooling(folder: Path) -> Pooling | None:
    """Return the pooling of a sentence-transformers folder; None for any other folder.

    Raises CheckpointRefused: its files are malformed, or it has modules besides a transformer, pooling and norm.
    """
    modes: tuple[str, ...] = ()
    normalized = False
    for kind, path in _modules(folder):
        if kind == "Pooling":
            modes = _modes(path / CONFIG)
        elif kind == "Normalize":
            normalized = True
        elif kind not in ("Transformer", "Dropout"):
            raise CheckpointRefused(
                f"{folder / MODULES} has a module {neutral(kind, 60)}, which is unknown here",
                "build the network in a function of yours: --arch FILE.py:FACTORY",
            )
    return Pooling(modes, normalized) if modes else None


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return class and folder of each module of modules.json, in order; none without such a file."""
    file = folder / MODULES
    if not file.is_file():
        return []
    try:
        document = read_json(file)
        entries = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in document]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointRefused(_FORM.format(file), _COPY) from error
    for _, path in entries:
        if Path(path).name != path and path:
            raise CheckpointRefused(f"{file} names a folder outside its own: {neutral(path)}", _COPY)
    return [(kind, folder / path) for kind, path in entries]


def _modes(file: Path) -> tuple[str, ...]:
    config = read_object(file)
    named = config.get("pooling_mode")  # as newer versions write it
    modes = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    modes = modes or [mode for key, mode in _KEYS.items() if config.get(key) is True]
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise CheckpointRefused(
            f"{file} has the pooling {neutral(unknown[0], 60) if unknown else 'of no mode'}, which is unknown here",
            "build the network in a function of yours: --arch FILE.py:FACTORY",
        )
    return tuple(modes)
