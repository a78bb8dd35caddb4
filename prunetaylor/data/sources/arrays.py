"""arrays:FILE.npz: x_train, y_train, x_test, y_test, and optionally x_val, y_val, as ``numpy.savez`` writes them.

Without y_train the training samples have no labels, which are not needed.

Inputs are uint8 (scaled to [0, 1] later) or float (left as they are): features (N, F), grey images (N, H, W), or images
with channels, first or last. The channel axis is the one of length 1, 3 or 4. Where both ends could be it, the reading
that makes the image square is taken, then channels first; where none could, channels come first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, PruneTaylorError, UsageError, close_match
from prunetaylor.core.text import first_line
from prunetaylor.data.conversion import target, tensor
from prunetaylor.data.samples import RawSource, TensorSplit

Array = np.ndarray[Any, Any]
_NEEDED = ("x_train", "x_test", "y_test")
_OPTIONAL = ("x_val", "y_val")
_MOST_COMPRESSED, _LITTLE = 20, 1 << 29  # times; bytes
_SAVE = "write it with numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)"


def read(argument: str, cfg: DataSection, seed: int) -> RawSource:
    """Inputs uint8 or float32 (N, C, H, W) or (N, F); targets int64 (N,) or as they are. DataError names the array."""
    if not argument:
        raise UsageError("the source arrays needs a file", "use arrays:FILE.npz")
    if cfg.size is not None:
        raise UsageError("data.size does not apply to arrays", "resize them before they are saved")
    arrays = _load(Path(argument).expanduser())
    last = _channels_last(arrays["x_train"].shape)
    inputs = {name: _inputs(name, array, last) for name, array in arrays.items() if name.startswith("x_")}
    for name, x in inputs.items():
        if x.shape[1:] != inputs["x_train"].shape[1:] or x.dtype != inputs["x_train"].dtype:
            ours, theirs = (f"{a.dtype} {a.shape}" for a in (arrays[name], arrays["x_train"]))
            raise DataError(f"{name} is {ours} where x_train is {theirs}", "give them one type and one sample shape")
    splits = {}
    for part in ("train", "test", "val"):
        if f"x_{part}" in arrays:
            splits[part] = _split(part, inputs[f"x_{part}"], arrays.get(f"y_{part}"))
    return RawSource(splits["train"], splits["test"], splits.get("val"), _classes(splits))


def _load(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise DataError(f"{path} is not a file", "check the path after arrays:")
    try:
        # numpy leaves a file that it opened itself, and cannot read, open.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} contains one array and is not an .npz archive", _SAVE)
            _require_plausible(archive, file)
            present = list(archive.files)
            needed = [*_NEEDED, *(_OPTIONAL if set(_OPTIONAL) & set(present) else ())]
            # Labels that are there under another name are not left out without a word.
            if "y_train" in present or close_match("y_train", set(present) - {*_NEEDED, *_OPTIONAL}):
                needed.insert(1, "y_train")
            for name in needed:
                if name not in present:
                    listed = ", ".join(present[:8]) or "none"
                    raise DataError(f"{path} has no array {name}{close_match(name, present)} (it has {listed})", _SAVE)
            return {name: _member(archive, name, path) for name in needed}
    except PruneTaylorError:
        raise
    except Exception as error:  # foreign bytes can raise anything
        raise DataError(f"{path} cannot be read as .npz: {type(error).__name__}: {first_line(error)}", _SAVE) from error


def _require_plausible(archive: Any, file: IO[bytes]) -> None:
    """ValueError where the arrays claim to be far larger than the file: no images are compressed like that."""
    claimed = sum(entry.file_size for entry in archive.zip.infolist())
    size = os.fstat(file.fileno()).st_size
    if claimed > _MOST_COMPRESSED * size + _LITTLE:
        raise ValueError(f"its arrays claim {claimed:,} bytes, and the file has {size:,}")


def _member(archive: Any, name: str, path: Path) -> Array:
    try:
        array = np.asarray(archive[name])
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise DataError(
            f"{name} of {path} is an array of Python objects, which is never unpickled", "save it as numbers"
        ) from error
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{name} of {path} is empty (shape {array.shape})", "give at least one sample")
    _check_finite(name, array)
    return array


def _check_finite(name: str, array: Array) -> None:
    if array.dtype.kind != "f":
        return
    for start in range(0, len(array), 4096):
        wrong = np.argwhere(~np.isfinite(array[start : start + 4096]))
        if len(wrong):
            at = (start + int(wrong[0][0]), *(int(i) for i in wrong[0][1:]))
            raise DataError(f"{name} contains {array[at]} at index {at}", "take the sample out or repair it")


def _inputs(name: str, array: Array, channels_last: bool) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{name} has the type {array.dtype}", "save pixels as uint8, anything else as float32")
    if array.ndim < 2:
        raise DataError(f"{name} has shape {array.shape}: samples without features", "give (N, F) or (N, C, H, W)")
    x = tensor(array, name)
    x = x.float() if x.dtype == torch.float16 else x
    if x.ndim == 3:
        return x.unsqueeze(1)
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 and channels_last else x


def _channels_last(shape: tuple[int, ...]) -> bool:
    if len(shape) != 4:
        return False
    first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
    if first and last:
        return shape[1] == shape[2] != shape[3]
    return last


def _split(part: str, x: Tensor, y: Array | None) -> TensorSplit:
    if y is None:
        return TensorSplit(x)
    if len(x) != len(y):
        raise DataError(f"x_{part} has {len(x)} samples, y_{part} has {len(y)}", "give one target for each sample")
    targets = target(tensor(y, f"y_{part}"))
    if not targets.is_floating_point() and targets.ndim == 1 and int(targets.min()) < 0:
        at = int(targets.argmin())
        raise DataError(
            f"y_{part} contains class {int(targets[at])} at index {at}", "class ids are whole numbers from 0"
        )
    return TensorSplit(x, targets)


def _classes(splits: dict[str, TensorSplit]) -> int | None:
    every = [split.targets() for split in splits.values() if split.labelled]
    if any(y.is_floating_point() or y.ndim != 1 for y in every):
        return None
    return max(int(y.max()) for y in every) + 1
