"""torchvision's classifiers, matched by the names and shapes of their tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunetaylor.runtime.torchvision_import import import_torchvision

_CLASSES = 1000  # what torchvision builds by default

Shapes = dict[str, tuple[int, ...]]


class Match(NamedTuple):
    """A network that fits, and the arguments of its factory."""

    spec: str
    args: dict[str, Any]


def match(state: Mapping[str, Tensor], named: str | None = None) -> list[Match]:
    """Return the classifiers of torchvision with exactly these names and shapes, apart from the number of classes.

    ``named``, a bare name stored beside the weights, decides alone if it is among them; otherwise all are returned, in
    torchvision's order. Nothing is allocated, and only the family with similar names is built (about 2 s).
    """
    given = _shapes(state)
    families: dict[str, list[str]] = {}
    models = import_torchvision().models
    for name in models.list_models(module=models):
        families.setdefault(models.get_model_builder(name).__module__, []).append(name)
    matches: list[Match] = []
    for names in families.values():
        if _related(given, _reference(names[0], {})):
            matches += [Match(f"torchvision:{name}", args) for name in names for args in _fits(name, given)]
    preferred = [m for m in matches if m.spec == f"torchvision:{named}"]
    return preferred or matches


def _fits(name: str, given: Shapes) -> Iterator[dict[str, Any]]:
    """Yield the arguments with which ``name`` has the given names and shapes; usually none."""
    optional = {"aux_logits": False} if name in ("googlenet", "inception_v3") else None
    for args in [{}, *([optional] if optional else [])]:
        own = _reference(name, args)
        if own.keys() != given.keys():
            continue
        differing = [k for k in own if own[k] != given[k]]
        if not differing:
            yield args
        elif (classes := _other_head(own, given, differing)) is not None:
            yield {**args, "num_classes": classes}


def _other_head(own: Shapes, given: Shapes, differing: Iterable[str]) -> int | None:
    """Return the number of classes, if it is the only difference between the two."""
    sizes = set()
    for name in differing:
        if not given[name] or own[name][0] != _CLASSES or own[name][1:] != given[name][1:]:
            return None
        sizes.add(given[name][0])
    return sizes.pop() if len(sizes) == 1 else None


def _reference(name: str, args: dict[str, Any]) -> Shapes:
    models = import_torchvision().models
    own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with Shapeless(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _shapes(models.get_model(name, weights=None, **own, **args).state_dict())


class Shapeless(TorchFunctionMode):
    """A mode that puts new parameters on the meta device.

    The default device stays, since some networks compute with small tensors.
    """

    _makers: tuple[Callable[..., Tensor], ...] = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._makers:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _related(given: Iterable[str], own: Iterable[str]) -> bool:
    """Return whether half of the given names occur in another member of the family, ignoring layer numbers."""
    mine, theirs = ({re.sub(r"\d+", "#", name) for name in names} for names in (given, own))
    return 2 * len(mine & theirs) >= len(mine)
