"""Files as the readers know them, and mutants of these: of their bytes, their pickles and their JSON."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from prunetaylor.network.checkpoint.architecture.builtin import Digits
from prunetaylor.network.checkpoint.write import write_model, write_pt
from prunetaylor.taylor.curvature.cache import Cache
from support.documents import report
from support.fuzz_reader import CACHE_KEY

_NUMBERS = (0, 1, 2, 255, 256, 65535, 2**31 - 1, -1, -(2**31))
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**18, -(10**18), 1e308, "", "x" * 5000, "\x1b[31m", [], {}, [[[]]], {"": None}, [None] * 50,
)  # fmt: skip


def seeds(folder: Path) -> dict[str, tuple[str, bytes]]:
    """By name the kind of reader and the bytes of a good file of each form. ``folder`` is for scratch."""
    file = folder / "seed"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
        digits = Digits()
        rows = torch.randn(6, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of some releases, about how young the layout is
        in_rows = rows.relu().to_sparse_csr()
    state = net.state_dict()
    training = {"epoch": 3, "model": state, "optimizer": {"state": {0: {"exp": rows}}, "groups": [{"lr": 0.1}]}}
    views = {"a": rows.t(), "b": rows[2:], "c": rows[0].expand(3, 4), "z": torch.randn(3, dtype=torch.complex64).conj()}
    sparse = {"w": rows.relu().to_sparse(), "b": torch.ones(2)}
    run = {"threads": 1, "stages": {"module": dict(state), "drawn": [torch.arange(9)], "done": [{"sparsity": 0.5}]}}

    def saved(held: Any, new: bool = True) -> bytes:
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(held, stream, _use_new_zipfile_serialization=new)
        return stream.getvalue()

    def written(write: Callable[[Path], Any]) -> bytes:
        write(file)
        return file.read_bytes()

    said: dict[str, Any] = {"arch": "builtin:digits", "args": {"num_classes": 10}, "data": {"source": "digits"}}
    masks = {"fc1.weight": torch.ones(128, 256, dtype=torch.bool)}
    kept = {"gram": torch.eye(3), "count": torch.arange(3)}
    cache = Cache(folder / "cache", 10**9)
    cache._store(folder / "cache" / f"first-{CACHE_KEY}.safetensors", CACHE_KEY, {"gram": torch.eye(3)}, 36, "f", print)
    arrays = io.BytesIO()
    np.savez(arrays, x_train=np.zeros((4, 8, 8), np.uint8), x_test=np.ones((2, 8, 8), np.uint8), y_test=np.arange(2))
    return {
        "state dict": ("checkpoint", saved(state)),
        "training": ("checkpoint", saved(training)),
        "views": ("checkpoint", saved(views)),
        "sparse": ("checkpoint", saved(sparse)),
        "compressed rows": ("checkpoint", saved({"w": in_rows})),
        "legacy": ("checkpoint", saved(training, new=False)),
        "legacy sparse": ("checkpoint", saved(sparse, new=False)),
        "safetensors": ("checkpoint", written(lambda path: save_file(kept, path, {"format": "pt"}))),
        "our network": ("network", written(lambda path: write_model(path, digits, masks=masks, **said))),
        "our torch file": ("network", written(lambda path: write_pt(path, digits, **said))),
        "report": ("run", json.dumps(report()).encode()),
        "run's state": ("state", saved({"inputs": {"seed": 0, "device": "cpu"}, "run": run})),
        "cache entry": ("cache", (folder / "cache" / f"first-{CACHE_KEY}.safetensors").read_bytes()),
        "arrays": ("npz", arrays.getvalue()),
    }  # fmt: skip


def mutant(name: str, all_seeds: dict[str, tuple[str, bytes]], draw: random.Random, canary: Path) -> bytes:
    """A file made of the seed ``name``, by one to three changes of a kind that fits its form."""
    content = all_seeds[name][1]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        ways = [_flip, _flip, _cut, _splice]
        if content.startswith(b"PK"):
            ways += [_in_zip] * 8
        elif name.startswith("legacy"):
            ways += [_in_legacy] * 6
        elif content[8:9] == b"{":
            ways += [_in_header] * 6
        elif content[:1] == b"{":
            ways += [_in_json] * 12
        content = draw.choice(ways)(content, draw, all_seeds, canary)
    return content


Seeds = dict[str, tuple[str, bytes]]


def _flip(content: bytes, draw: random.Random, seeds: Seeds, canary: Path) -> bytes:
    held = bytearray(content)
    for _ in range(draw.choice((1, 1, 4, 32)) if held else 0):
        held[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
    return bytes(held)


def _cut(content: bytes, draw: random.Random, seeds: Seeds, canary: Path) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + content[start + draw.choice((1, 8, 100, len(content))) :]


def _splice(content: bytes, draw: random.Random, seeds: Seeds, canary: Path) -> bytes:
    other = draw.choice([*seeds.values()])[1]
    start, length, at = draw.randrange(len(other)), draw.choice((1, 8, 64, 1000)), draw.randrange(len(content) + 1)
    over = draw.choice((0, length))
    return content[:at] + other[start : start + length] + content[at + over :]


def _in_zip(content: bytes, draw: random.Random, seeds: Seeds, canary: Path) -> bytes:
    """The same archive, whole and with right checksums, but for one entry."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {one.filename: archive.read(one) for one in archive.infolist()}
    except Exception:  # an earlier change has damaged it
        return content
    if not entries:
        return content
    pickles = [one for one in entries if one.endswith("data.pkl")]
    name = draw.choice(pickles) if pickles and draw.random() < 0.8 else draw.choice(list(entries))
    if name in pickles:
        entries[name] = _in_pickle(entries[name], draw, canary)
    elif draw.random() < 0.2:
        del entries[name]
    else:
        entries[name] = draw.choice((_flip, _cut, _splice))(entries[name], draw, seeds, canary)
    stream = io.BytesIO()
    method = zipfile.ZIP_STORED if draw.random() < 0.9 else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(stream, "w", method) as archive:
        for one, held in entries.items():
            archive.writestr(one, held)
    return stream.getvalue()


