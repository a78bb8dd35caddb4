"""Another function in place of one of torch's, whatever module calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class override_function(TorchFunctionMode):
    """Inside, calls of ``function`` (one that torch lets be overridden) go to ``by``, which takes the same."""

    def __init__(self, function: Callable[..., Any], by: Callable[..., Any]) -> None:
        super().__init__()
        self._function, self._by = function, by

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (self._by if func is self._function else func)(*args, **(kwargs or {}))
