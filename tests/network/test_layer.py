"""A layer is a matrix: what it computes is W x + b at every position, for every kind of layer there is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from prunetaylor.network.layer import Call, Layer
from prunetaylor.network.network import Network
from prunetaylor.network.observation import observing
from prunetaylor.taylor.curvature.gram import Positions, sampled_rows
from support.samples import rand

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def check(module: nn.Module, *x: Tensor) -> list[Layer]:
    """At all positions of all entries of every call, W x + b == y; as columns (B, G, C, L) they are the same.

    The network computes the same while it is observed. Returns its layers.
    """
    module.eval()
    with torch.no_grad():
        y = outputs(module(*x))
        network = Network.from_module(module, run=lambda m: m(*x))
        calls: list[Call] = []
        with observing(network.layers, calls.append):
            torch.testing.assert_close(outputs(module(*x)), y)
    assert {call.layer.name for call in calls} == {layer.name for layer in network.layers}
    for call in calls:
        check_call(call)
    for layer in network.layers:
        torch.testing.assert_close(layer.tensor(layer.matrix(layer.weight)), layer.weight, rtol=0, atol=0)
    return network.layers


def outputs(result: object) -> Tensor:
    """The first tensor in what a module returned."""
    while not isinstance(result, Tensor):
        result = result[0]
    return result


def check_call(call: Call) -> None:
    x, y, geometry = call.inputs, call.outputs, call.geometry
    each = geometry.positions(y)
    flat = torch.arange(len(x) * each)
    entries, at = flat // each, flat % each
    rows, wanted = geometry.input_rows(x, y, entries, at), geometry.output_rows(y, entries, at)
    found = rows @ call.layer.matrix(call.layer.weight)[slice(*call.groups)].mT
    if call.bias is not None:
        found = found + call.bias.reshape(len(found), 1, -1)
    assert wanted.numel() == call.y.numel()
    torch.testing.assert_close(found, wanted)
    for columns, same in ((geometry.input_columns(x, y), rows), (geometry.output_columns(y), wanted)):
        torch.testing.assert_close(columns.permute(1, 0, 3, 2).flatten(1, 2), same, rtol=0, atol=0)


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
    class Sized(nn.ConvTranspose2d):
        size = (0, 0)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, output_size=self.size)

    module = Sized(2, 3, 3, stride=2).double()
    for size in ((9, 11), (10, 12), (9, 12)):
        module.size = size
        check(module, rand(2, 2, 4, 5).double())


@pytest.mark.parametrize("shape", [(5, 4), (3, 7, 4), (2, 3, 2, 4)])
def test_linear_on_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    check(nn.Linear(4, 3).double(), rand(*shape).double())


@pytest.mark.parametrize(
    ("module", "shape"), [(nn.Linear(4, 3), (4,)), (nn.Conv1d(4, 3, 2), (4, 5)), (nn.Conv2d(2, 3, 2), (2, 4, 4))]
)
def test_unbatched_input(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = rand(*shape).double()
    check(module.double(), x)
    calls: list[Call] = []
    with observing(Network.from_module(module).layers, calls.append):
        module(x)
    rows, outs = sampled_rows(calls[0], Positions(3, 0, 1000), 0, 3)
    layer = calls[0].layer
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
    (layer,) = Network.from_module(module).layers
    tensor = torch.arange(layer.weight.numel()).view(layer.weight.shape)
    matrix = layer.matrix(tensor)
    out = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    assert matrix.shape == (layer.groups, out // layer.groups, tensor.numel() // out)
    assert torch.equal(layer.tensor(matrix), tensor)
    assert torch.equal(layer.matrix(layer.tensor(matrix)), matrix)


class Raw(nn.Module):
    """A parameter that a function multiplies inputs by."""

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.use = nn.Parameter(rand(*shape).double()), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.w)


RAW: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, int, int]]] = {
    # the weight's shape, its use, the input's shape, and (G, R, C)
    "x @ w": ((8, 5), lambda x, w: x @ w, (2, 3, 8), (1, 5, 8)),
    "w @ x": ((5, 8), lambda x, w: w @ x, (8, 3), (1, 5, 8)),
    "w @ vector": ((5, 8), lambda x, w: w @ x, (8,), (1, 5, 8)),
    "w.T @ x": ((8, 5), lambda x, w: w.T @ x, (2, 8, 3), (1, 5, 8)),
    "linear of a transpose": ((8, 5), lambda x, w: F.linear(x, w.t()), (2, 3, 8), (1, 5, 8)),
    "addmm": ((8, 5), lambda x, w: torch.addmm(x.new_ones(5), x, w), (4, 8), (1, 5, 8)),
    "addmm to outputs": ((8, 5), lambda x, w: torch.addmm(x.new_ones(4, 5), x, w), (4, 8), (1, 5, 8)),
    "einsum": ((8, 2, 3), lambda x, w: torch.einsum("bni,iho->bhno", x, w), (2, 4, 8), (1, 6, 8)),
    "einsum with dots": ((8, 5), lambda x, w: torch.einsum("...i,io->...o", x, w), (2, 3, 8), (1, 5, 8)),
    "tensordot": ((8, 5), lambda x, w: torch.tensordot(x, w, dims=1), (2, 3, 8), (1, 5, 8)),
    "stacked matrices": ((3, 8, 5), torch.bmm, (3, 4, 8), (3, 5, 8)),
    "stacked, by einsum": ((3, 8, 5), lambda x, w: torch.einsum("bei,eio->beo", x, w), (2, 3, 8), (3, 5, 8)),
    "one of a stack at a time": (
        (3, 5, 8), lambda x, w: torch.cat([F.linear(x[i], w[i]) for i in range(3)]), (3, 4, 8), (3, 5, 8),
    ),
    "one input for a stack": ((3, 8, 5), lambda x, w: x @ w, (4, 8), (1, 15, 8)),
    "expanded": ((8, 5), lambda x, w: torch.bmm(x, w.expand(2, 8, 5)), (2, 3, 8), (1, 5, 8)),
    "kernel": ((6, 1, 3, 3), lambda x, w: F.conv2d(x, w, groups=2, padding=1), (2, 2, 5, 5), (2, 3, 9)),
    "blocks of rows": (
        (6, 8), lambda x, w: F.linear(x[:, :1], w[:2]) + F.linear(x[:, 1:], w[2:]).sum(), (2, 3, 8), (3, 2, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_a_parameter_that_is_multiplied_is_a_layer(case: str) -> None:
    shape, use, inputs, matrix = RAW[case]
    (layer,) = check(Raw(shape, use), rand(*inputs).double())
    assert layer.name == "w"
    assert layer.form.shape == matrix


@pytest.mark.parametrize(
    "use",
    [
        lambda x, w: F.linear(F.linear(x, w), w.t()),  # rows in one use, columns in the other
        lambda x, w: F.linear(x, w / w.norm()),  # computed
        lambda x, w: x.mean() * w,
    ],
)
def test_what_is_no_product_with_inputs_is_skipped_with_a_reason(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = nn.Sequential(nn.Linear(3, 8).double(), Raw((5, 8), use))
    network = Network.from_module(module, run=lambda m: m(rand(2, 3).double()))
    assert [layer.name for layer in network.layers] == ["0"]
    assert [one.name for one in network.skipped] == ["1.w"]


@pytest.mark.parametrize("attention", ["self", "cross", "apart"])
def test_attention(attention: str) -> None:
    sizes = {"kdim": 4, "vdim": 6} if attention == "apart" else {}
    module = nn.MultiheadAttention(8, 2, batch_first=True, **sizes).double()
    x, other = rand(2, 3, 8).double(), rand(2, 5, 8, seed=1).double()
    keys, values = {"self": (x, x), "cross": (other, other), "apart": (other[..., :4], other[..., :6])}[attention]
    layers = {layer.name: layer.form.shape for layer in check(module, x, keys, values)}
    packed = {"self": (1, 24, 8), "cross": (3, 8, 8)}
    assert layers["out_proj"] == (1, 8, 8)
    assert layers.get("in_proj_weight") == packed.get(attention)
    assert len(layers) == (2 if attention in packed else 4)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "how", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}, {"bias": False}, {"proj_size": 2}]
)
def test_a_recurrent_network_is_replayed(kind: type[nn.RNNBase], packed: bool, how: dict[str, Any]) -> None:
    if "proj_size" in how and kind is not nn.LSTM:
        pytest.skip("only an LSTM projects")
    module, x = kind(3, 4, **how).double(), rand(5, 5, 3).double()
    if packed:
        x = nn.utils.rnn.pack_padded_sequence(x, [2, 5, 1, 4, 5], enforce_sorted=False)
    layers = check(module, x)
    assert {layer.parameter for layer in layers} == {n for n, p in module.named_parameters() if p.dim() == 2}


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_recurrent_cell_is_replayed(kind: type[nn.RNNCellBase]) -> None:
    assert len(check(kind(3, 4).double(), rand(2, 3).double())) == 2


def test_a_bilinear_module_multiplies_products_of_its_inputs() -> None:
    (layer,) = check(nn.Bilinear(3, 4, 5).double(), rand(2, 6, 3).double(), rand(2, 6, 4).double())
    assert layer.form.shape == (1, 5, 12)
