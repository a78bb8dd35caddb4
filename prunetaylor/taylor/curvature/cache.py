"""The cache of fitted curvatures on disk: a fit for the same weights and samples is not computed again.

A fit is kept under the sha256 of everything that it is made of: the network's tensors as they are at that moment, its
printed form and its outputs for the first batch (which tell apart code that names and shapes do not), the samples as
they reach the network, batch by batch, what else the fit depends on (error, reference, seed, positions; a user's loss
on the first batch, which distinguishes what its file imports), and the arithmetic: this package's own
code, torch, the kind of device, its threads. A hit is therefore what fitting would have given, bit for bit, and "same
checkpoint, samples and stage" needs no bookkeeping: a stage is the state it starts from. Settings that no fit depends
on (sparsity, criterion, damping, repair) are not in the key.

The fit at the weights that a run starts from serves every sparsity and criterion; those of later stages serve only a
repetition of the same run, and are as large: the layer Grams of a ResNet-50 take about a gigabyte a stage. Both are
kept, but a later stage's only in the room that the first ones leave: it never pushes one of them out. Rows of single
samples (``TaylorModel.fisher_rows``) are not kept: reading them takes as long as making them.

Files are safetensors, never pickle, on the CPU, and hold a digest of their content. They appear under their name when
they are complete, so that runs at the same time need no lock. A cache that cannot be read or written costs time and a
note, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunetaylor._version import __version__
from prunetaylor.core.config.schema import CacheSection
from prunetaylor.core.errors import OutputError
from prunetaylor.core.files import PARTIAL, write_by_path
from prunetaylor.core.progress import Detail
from prunetaylor.core.text import first_line
from prunetaylor.data.samples import Batches
from prunetaylor.network.layer import Layer
from prunetaylor.runtime.processes.exchange import tensors_from_main
from prunetaylor.runtime.processes.group import main_process, world
from prunetaylor.taylor.curvature.fit_code import code_digest
from prunetaylor.taylor.curvature.solve import Note
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.passes import first_batch, forward_one
from prunetaylor.taylor.risk import Risk

MIN_SECONDS = 0.02
"""A fit is stored only if it took longer than this and longer than reading it back at READ_RATE would take."""
READ_RATE = 2e8
"""Bytes a second of a slow disk, with the digest."""
_ABANDONED = 24 * 3600.0  # seconds after which another run's unfinished file is no longer being written
_HEADER = "prunetaylor"


def open_cache(config: CacheSection) -> Cache | None:
    """Return the configured cache, or None if it is turned off. Nothing is created on disk yet."""
    if not config.enabled:
        return None
    if config.dir is not None:
        folder = Path(config.dir).expanduser()
    else:
        home = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(home) if home else Path(os.path.expanduser("~")) / ".cache") / "prunetaylor"
    return Cache(folder, int(config.limit * 1e9))


class Cache:
    """Fits in ``folder``, at most ``limit`` bytes; the least recently used are removed first."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._samples: WeakKeyDictionary[Batches, str] = WeakKeyDictionary()

    def key(
        self,
        kind: str,
        module: str,
        risk: Risk,
        layers: Sequence[Layer],
        settings: Mapping[str, object],
        tensors: Iterable[Tensor] = (),
    ) -> str:
        """Return the sha256, hexadecimal, of all that a fit of this ``kind`` depends on at the network's current state.

        ``module`` names the module whose code computes the fit. ``settings`` (by their repr) and ``tensors`` are what
        it depends on besides the network, the layers and the inputs. Only the main process looks things up; the others
        get an empty key.
        """
        if not main_process():
            return ""
        if risk.batches not in self._samples:
            self._samples[risk.batches] = _digest(part for x, _ in risk.batches for part in x.tensors())
        description = {
            "kind": kind,
            "code": [__version__, code_digest(module)],
            "arithmetic": _arithmetic(risk.batches.device),
            "network": repr(risk.module),
            "layers": [(layer.name, layer.form.sizes, layer.form.roles) for layer in layers],
            "state": list(_state(risk.module)),
            "samples": self._samples[risk.batches],
            "settings": {name: repr(value) for name, value in settings.items()},
        }
        x, targets = first_batch(risk.batches)
        outputs = forward_one(risk.module, x)
        loss = risk.objective.loss
        if isinstance(loss, CustomLoss) and "objective" in settings:  # the error enters the fit
            tensors = [*tensors, *loss.probe(outputs.float(), targets)]
        content = _digest([*_state(risk.module).values(), outputs, *tensors])
        return hashlib.sha256(json.dumps([description, content], sort_keys=True).encode()).hexdigest()

    def get_or_fit(
        self, what: str, stage: int, key: str, device: torch.device, fit: Callable[[], dict[str, Tensor]], note: Note
    ) -> dict[str, Tensor]:
        """Return the tensors of ``fit`` by name on ``device``: from the cache, or computed and stored there.

        ``what`` and ``stage`` (from 1) are for the notes; a run starts from stage 1.
        """
        path = self.folder / f"{'first' if stage == 1 else 'later'}-{key}.safetensors"
        stored = tensors_from_main(self._read(path, key, what, note) if main_process() else None)
        if stored is not None:
            note(Detail(f"curvature: {what} of stage {stage} taken from the cache (key {key[:12]})"))
            return {name: tensor.to(device) for name, tensor in stored.items()}
        start = time.perf_counter()
        tensors = fit()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if main_process() and time.perf_counter() - start >= MIN_SECONDS + size / READ_RATE:
            self._store(path, key, tensors, size, what, note)
        return tensors

    def _read(self, path: Path, key: str, what: str, note: Note) -> dict[str, Tensor] | None:
        """Return the file's tensors, or None if there is no file. A file that was damaged is removed."""
        try:
            if path.exists() and not path.is_file():
                raise ValueError("it is not a regular file")
            with safe_open(path, "pt", device="cpu") as file:
                header = json.loads((file.metadata() or {})[_HEADER])
                # Copied: memory of its own, laid out as the fit made it, is summed in the same order.
                tensors = {
                    name: torch.empty_strided(stored.shape, _dense(stored, stride), dtype=stored.dtype).copy_(stored)
                    for name, stride in header["strides"].items()
                    for stored in [file.get_tensor(name)]
                }
            if header["key"] != key or header["digest"] != _digest(tensors.values()):
                raise ValueError("its content is not what was written")
        except FileNotFoundError:
            return None
        except Exception as error:  # what is damaged can raise anything
            if not path.exists():  # another run has made room in between; the reader says so in ways of its own
                return None
            note(f"cache: {what} fitted anew, as {path} cannot be used ({first_line(error)})")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # the time of its last use
            os.utime(path, follow_symlinks=False)
        return tensors

    def _store(self, path: Path, key: str, tensors: Mapping[str, Tensor], size: int, what: str, note: Note) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # sums over somebody's samples: for them only
            if why_not := self._make_room(size, path):
                note(f"cache: {what} ({size / 1e6:,.1f} MB) not kept: {why_not}")
                return
            own = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            strides = {name: list(tensor.stride()) for name, tensor in own.items()}
            header = {"key": key, "what": what, "strides": strides, "digest": _digest(own.values())}
            stored, metadata = {n: t.contiguous() for n, t in own.items()}, {_HEADER: json.dumps(header)}
            failures = (OSError, SafetensorError)
            write_by_path(path, lambda file: save_file(stored, file, metadata), mode=0o600, failures=failures)
        except (OSError, OutputError) as error:
            note(
                f"cache: {what} not kept, as {self.folder} cannot be written ({first_line(error)}); "
                "set cache.dir, or cache.enabled=false"
            )

    def _make_room(self, size: int, path: Path) -> str:
        """Remove the least recently used fits until ``size`` bytes fit; return the reason if they cannot."""
        if size > shutil.disk_usage(self.folder).free / 2:
            return "the disk is nearly full"
        first = path.name.startswith("first-")
        entries = self._entries()
        total = size + sum(entry[3] for entry in entries)
        # Later stages' first, then by the time of the last use.
        for of_first, _, other, bytes_ in sorted(entries):
            if total <= self.limit:
                break
            if of_first and not first:
                return "the fits that runs start from fill cache.limit"
            with contextlib.suppress(OSError):
                other.unlink()
            total -= bytes_
        return "" if total <= self.limit else f"larger than cache.limit={self.limit / 1e9:g} GB"

    def _entries(self) -> list[tuple[bool, float, Path, int]]:
        """Return (of a first stage, time of the last use, file, bytes) of each fit; abandoned files are removed."""
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another run was faster
                stat = path.stat()
                if path.suffix == ".safetensors":
                    entries.append((path.name.startswith("first-"), stat.st_mtime, path, stat.st_size))
                elif path.suffix == PARTIAL and time.time() - stat.st_mtime > _ABANDONED:
                    path.unlink()
        return entries


def _arithmetic(device: torch.device) -> list[str]:
    """Return the settings on which the last bits of a sum depend."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(torch.get_num_threads())
    return [torch.__version__, device.type, where, torch.get_float32_matmul_precision(), str(world())]


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer under each of its names, also those that a checkpoint omits."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return dict(named)


def _digest(tensors: Iterable[Tensor]) -> str:
    """Return the sha256, hexadecimal, of types, shapes, strides and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()};".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _dense(stored: Tensor, stride: object) -> list[int]:
    """Return ``stride`` if it leaves no gaps; raise ValueError for any other, which could claim any memory."""
    if not isinstance(stride, list) or len(stride) != stored.ndim:
        raise ValueError("its strides are of another tensor")
    if not all(type(step) is int and step >= 0 for step in stride):
        raise ValueError("its strides are not numbers")
    last = sum((n - 1) * step for n, step in zip(stored.shape, stride, strict=True))
    if stored.numel() and last + 1 != stored.numel():
        raise ValueError("its strides leave gaps")
    return stride
