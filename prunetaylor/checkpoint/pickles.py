"""torch's own files, read without running what they may hold: ``weights_only=True``, always."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from prunetaylor.errors import CheckpointRefused

_SAVE_AGAIN = (
    "where you trust the file, save its weights alone and prune those with --arch: "
    "m = torch.load({name!r}, weights_only=False); torch.save(m.state_dict(), 'weights.pt')"
)


class _DType:
    """Stands for numpy's dtype: remembers its code and does nothing."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(dtype: _DType, raw: bytes) -> float | int | bool | None:
    """The value of a numpy scalar, None for a kind that is no plain number."""
    codes = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u1": "B", "b1": "?"}
    code = codes.get(dtype.code)
    if code is None or struct.calcsize(f"<{code}") != len(raw):
        return None
    value: float | int | bool = struct.unpack(dtype.order + code, raw)[0]
    return value


# Training scripts leave their arguments and their best accuracy beside the weights, as an argparse.Namespace and as
# numpy scalars. The first does nothing, and the second are read by the two stand-ins above, not by numpy.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_DType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_pickle(path: Path) -> Any:
    """What a file of torch.save (zip or legacy form) holds, on the CPU. Code in it is refused, not run.

    Raises CheckpointRefused: the file asks for code (a pickled module, a malicious pickle), or is damaged.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # of torch about its own old storage classes
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise _explained(path, error) from error
    except Exception as error:  # damaged bytes can raise anything
        raise damaged(path, error) from error


def refuse_foreign_zip(path: Path) -> None:
    """CheckpointRefused for zip archives that torch.save did not write; they are only listed here."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {n.rpartition("/")[2] for n in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged(path, error) from error
    if "constants.pkl" in names:
        raise CheckpointRefused(
            f"{path} is a TorchScript archive: its code would have to run",
            "save the weights of the network it was made from: torch.save(model.state_dict(), PATH)",
        )
    if "data.pkl" not in names:
        kind = (
            "a NumPy .npz" if names and all(n.endswith(".npy") for n in names) else "a zip archive of another program"
        )
        raise CheckpointRefused(f"{path} is {kind}, no checkpoint", "give a file of torch.save or of safetensors")


def damaged(path: Path, error: BaseException | str) -> CheckpointRefused:
    """The refusal of a file whose bytes do not add up."""
    said = str(error).strip()
    reason = said.splitlines()[0][:160] if said else type(error).__name__
    return CheckpointRefused(
        f"{path} is truncated or damaged: {reason}",
        "copy or download it again, and compare its size with the original's",
    )


def _explained(path: Path, error: pickle.UnpicklingError) -> CheckpointRefused:
    text = str(error)
    asked = re.search(r"(?:GLOBAL|global:?|class|function|Trying to load unsupported) ['<]?([\w.]+\.[\w.]+)", text)
    code = asked is not None or any(
        w in text for w in ("nsupported global", "unrecognized function", "nsupported class")
    )
    if not code:
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", text)
        return damaged(path, reason.group(1) if reason else error)
    wanted = asked.group(1) if asked else "code"
    what = f"{path} is a pickle that asks to run code ({wanted}); it was not run"
    if _looks_like_module(path):
        what = f"{path} is a pickled module ({wanted}), and opening it would run code; it was not run"
    return CheckpointRefused(what, _SAVE_AGAIN.format(name=path.name))


def _looks_like_module(path: Path) -> bool:
    """Whether an nn.Module's own attributes are named in the pickle. The bytes are searched, not unpickled."""
    head = b""
    with contextlib.suppress(OSError, zipfile.BadZipFile, KeyError, NotImplementedError):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(name) as stream:
                    head = stream.read(1 << 20)
        else:
            with path.open("rb") as stream:
                head = stream.read(1 << 20)
    return b"_parameters" in head and b"_modules" in head
