"""Kinds of layers, and ways to use a weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.battery.cases import Case, case, labelled, rand

CE = nn.CrossEntropyLoss()
N = 200


def images(*shape: int) -> list[tuple[Tensor, int]]:
    return labelled(rand(N, *shape))


def net(name: str, *modules: nn.Module, samples: list[tuple[Tensor, int]]) -> Case:
    return Case(name, nn.Sequential(*modules), samples, CE)


@case
def linear() -> Case:
    return net("linear", nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3), samples=images(12))


@case
def conv1d() -> Case:
    return net(
        "conv1d", nn.Conv1d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(32, 3),
        samples=images(3, 20),
    )  # fmt: skip


@case
def conv3d() -> Case:
    return net(
        "conv3d", nn.Conv3d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3),
        samples=images(1, 6, 6, 6),
    )  # fmt: skip


@case
def transposed() -> Case:
    return net(
        "transposed", nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3), samples=images(1, 9, 9),
    )  # fmt: skip


@case
def transposed_1d() -> Case:
    return net(
        "transposed_1d", nn.ConvTranspose1d(2, 6, 4, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(3), nn.Flatten(),
        nn.Linear(18, 3), samples=images(2, 10),
    )  # fmt: skip


@case
def grouped_and_depthwise() -> Case:
    return net(
        "grouped", nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3), samples=images(4, 8, 8),
    )  # fmt: skip


@case
def bilinear() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Bilinear(8, 8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            return self.head(self.b(h, h))

    return Case("bilinear", Net(), images(8), CE)


@case
def multihead_attention() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + self.attention(x, x, x)[0]).mean(1))

    return Case("multihead_attention", Net(), images(6, 16), CE)


@case
def transformer_encoder() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x).mean(1))

    return Case("transformer_encoder", Net(), images(6, 16), CE)


@case
def transformer_seq_first() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, norm_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.transpose(0, 1)).mean(0))

    return Case("transformer_seq_first", Net(), images(6, 16), CE)


class Recurrent(nn.Module):
    def __init__(self, core: nn.Module, width: int) -> None:
        super().__init__()
        self.core, self.head = core, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


@case
def lstm() -> Case:
    return Case("lstm", Recurrent(nn.LSTM(8, 16, batch_first=True), 16), images(5, 8), CE)


@case
def lstm_two_layers_both_ways() -> Case:
    core = nn.LSTM(8, 12, num_layers=2, bidirectional=True, batch_first=True)
    return Case("lstm_two_layers", Recurrent(core, 24), images(5, 8), CE)


@case
def gru() -> Case:
    return Case("gru", Recurrent(nn.GRU(8, 16, batch_first=True), 16), images(5, 8), CE)


@case
def rnn() -> Case:
    return Case("rnn", Recurrent(nn.RNN(8, 16, batch_first=True), 16), images(5, 8), CE)


@case
def lstm_cell() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTMCell(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = c = x.new_zeros(len(x), 16)
            for step in x.unbind(1):
                h, c = self.cell(step, (h, c))
            return self.head(h)

    return Case("lstm_cell", Net(), images(5, 8), CE)


@case
def functional_linear_of_a_module() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(8, 24, bias=False), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.linear(x, self.qkv.weight).relu())

    return Case("functional_linear", Net(), images(8), CE)


@case
def raw_parameter_matmul() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(rand(8, 24, seed=3) / 3)
            self.head = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x @ self.w).relu())

    return Case("raw_parameter", Net(), images(8), CE)


@case
def raw_parameter_conv() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(rand(6, 1, 3, 3, seed=3) / 3)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.conv2d(x, self.kernel).relu().mean((2, 3)))

    return Case("raw_conv", Net(), images(1, 8, 8), CE)


@case
def raw_parameter_einsum() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(rand(8, 2, 8, seed=3) / 3)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.einsum("bi,iho->bho", x, self.w).relu().flatten(1))

    return Case("raw_einsum", Net(), images(8), CE)


@case
def own_linear_class() -> Case:
    class Dense(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(rand(outputs, inputs, seed=outputs) / inputs**0.5)
            self.bias = nn.Parameter(torch.zeros(outputs))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias)

    return net("own_linear", Dense(8, 24), nn.ReLU(), Dense(24, 3), samples=images(8))


@case
def scaled_linear_subclass() -> Case:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    return net("scaled_subclass", Scaled(8, 24), nn.ReLU(), nn.Linear(24, 3), samples=images(8))


@case
def lora() -> Case:
    class LoRA(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.up(self.down(x))

    return net("lora", LoRA(8, 24), nn.ReLU(), nn.Linear(24, 3), samples=images(8))


@case
def called_twice() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(self.a(x).relu()).relu())

    return Case("called_twice", Net(), images(8), CE)


@case
def tied_weights() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x).relu()).relu())

    return Case("tied", Net(), images(8), CE)


@case
def tied_embedding() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.core = nn.Embedding(20, 12), nn.Linear(12, 12)
            self.out = nn.Linear(12, 20, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.core(self.embed(x).mean(1)).tanh())

    x = torch.randint(20, (N, 5), generator=torch.Generator().manual_seed(0))
    return Case("tied_embedding", Net(), [(row, int(row[0])) for row in x], CE)


@case
def weight_norm() -> Case:
    from torch.nn.utils.parametrizations import weight_norm

    return net("weight_norm", weight_norm(nn.Linear(8, 24)), nn.ReLU(), nn.Linear(24, 3), samples=images(8))


@case
def spectral_norm() -> Case:
    from torch.nn.utils.parametrizations import spectral_norm

    return net("spectral_norm", spectral_norm(nn.Linear(8, 24)), nn.ReLU(), nn.Linear(24, 3), samples=images(8))


@case
def lazy_linear() -> Case:
    module = nn.Sequential(nn.LazyLinear(24), nn.ReLU(), nn.LazyLinear(3))
    module(rand(2, 8))
    return Case("lazy_linear", module, images(8), CE)


@case
def normalisations() -> Case:
    return net(
        "norms", nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8),
        nn.Flatten(), nn.LayerNorm(8 * 16), nn.Linear(8 * 16, 3), samples=images(2, 8, 8),
    )  # fmt: skip


@case
def experts() -> Case:
    class Net(nn.Module):
        """Each sample goes through one of two experts."""

        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(8, 2)
            self.experts = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            chosen, out = self.gate(x).softmax(1).max(1), x.new_zeros(len(x), 12)
            for i, expert in enumerate(self.experts):
                rows = chosen.indices == i
                out[rows] = expert(x[rows]) * chosen.values[rows].unsqueeze(1)
            return self.head(out.relu())

    return Case("experts", Net(), images(8), CE)


@case
def squeeze_and_excite() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.squeeze, self.excite = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu()
            return self.head(
                (x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()).mean((2, 3))
            )

    return Case("squeeze_excite", Net(), images(2, 8, 8), CE)


@case
def unused_layer() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.spare, self.head = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x).relu())

    return Case("unused", Net(), images(8), CE)


@case
def frozen_backbone() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(8, 16).requires_grad_(False), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.a(x).relu()
            return self.head(h)

    return Case("frozen_no_grad", Net(), images(8), CE)