def _in_legacy(content: bytes, draw: random.Random, seeds: Seeds, canary: Path) -> bytes:
    """One of the five pickles changed."""
    stream, starts = io.BytesIO(content), []
    try:
        for _ in range(5):
            starts.append(stream.tell())
            for _ in pickletools.genops(stream):
                pass
    except Exception:
        return content
    which = draw.choice((2, 3, 3, 3, 3, 4))
    start, end = starts[which], starts[which + 1] if which < 4 else stream.tell()
    return content[:start] + _in_pickle(content[start:end], draw, canary) + content[end:]


def _in_pickle(content: bytes, draw: random.Random, canary: Path) -> bytes:
    """Instructions changed, left out, doubled, exchanged or put in; code that would make the canary among them."""
    try:
        at = [place for _, _, place in pickletools.genops(content)]
    except Exception:
        return content
    steps = [content[a:b] for a, b in zip(at, [*at[1:], len(content)], strict=True) if a is not None and b is not None]
    for _ in range(draw.choice((1, 1, 2, 5))):
        i, j = (draw.randrange(1, len(steps)) for _ in range(2))
        way = draw.randrange(8)
        if way == 0:
            del steps[i]
        elif way == 1:
            steps.insert(i, steps[j])
        elif way == 2:
            steps[i], steps[j] = steps[j], steps[i]
        elif way == 3:
            steps.insert(
                i, draw.choice((b"(", b")", b"]", b"}", b"N", b"R", b"b", b"t", b"u", b"e", b"\x81", b"Q", b"0"))
            )
        elif way == 4:
            steps.insert(i, _evil(draw, canary))
        elif way == 5:
            name = draw.choice(
                ("torch FloatTensor", "torch.storage UntypedStorage", "builtins bytearray", "torch Size")
            )
            steps[i] = f"c{name}\n".replace(" ", "\n").encode()
        else:
            numbers = [k for k, one in enumerate(steps) if one[:1] in (b"K", b"M", b"J", b"\x8a")] or [i]
            steps[draw.choice(numbers)] = _number(draw)
        if len(steps) < 3:
            break
    return b"".join(steps)


def _number(draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return b"J" + struct.pack("<i", draw.choice(_NUMBERS))
    value = draw.choice((1, -1)) * (1 << draw.choice((20, 31, 40, 62, 63, 100))) + draw.randrange(3)
    held = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(held)]) + held


def _evil(draw: random.Random, canary: Path) -> bytes:
    """A call that leaves the canary behind if anything runs it; its result is dropped again."""
    calls = (("os", "system", f"touch {canary}"), ("builtins", "eval", f"open({str(canary)!r}, 'w')"))
    module, name, said = draw.choice((*calls, ("posix", "system", f"touch {canary}"), ("torch", "load", str(canary))))
    text = said.encode()
    call = f"c{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R"
    return call + draw.choice((b"0", b""))


def _in_header(content: bytes, draw: random.Random, seeds: Seeds, canary: Path) -> bytes:
    """The JSON at the beginning of a safetensors file, and the JSON in its metadata."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        inner = header.get("__metadata__", {}).get("prunetaylor")
        if inner is not None and draw.random() < 0.6:
            header["__metadata__"]["prunetaylor"] = _changed(json.loads(inner), draw)
        else:
            header = json.loads(_changed(header, draw))
        made = json.dumps(header).encode()
    except Exception:
        return content
    size = len(made) if draw.random() < 0.95 else draw.choice((0, 1 << 20, 1 << 62))
    return struct.pack("<Q", size) + made + content[8 + length :]


def _in_json(content: bytes, draw: random.Random, seeds: Seeds, canary: Path) -> bytes:
    try:
        found = json.loads(content)
    except Exception:
        return content
    return _changed(found, draw).encode()


def _changed(found: Any, draw: random.Random) -> str:
    """JSON text with one or more values exchanged, left out, or nested without end."""
    for _ in range(draw.choice((1, 1, 1, 3))):
        places: list[tuple[Any, Any]] = []
        left = [found]
        while left:
            value = left.pop()
            keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
            places += [(value, key) for key in keys]
            left += [value[key] for key in keys]
        if not places:
            break
        holder, key = draw.choice(places)
        if draw.random() < 0.2 and isinstance(holder, dict):
            del holder[key]
        elif draw.random() < 0.1:
            other, at = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[at])) if at in other or isinstance(other, list) else None
        else:
            holder[key] = copy.deepcopy(draw.choice((*_VALUES, "DEEP", "INF")))
    return json.dumps(found).replace('"DEEP"', "[" * 20000 + "]" * 20000, 1).replace('"INF"', "1e999", 1)
