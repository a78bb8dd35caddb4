"""The boundary around everything that reads checkpoints: whatever foreign bytes raise becomes a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prunetaylor.core.errors import CheckpointRefused, PruneTaylorError
from prunetaylor.core.text import first_line
from prunetaylor.network.checkpoint.torch_format.pickle_machine import MOST_STEPS, AsksForCode, TooLong
from prunetaylor.runtime.free_memory import free_bytes

_LOOKED_AT = 1 << 20
_LITTLE = 1 << 28  # bytes that are available without a check
_TRUSTED = "if you trust the file, save only its weights and prune those with --arch: "
_OF_MODULE = (
    "m = torch.load({name!r}, weights_only=False); "
    "m = next(v for v in m.values() if isinstance(v, torch.nn.Module)) if isinstance(m, dict) else m; "
    "torch.save(m.state_dict(), 'weights.pt')"
)
_OF_TENSORS = (
    "m = torch.load({name!r}, weights_only=False); torch.save({{k: v for k, v in m.items() if torch.is_tensor(v) or "
    "isinstance(v, dict) and all(map(torch.is_tensor, v.values()))}}, 'weights.pt')"
)


@contextmanager
def refuse_failures(path: Path) -> Iterator[None]:
    """Raise CheckpointRefused for everything that reading ``path`` raises; refusals pass unchanged."""
    try:
        yield
    except PruneTaylorError:
        raise
    except AsksForCode as error:
        raise _code(path, error.name) from error
    except TooLong as error:
        raise CheckpointRefused(
            f"{path} needs more than {MOST_STEPS:,} steps to describe its contents, far more than weights need "
            "(the history of a training may)",
            _TRUSTED + _one_liner(_OF_TENSORS, path),
        ) from error
    except MemoryError as error:
        raise CheckpointRefused(
            f"{path} needs more memory than is available", "free some, or give a smaller file"
        ) from error
    except Exception as error:  # foreign bytes can raise anything, C++ errors and RecursionError included
        raise damaged(path, error) from error


def require_room(path: Path, need: int) -> None:
    """Raise CheckpointRefused if this process does not have ``need`` bytes free."""
    free = free_bytes(torch.device("cpu")) if need > _LITTLE else None
    if free is not None and need > free:
        raise CheckpointRefused(
            f"{path} takes {need / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free",
            "use a machine with more memory, or check that this is the right file",
        )


def damaged(path: Path, error: BaseException | str) -> CheckpointRefused:
    """Return the refusal of a file whose bytes are inconsistent."""
    return CheckpointRefused(
        f"{path} is truncated or damaged: {first_line(error)}",
        "copy or download it again, and compare its size with the original's",
    )


def _code(path: Path, name: str) -> CheckpointRefused:
    module = _looks_like_module(path)
    cause = f"{path} is a pickle that asks to run code ({name[:100]}); it was not run"
    if module:
        cause = f"{path} is a pickled module ({name[:100]}), and opening it would run code; it was not run"
    return CheckpointRefused(cause, _TRUSTED + _one_liner(_OF_MODULE if module else _OF_TENSORS, path))


def _one_liner(way: str, path: Path) -> str:
    return f"import torch; {way.format(name=str(path))}"


def _looks_like_module(path: Path) -> bool:
    """Return whether an nn.Module's own attributes are named near the file's beginning, where its pickle is."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_LOOKED_AT)
    except OSError:
        return False
    return b"_parameters" in head and b"_modules" in head
