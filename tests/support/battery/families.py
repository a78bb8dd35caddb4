"""Networks of torchvision, timm and transformers, built from tiny configurations or at small image sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from support.battery.cases import CASES, Case, labelled, rand

CE = nn.CrossEntropyLoss()
N = 96

TORCHVISION = {
    "resnet18": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "squeezenet1_1": 64,
    "shufflenet_v2_x0_5": 32,
    "regnet_y_400mf": 32,
    "mnasnet0_5": 32,
    "densenet121": 32,
    "googlenet": 64,
}
"""Names with the side of the images."""
TIMM = {
    "vit_tiny_patch16_224": 32,
    "convnext_atto": 32,
    "mobilevitv2_050": 64,
    "resnet10t": 32,
    "beit_base_patch16_224": 32,
}


def images(module: nn.Module, side: int, pick: Any = lambda z: z) -> Case:
    return Case("images", module, labelled(rand(N, 3, side, side)), lambda z, y: CE(pick(z), y))


def torchvision(name: str, side: int) -> Case:
    from torchvision import models

    extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    return images(getattr(models, name)(num_classes=3, **extra), side)


def timm(name: str, side: int) -> Case:
    import timm as library

    size = {"img_size": side} if name.startswith(("vit", "beit")) else {}
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3} if size else {}
    return images(library.create_model(name, num_classes=3, **size, **small), side)


def words() -> list[dict[str, Any]]:
    ids = torch.randint(3, 30, (N, 8), generator=torch.Generator().manual_seed(0))
    length = torch.randint(4, 9, (N,), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(8) < length.unsqueeze(1)).long()
    return [{"input_ids": ids[i], "attention_mask": mask[i], "labels": int(ids[i, 0]) % 3} for i in range(N)]


def keep_labels(rows: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
    batch = default_collate(rows)
    return batch, batch["labels"]


def hugging_face(name: str, config: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> Case:
    import transformers

    model = getattr(transformers, name)
    made = model(model.config_class(**config))
    return Case(name, made, rows or words(), lambda z, y: z.loss, collate=keep_labels)  # type: ignore[arg-type]


SMALL = {"vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {**SMALL, "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def causal() -> list[dict[str, Any]]:
    start = torch.randint(30, (N, 1), generator=torch.Generator().manual_seed(0))
    ids = (start + 3 * torch.arange(8)) % 30
    return [{"input_ids": row, "labels": row} for row in ids]


def pictures() -> list[dict[str, Any]]:
    return [{"pixel_values": x, "labels": y} for x, y in labelled(rand(N, 3, 32, 32))]


GPT2 = {"vocab_size": 30, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 16}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
T5 = {"vocab_size": 30, "d_model": 24, "d_ff": 48, "d_kv": 12, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
VIT = {**SMALL, "image_size": 32, "patch_size": 8, "num_labels": 3}
TRANSFORMERS: dict[str, Any] = {
    "bert": lambda: hugging_face("BertForSequenceClassification", TEXT),
    "distilbert": lambda: hugging_face(
        "DistilBertForSequenceClassification",
        {"vocab_size": 30, "dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "num_labels": 3, "dropout": 0.0},
    ),
    "gpt2": lambda: hugging_face("GPT2LMHeadModel", {**GPT2, "bos_token_id": 0, "eos_token_id": 0}, causal()),
    "llama": lambda: hugging_face("LlamaForCausalLM", SMALL, causal()),
    "t5": lambda: hugging_face(
        "T5ForConditionalGeneration",
        {**T5, "decoder_start_token_id": 0},
        [{**row, "labels": row["input_ids"]} for row in causal()],
    ),
    "vit": lambda: hugging_face("ViTForImageClassification", VIT, pictures()),
    "beit": lambda: hugging_face("BeitForImageClassification", VIT, pictures()),
    "convnext": lambda: hugging_face(
        "ConvNextForImageClassification",
        {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2, "num_labels": 3},
        pictures(),
    ),
    "swin": lambda: hugging_face(
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 12,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "num_labels": 3,
        },
        pictures(),
    ),
}

CASES.update({f"families/torchvision_{n}": lambda n=n, s=s: torchvision(n, s) for n, s in TORCHVISION.items()})  # type: ignore[misc]
CASES.update({f"families/timm_{n}": lambda n=n, s=s: timm(n, s) for n, s in TIMM.items()})  # type: ignore[misc]
CASES.update({f"families/transformers_{name}": make for name, make in TRANSFORMERS.items()})
