"""Replace a function of torch, whatever module calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class override_function(TorchFunctionMode):
    """Redirect calls of ``function``, which torch must let be overridden, to ``by`` with the same arguments."""

    def __init__(self, function: Callable[..., Any], by: Callable[..., Any]) -> None:
        super().__init__()
        self._function, self._by = function, by

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (self._by if func is self._function else func)(*args, **(kwargs or {}))
