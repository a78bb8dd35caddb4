"""A layer is a matrix: what it computes is W x + b at every position, for every kind of layer there is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunetaylor.network.layer import (
    Layer,
    input_columns,
    input_rows,
    output_columns,
    output_rows,
    positions,
    shapes_match,
)
from prunetaylor.taylor.curvature.gram import Positions, sampled_rows
from support.samples import rand

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def check(module: nn.Module, x: Tensor, y: Tensor | None = None) -> None:
    """At all positions of all entries, W x + b == y, and as columns (B, G, C, L) they are the same."""
    layer = Layer("layer", (module,))
    y = module(x) if y is None else y
    assert shapes_match(module, x, y)
    each = positions(module, x, y)
    flat = torch.arange(x.shape[0] * each)
    entries, at = flat // each, flat % each
    rows = input_rows(module, x, entries, at, y.shape[2:])
    found = rows @ layer.matrix(layer.weight).mT
    if module.bias is not None:
        found = found + layer.rows(module.bias).unsqueeze(1)
    wanted = output_rows(module, y, entries, at)
    assert wanted.numel() == y.numel()
    torch.testing.assert_close(found, wanted)
    for columns, same in ((input_columns(module, x, y.shape[2:]), rows), (output_columns(module, y), wanted)):
        torch.testing.assert_close(columns.permute(1, 0, 3, 2).flatten(1, 2), same, rtol=0, atol=0)
    torch.testing.assert_close(layer.tensor(layer.matrix(layer.weight)), layer.weight, rtol=0, atol=0)


class Same(nn.Conv2d):
    """Pads by itself, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        pad: list[int] = []
        for size, kernel, stride, dilation in zip(
            x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
        ):
            lack = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
            pad = [lack // 2, lack - lack // 2, *pad]
        return super().forward(nn.functional.pad(x, pad))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_convolution_that_pads_by_itself(data: st.DataObject) -> None:
    pairs = [(data.draw(st.integers(1, high)), data.draw(st.integers(1, high))) for high in (4, 3, 2)]
    module = Same(2, 4, pairs[0], stride=pairs[1], dilation=pairs[2], groups=2).double()
    check(module, rand(2, 2, data.draw(st.integers(4, 9)), data.draw(st.integers(4, 9))).double())


def test_what_is_no_plain_call_is_told() -> None:
    linear, conv, up = nn.Linear(3, 4), nn.Conv2d(2, 4, 3, stride=2), nn.ConvTranspose2d(2, 4, 3, stride=2)
    assert shapes_match(linear, rand(2, 5, 3), rand(2, 5, 4))
    assert not shapes_match(linear, rand(2, 5, 3), rand(2, 4, 5))
    assert not shapes_match(linear, rand(2, 5, 4), rand(2, 5, 4))
    x = rand(2, 2, 9, 9)
    assert shapes_match(conv, x, rand(2, 4, 4, 4))
    for shape in ((2, 4, 4, 6), (2, 3, 4, 4), (1, 4, 4, 4), (2, 4, 4)):
        assert not shapes_match(conv, x, rand(*shape))
    assert shapes_match(up, x, rand(2, 4, 19, 20))
    assert not shapes_match(up, x, rand(2, 4, 19, 21))
    assert not shapes_match(up, rand(2, 3, 9, 9), rand(2, 4, 19, 19))


def spatial(dims: int, *sizes: int) -> tuple[int, ...]:
    return sizes[:dims]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_with_groups(dims: int, groups: int, bias: bool) -> None:
    module = CONVOLUTIONS[dims](6, 12, 3, groups=groups, bias=bias).double()
    check(module, rand(2, 6, *spatial(dims, 6, 5, 4)).double())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 1, 2, "same", "valid"])
def test_convolution_pads_in_every_mode(dims: int, mode: str, padding: int | str) -> None:
    kernel = spatial(dims, 3, 4, 2)
    module = CONVOLUTIONS[dims](2, 3, kernel, padding=padding, padding_mode=mode, dilation=spatial(dims, 2, 1, 1))
    check(module.double(), rand(2, 2, *spatial(dims, 7, 6, 5)).double())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolution_differs_by_dimension(dims: int) -> None:
    module = CONVOLUTIONS[dims](
        2,
        4,
        spatial(dims, 3, 2, 1),
        stride=spatial(dims, 2, 1, 3),
        dilation=spatial(dims, 1, 3, 2),
        padding=spatial(dims, 2, 0, 1),
        groups=2,
    )
    check(module.double(), rand(3, 2, *spatial(dims, 7, 8, 5)).double())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_transposed_convolution(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 3]))

    def per_dimension(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(dims))

    stride, dilation = per_dimension(1, 3), per_dimension(1, 2)
    output_padding = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    module = TRANSPOSED[dims](
        4,
        6,
        per_dimension(1, 3),
        stride=stride,
        dilation=dilation,
        padding=per_dimension(0, 1),
        output_padding=output_padding,
        groups=data.draw(st.sampled_from([1, 2])),
        bias=data.draw(st.booleans()),
    )
    check(module.double(), rand(2, 4, *per_dimension(3, 4)).double())


def test_transposed_convolution_with_an_output_size_asked_for() -> None:
    module = nn.ConvTranspose2d(2, 3, 3, stride=2).double()
    x = rand(2, 2, 4, 5).double()
    for size in ((9, 11), (10, 12), (9, 12)):
        check(module, x, module(x, output_size=size))


@pytest.mark.parametrize("shape", [(5, 4), (3, 7, 4), (2, 3, 2, 4)])
def test_linear_on_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    check(nn.Linear(4, 3).double(), rand(*shape).double())


@pytest.mark.parametrize(
    ("module", "shape"), [(nn.Linear(4, 3), (4,)), (nn.Conv1d(4, 3, 2), (4, 5)), (nn.Conv2d(2, 3, 2), (2, 4, 4))]
)
def test_unbatched_input(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = rand(*shape)
    layer = Layer("layer", (module,))
    rows, outs = sampled_rows(module, x, module(x), Positions(3, 0, 1000), 0, 3)
    torch.testing.assert_close(rows @ layer.matrix(layer.weight).mT + layer.rows(module.bias).unsqueeze(1), outs)
    assert outs.numel() == module(x).numel()


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 4),
        nn.Conv2d(4, 6, (2, 3)),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, (2, 3)),
        nn.ConvTranspose1d(4, 6, 3, groups=2),
    ],
    ids=str,
)
def test_matrix_round_trip(module: nn.Module) -> None:
    layer = Layer("layer", (module,))
    tensor = torch.arange(layer.weight.numel()).view(layer.weight.shape)
    matrix = layer.matrix(tensor)
    out = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    assert matrix.shape == (layer.groups, out // layer.groups, tensor.numel() // out)
    assert torch.equal(layer.tensor(matrix), tensor)
    assert torch.equal(layer.matrix(layer.tensor(matrix)), matrix)


def test_names() -> None:
    assert Layer("a.b", (nn.Linear(1, 1),)).parameter == "a.b.weight"
    assert Layer("", (nn.Linear(1, 1),)).parameter == "weight"
