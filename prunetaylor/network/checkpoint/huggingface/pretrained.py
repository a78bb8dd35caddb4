"""A network of transformers, built from a folder's description and filled with tensors that were read safely."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import CheckpointRefused, PruneTaylorError, UsageError, close_match
from prunetaylor.core.text import first_line, neutral
from prunetaylor.network.checkpoint.architecture.size_limit import limit_parameters
from prunetaylor.network.checkpoint.huggingface.config import NetworkConfig, read_config
from prunetaylor.network.checkpoint.huggingface.folder import CONFIG, named_folder
from prunetaylor.network.checkpoint.huggingface.pooling import read_pooling, transformer_folder
from prunetaylor.runtime.transformers_import import import_transformers, offline_and_quiet

SCHEME = "hf"
_UPDATE = "update transformers, or build the network in a function of yours: --arch FILE.py:FACTORY"
_FACTOR = 2
"""How much larger than the file's tensors the network may be."""


def load_pretrained(spec: str, args: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[nn.Module, str]:
    """Return the network of ``hf:DIR`` with the tensors of ``state``, and a few words on what it is.

    It is in eval mode, in float32 and on the CPU. ``args`` replace entries of config.json. transformers' own rules map
    old names of tensors to new ones. Attention is computed step by step ("eager"), because the fused operator lacks
    derivatives that pruning needs.

    Raises UsageError (no such folder, no transformers, a class that this version lacks, arguments that do not fit) and
    CheckpointRefused (a description that is refused; tensors missing, unexpected or of another shape, which it names).
    """
    folder = named_folder(spec.partition(":")[2])
    pooling, described = read_pooling(folder), read_config(transformer_folder(folder))
    transformers = import_transformers(f"the network in {folder}")
    with offline_and_quiet(transformers), torch.random.fork_rng(devices=[]):
        kind = _class(transformers, described, pooled=pooling is not None)
        config = _config(kind, described, args, folder)
        try:
            with limit_parameters(state, spec, args, _FACTOR):
                module, info = kind.from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(state),
                    **_without_pooler(kind, state),
                    attn_implementation="eager",
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except PruneTaylorError:
            raise
        except Exception as error:  # foreign numbers can raise anything
            raise CheckpointRefused(
                f"{kind.__name__} cannot be built as {folder / CONFIG} describes it: {neutral(first_line(error))}",
                _UPDATE,
            ) from error
    network: nn.Module = module.eval()
    if pooling is None:
        _require_fit(info, kind.__name__, folder)
        return network, kind.__name__
    head = sorted(info["unexpected_keys"])
    _require_fit({**info, "unexpected_keys": []}, kind.__name__, folder)
    pooling.attach(network)
    without = f" without the file's {head[0]!r}{_more(head)}" if head else ""
    return network, f"{kind.__name__}{without}, {pooling}"


def tokenizer_folder(spec: str | None) -> str | None:
    """Return the folder of the tokenizer that belongs to a network ``hf:DIR``; None for any other network."""
    scheme, _, path = (spec or "").partition(":")
    return str(transformer_folder(named_folder(path))) if scheme == SCHEME else None


def _without_pooler(kind: Any, state: Mapping[str, Tensor]) -> dict[str, bool]:
    """Return the argument that leaves out the layer after the first token, if there is one and the file lacks it."""
    optional = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if optional and not any("pooler." in name for name in state) else {}


def _class(transformers: ModuleType, described: NetworkConfig, *, pooled: bool) -> Any:
    """Return the class of transformers that the folder names, or the one without a head for its type."""
    name = described.architecture
    # sentence-transformers pools the hidden states of the network without its head
    if name is not None and not (pooled and not name.endswith("Model")):
        kind = getattr(transformers, name, None)
        own = isinstance(kind, type) and kind.__module__.startswith("transformers.")
        if kind is None or not own or not issubclass(kind, transformers.PreTrainedModel):
            raise UsageError(f"transformers {transformers.__version__} has no network {neutral(name, 80)}", _UPDATE)
        return kind
    known = transformers.CONFIG_MAPPING
    if described.model_type not in known:
        near = close_match(described.model_type, known)
        raise UsageError(
            f"transformers {transformers.__version__} has no networks of type {described.model_type!r}{near}", _UPDATE
        )
    return transformers.MODEL_MAPPING[known[described.model_type]]


def _config(kind: Any, described: NetworkConfig, args: Mapping[str, Any], folder: Path) -> Any:
    config_class = kind.config_class
    if config_class.model_type != described.model_type:
        raise CheckpointRefused(
            f"{folder / CONFIG} names {kind.__name__}, which is of type {config_class.model_type!r}, "
            f"and the type {described.model_type!r}",
            "copy the whole folder again",
        )
    try:
        config = config_class.from_dict({**described.values, "use_cache": False, **args})
    except Exception as error:
        message = f"{folder / CONFIG} does not describe a {kind.__name__}: {neutral(first_line(error))}"
        raise (UsageError if args else CheckpointRefused)(message, "see model.args, and config.json itself") from error
    known = {*described.values, *inspect.signature(config_class.__init__).parameters, *dir(config_class)}
    if unknown := sorted(set(args) - known):
        raise UsageError(f"{kind.__name__} has no setting {unknown[0]!r}", f"see {folder / CONFIG}")
    return config


def _require_fit(info: Mapping[str, Any], kind: str, folder: Path) -> None:
    """Raise CheckpointRefused unless every tensor of the network is in the file and the other way round."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    other = sorted(info["mismatched_keys"])
    parts = []
    if other:
        name, given, own = other[0]
        parts.append(f"{name!r} is {_shape(given)} in the file and {_shape(own)} in {kind}{_more(other)}")
    if missing:
        parts.append(f"{kind} has {missing[0]!r}, which the file has not{_more(missing)}")
    if unexpected:
        parts.append(f"the file has {unexpected[0]!r}, which {kind} has not{_more(unexpected)}")
    if parts:
        raise CheckpointRefused(
            f"the weights do not fit the network in {folder}: {neutral('; '.join(parts))}",
            f"give the weights and {CONFIG} of one network; change its numbers with model.args.KEY=VALUE",
        )


def _shape(size: Any) -> str:
    return "x".join(map(str, size)) or "a scalar"


def _more(names: list[Any]) -> str:
    return f" ({len(names) - 1} more)" if len(names) > 1 else ""
