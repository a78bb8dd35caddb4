"""The state_dict inside a checkpoint's contents: in nested dictionaries, EMA copies, and under wrappers' prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.network.checkpoint.torch_format.descriptions import Described

# In this order: trained weights before averaged ones.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "weights", "params")
_AVERAGED = ("model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "ema", "shadow")
_NEVER = ("optim", "sched", "scaler", "rng", "loss", "criterion")
_DEEPEST = 4

# Path components that torch.compile, FSDP and activation checkpointing put into parameter names, anywhere.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


T = TypeVar("T")


@dataclass(frozen=True)
class Unwrapped:
    """A state_dict with plain names, and how it was found."""

    state: dict[str, Described]
    path: tuple[str, ...]  # keys that lead to the state_dict; empty for a plain one
    prefix_removed: str  # wrappers' names taken off the parameter names, e.g. "module._orig_mod."
    notes: tuple[str, ...]  # choices that were made


def unwrap(contents: Any) -> Unwrapped:
    """Return the one state_dict in ``contents``, with plain names.

    Raises CheckpointRefused if nothing holds tensors by name, or if several networks have equal standing.
    """
    path, holder = _search(contents, ())
    notes = []
    if path:
        others = _others(contents, path)
        notes.append(f"weights taken from {_at(path)!r}" + (f", not from {', '.join(others)}" if others else ""))
    state = {k: v for k, v in holder.items() if isinstance(k, str) and isinstance(v, Described)}
    omitted = [str(k) for k in holder if k not in state]
    if omitted:
        notes.append(f"entries without a tensor left out: {_some(omitted)}")
    state, prefix = plain_names(state)
    if prefix:
        notes.append(f"prefix {prefix!r} removed from the names")
    return Unwrapped(state, path, prefix, tuple(notes))


def plain_names(state: Mapping[str, T]) -> tuple[dict[str, T], str]:
    """Return the state under names without the prefixes of DataParallel, torch.compile and others, and the prefix."""
    names, removed = {k: k for k in state}, ""
    counter = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside its module
    if counter in names and len(names) > 1 and all(k.startswith("module.") for k in names if k != counter):
        del names[counter]
    while names:
        if all(n.startswith("module.") for n in names.values()):
            names, removed = {k: n.removeprefix("module.") for k, n in names.items()}, f"{removed}module."
            continue
        wrapper = next((w for w in _WRAPPERS if any(w in n.split(".") for n in names.values())), None)
        if wrapper is None:
            break
        names = {k: ".".join(p for p in n.split(".") if p != wrapper) for k, n in names.items()}
        removed = f"{removed}{wrapper}."
    plain = {n: state[k] for k, n in names.items()}
    if len(plain) < len(names) or "" in plain:
        raise CheckpointRefused(
            f"two tensors have the same name without the prefix {removed!r}",
            "save the wrapped network's own state_dict()",
        )
    return plain, removed


def _search(contents: Any, path: tuple[str, ...]) -> tuple[tuple[str, ...], Mapping[Any, Any]]:
    if isinstance(contents, Mapping):
        hit = _find(contents, path, set())
        if hit is not None:
            return hit
    kind = "a Tensor" if isinstance(contents, Described) else f"a {type(contents).__name__}"
    if isinstance(contents, Mapping):
        kind = f"a dict with {_some(map(str, contents))}" if contents else "an empty dict"
    raise CheckpointRefused(
        f"no weights in the file: it contains {kind}",
        "save the network's weights with torch.save(model.state_dict(), PATH)",
    )


def _find(
    mapping: Mapping[Any, Any], path: tuple[str, ...], seen: set[int]
) -> tuple[tuple[str, ...], Mapping[Any, Any]] | None:
    """Return the first dictionary of tensors; ``seen``, by identity, ends the search in dictionaries that hold each
    other.
    """
    if len(path) > _DEEPEST or id(mapping) in seen:
        return None
    seen.add(id(mapping))
    nested = {k: v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Mapping)}
    for name in _WEIGHTS:
        if name in nested and (hit := _find(nested[name], (*path, name), seen)) is not None:
            return hit
    if any(isinstance(k, str) and isinstance(v, Described) for k, v in mapping.items()):
        return path, mapping
    for name in _AVERAGED:
        if name in nested and (hit := _find(nested[name], (*path, name), seen)) is not None:
            return hit
    rest = [k for k in nested if not any(word in k.lower() for word in _NEVER)]
    hits = [hit for name in rest if (hit := _find(nested[name], (*path, name), seen)) is not None]
    if len(hits) > 1:
        raise CheckpointRefused(
            f"the file contains several networks: {_some(_at(p) for p, _ in hits)}",
            "save the state_dict of the one to prune in a file of its own",
        )
    return hits[0] if hits else None


def _others(mapping: Any, path: tuple[str, ...]) -> list[str]:
    """Return other entries beside the chosen one that could have been meant."""
    for name in path[:-1]:
        mapping = mapping[name]
    known = [k for k in (*_WEIGHTS, *_AVERAGED) if k != path[-1] and isinstance(mapping.get(k), Mapping)]
    return [repr(_at((*path[:-1], k))) for k in known if _find(mapping[k], (), set()) is not None]


def _at(path: tuple[str, ...]) -> str:
    return ".".join(path)


def _some(names: Any, most: int = 5) -> str:
    listed = [repr(n) for n in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
