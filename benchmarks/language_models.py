"""Perplexity before and after pruning small language models, beside the rules of other methods on the same layers.

    python benchmarks/language_models.py          GPT-2- and Llama-shaped, 50 %, a row each to language_models.jsonl

The models are trained on the text that ships with Python (the topics of ``help()``), a character a token. Every fifth
topic is test text, which nothing is fitted to. Rules prune each layer to the same sparsity; prunetaylor, as it does by
default, prunes the same layers to the same total. Needs the extra ``transformers``; some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from published_rules import RULES, prune_by_rule
from torch import Tensor, nn

import prunetaylor
from prunetaylor.runtime.torchvision_import import repair_imports

CONTEXT = 128
CALIBRATION = 128
"""Sequences that the methods see."""
TRAINED = Path.home() / ".cache" / "prunetaylor-benchmarks"
SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}


def text() -> tuple[Tensor, Tensor, int]:
    """Return training and test sequences (N, CONTEXT) of character ids, and the number of characters."""
    names = sorted(topics)
    characters = {c: i for i, c in enumerate(sorted(set("".join(topics.values()))))}

    def cut(chosen: Sequence[str]) -> Tensor:
        ids = torch.tensor([characters[c] for name in chosen for c in topics[name]])
        return ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)

    test = names[::5]
    return cut([name for name in names if name not in test]), cut(test), len(characters)


def build(kind: str, words: int) -> nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=words, n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4, **drop)
        )
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=words, max_position_embeddings=CONTEXT, intermediate_size=352, num_key_value_heads=2, **SIZES
        )
    )


def train(module: nn.Module, sequences: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    flat = sequences.flatten()
    module.train()
    for step in range(steps):
        starts = torch.randint(len(flat) - CONTEXT, (32,), generator=generator)
        ids = flat[starts[:, None] + torch.arange(CONTEXT)]
        loss = module(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: {float(loss.detach()):.3f}", flush=True)
    module.eval()


def trained(kind: str, words: int, sequences: Tensor, steps: int) -> nn.Module:
    """Return the trained model, from the cache if it is there."""
    module, file = build(kind, words).eval(), TRAINED / f"{kind}-{steps}.pt"
    if file.exists():
        module.load_state_dict(torch.load(file))
        return module
    train(module, sequences, steps)
    TRAINED.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), file)
    return module


@torch.no_grad()
def perplexity(module: nn.Module, sequences: Tensor) -> float:
    losses = [float(module(input_ids=ids, labels=ids).loss) * len(ids) for ids in sequences.split(32)]
    return math.exp(sum(losses) / len(sequences))


def blocks(module: nn.Module) -> list[list[nn.Module]]:
    """Return the layers that multiply by a weight in each block, in groups that read the same inputs."""
    inside = module.transformer.h if hasattr(module, "transformer") else module.model.layers
    by_input = (("c_attn", "q_proj", "k_proj", "v_proj"), ("c_proj", "o_proj"), ("c_fc", "gate_proj", "up_proj"))
    groups = []
    for block in inside:
        layers = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"}
        attention = {n: m for n, m in layers.items() if "attn" in n}
        rest = {n: m for n, m in layers.items() if n not in attention}
        for part in (attention, rest):
            first = [m for n, m in part.items() if n.rpartition(".")[2] in by_input[0] + by_input[2]]
            groups += [first, [m for m in part.values() if m not in first]]
    return groups


def sparsity_of(groups: Sequence[Sequence[nn.Module]]) -> float:
    weights = [layer.weight for group in groups for layer in group]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def ours(module: nn.Module, samples: Tensor, sparsity: float) -> nn.Module:
    outcome = prunetaylor.prune(
        module,
        [{"input_ids": ids, "labels": ids} for ids in samples],
        sparsity=sparsity,
        settings={"prune.exclude": ["lm_head"]},
    )
    pruned: nn.Module = outcome.module
    return pruned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=["gpt2", "llama"])
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rules-only", action="store_true")
    args = parser.parse_args()
    repair_imports()  # transformers imports torchvision
    sequences, test, words = text()
    drawn = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    rows: list[dict[str, Any]] = []
    for kind in args.kinds:
        dense = trained(kind, words, sequences, args.steps)
        row = {"model": kind, "sparsity": args.sparsity, "dense": perplexity(dense, test)}
        print(row, flush=True)
        for name, rule in RULES.items():
            pruned, start = copy.deepcopy(dense), time.perf_counter()
            groups = blocks(pruned)
            batches = sequences[drawn].split(32)
            prune_by_rule(pruned, groups, batches, lambda m, ids: m(input_ids=ids), rule, args.sparsity)
            row |= {name: perplexity(pruned, test), f"{name}_seconds": round(time.perf_counter() - start, 1)}
            print(name, row[name], round(sparsity_of(groups), 4), flush=True)
        if not args.rules_only:
            start = time.perf_counter()
            pruned = ours(dense, sequences[drawn], args.sparsity)
            row |= {"prunetaylor": perplexity(pruned, test), "seconds": round(time.perf_counter() - start, 1)}
            print("prunetaylor", row["prunetaylor"], round(sparsity_of(blocks(pruned)), 4), flush=True)
            rows.append(row)
    if rows:
        with (Path(__file__).parent / "language_models.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
