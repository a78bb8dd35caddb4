"""Forms of a batch: types of numbers, several tensors, dictionaries, masks, lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import default_collate

from support.battery.cases import Case, case, labelled, rand, train

CE = nn.CrossEntropyLoss()
N = 200


def mlp(inputs: int = 8, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, outputs))


def tokens(*shape: int, words: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(words, (N, *shape), generator=torch.Generator().manual_seed(seed))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.core, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(self.embed(x.long()).mean(1)).tanh())


class Two(nn.Module):
    """An image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin, self.head = nn.Conv2d(1, 4, 3), nn.Linear(5, 8), nn.Linear(12, 3)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.head(torch.cat([self.conv(image).relu().mean((2, 3)), self.lin(vector).relu()], 1))


def two() -> tuple[Tensor, Tensor, list[int]]:
    a, b = rand(N, 1, 6, 6), rand(N, 5, seed=1)
    return a, b, [y for _, y in labelled(torch.cat([a.flatten(1), b], 1))]


@case
def float64_samples() -> Case:
    def collate(rows: list[Any]) -> Any:
        return torch.stack([x for x, _ in rows]).float(), torch.tensor([y for _, y in rows])

    return Case("float64_samples", mlp(), [(x.double(), y) for x, y in labelled(rand(N, 8))], CE, collate=collate)


@case
def float64_weights() -> Case:
    return Case("float64_weights", mlp().double(), [(a.double(), y) for a, y in labelled(rand(N, 8))], CE)


@case
def bfloat16_weights() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp().bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.bfloat16())

    return Case("bfloat16_weights", Net(), labelled(rand(N, 8)), lambda z, y: CE(z.float(), y))


@case
def half_weights() -> Case:
    module = train(Case("wide", mlp(), labelled(rand(N, 8)), CE)).half()
    rows = [(a.half(), y) for a, y in labelled(rand(N, 8))]
    return Case("half_weights", module, rows, lambda z, y: CE(z.float(), y), trained=True)


@case
def token_ids() -> Case:
    return Case("token_ids", Words(), [(row, int(row[0]) % 3) for row in tokens(6)], CE)


@case
def token_ids_uint8() -> Case:
    return Case("token_ids_uint8", Words(), [(row.to(torch.uint8), int(row[0]) % 3) for row in tokens(6)], CE)


@case
def token_ids_int32() -> Case:
    return Case("token_ids_int32", Words(), [(row.int(), int(row[0]) % 3) for row in tokens(6)], CE)


@case
def two_tensors_in_a_tuple() -> Case:
    a, b, y = two()
    return Case("two_tensors", Two(), [((a[i], b[i]), y[i]) for i in range(N)], CE)


@case
def two_tensors_in_a_dict() -> Case:
    a, b, y = two()
    return Case("dict", Two(), [({"image": a[i], "vector": b[i]}, y[i]) for i in range(N)], CE)


@case
def dict_with_labels_inside() -> Case:
    """A data set of dicts as Hugging Face's: the target is one of the entries."""
    a, b, y = two()
    rows: list[Any] = [{"image": a[i], "vector": b[i], "labels": y[i]} for i in range(N)]

    def collate(some: list[Any]) -> Any:
        batch = default_collate(some)
        return batch, batch.pop("labels")

    return Case("dict_labels", Two(), rows, CE, collate=collate)


@case
def a_list_as_one_argument() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Two()

        def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
            return self.net(*both)

    a, b, y = two()
    collate = lambda rows: ((default_collate([x for x, _ in rows]),), torch.tensor([y for _, y in rows]))  # noqa: E731
    return Case("one_tuple", Net(), [((a[i], b[i]), y[i]) for i in range(N)], CE, collate=collate)


@case
def padding_mask() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(16, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            h = self.encoder(self.embed(input_ids), src_key_padding_mask=~attention_mask)
            weight = attention_mask.unsqueeze(2).float()
            return self.head((h * weight).sum(1) / weight.sum(1))

    ids, lengths = tokens(6), tokens(words=5, seed=2) + 2
    mask = torch.arange(6) < lengths.unsqueeze(1)
    rows = [({"input_ids": ids[i], "attention_mask": mask[i]}, int(ids[i, 0]) % 3) for i in range(N)]
    return Case("padding_mask", Net(), rows, CE)


@case
def variable_lengths() -> Case:
    """Rows of different lengths, padded by the loader's collate."""
    ids, lengths = tokens(8), (tokens(words=5, seed=2) + 3).tolist()
    rows = [(ids[i, : lengths[i]], int(ids[i, 0]) % 3) for i in range(N)]

    def collate(some: list[Any]) -> Any:
        return pad_sequence([x for x, _ in some], batch_first=True), torch.tensor([y for _, y in some])

    return Case("variable_lengths", Words(), rows, CE, collate=collate, loader=True)


@case
def packed_sequences() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.core, self.head = nn.Embedding(20, 12), nn.GRU(12, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(self.embed(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
            return self.head(self.core(packed)[1][-1])

    ids, lengths = tokens(8), tokens(words=5, seed=2) + 3
    return Case("packed", Net(), [((ids[i], lengths[i]), int(ids[i, 0]) % 3) for i in range(N)], CE)


@case
def embedding_bag_with_offsets() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(20, 16), nn.Linear(16, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.bag(ids))

    return Case("embedding_bag", Net(), [(row, int(row[0]) % 3) for row in tokens(6)], CE)


@case
def tabular_mixed() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(20, 4), mlp(12)

        def forward(self, numbers: Tensor, category: Tensor) -> Tensor:
            return self.body(torch.cat([numbers, self.embed(category)], 1))

    x, c = rand(N, 8), tokens()
    return Case("tabular", Net(), [((x[i], c[i]), int(c[i]) % 3) for i in range(N)], CE)


@case
def graph() -> Case:
    """Nodes and a dense adjacency a sample."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            return self.head(edges @ self.b((edges @ self.a(nodes)).relu()).relu()).mean(1)

    nodes, edges = rand(N, 5, 6), (rand(N, 5, 5, seed=1) > 0).float()
    return Case("graph", Net(), [((nodes[i], edges[i]), y) for i, (_, y) in enumerate(labelled(nodes))], CE)


@case
def no_labels() -> Case:
    rows: list[Any] = list(rand(N, 8))
    target = lambda rows: (torch.stack(rows), torch.stack(rows)[:, :3].argmax(1))  # noqa: E731
    return Case("no_labels", mlp(), rows, CE, collate=target)


@case
def grey_images_for_a_network_of_three_channels() -> Case:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    rows = labelled(rand(N, 1, 8, 8))

    def collate(some: list[Any]) -> Any:
        x, y = default_collate(some)
        return x.expand(-1, 3, -1, -1), y

    return Case("grey", module, rows, CE, collate=collate)
