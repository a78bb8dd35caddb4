"""Sizes and FLOPs against counts by hand, by brute force and by torch's own counter."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from prunetaylor.data.samples import Inputs
from prunetaylor.measure.cost import count_flops, count_parameters


def sparsify(module: nn.Module, keep: float = 0.4) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < keep)


def products_by_linearity(module: nn.Module, x: Tensor) -> tuple[int, int]:
    """A linear module's multiply-accumulates from its Jacobian in the weights' indicator: brute force.

    The output with inputs and weights set to one is, entry by entry, how many products were added up there.
    """

    def ones_like(indicator: bool) -> int:
        clone = {name: (p != 0).to(p) if indicator else torch.ones_like(p) for name, p in module.named_parameters()}
        return int(torch.func.functional_call(module, clone, (torch.ones_like(x[:1]),)).sum().item())

    return ones_like(False), ones_like(True)


UNPADDED = [
    pytest.param(nn.Conv2d(4, 6, 3, bias=False), (1, 4, 7, 8), id="conv"),
    pytest.param(nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), (1, 4, 9, 9), id="conv-groups-stride"),
    pytest.param(nn.Conv2d(4, 4, 3, groups=4, dilation=2, bias=False), (1, 4, 9, 9), id="conv-depthwise-dilated"),
    pytest.param(nn.Conv1d(3, 5, 4, stride=3, bias=False), (1, 3, 16), id="conv1d"),
    pytest.param(nn.Conv3d(2, 3, (1, 2, 3), bias=False), (1, 2, 4, 4, 5), id="conv3d"),
    pytest.param(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), (1, 4, 5, 5), id="transposed"),
    pytest.param(nn.Linear(5, 7, bias=False), (1, 5), id="linear"),
    pytest.param(nn.Linear(5, 7, bias=False), (1, 3, 4, 5), id="linear-on-sequences"),
]


@pytest.mark.parametrize(("module", "shape"), UNPADDED)
def test_linear_modules_by_brute_force(module, shape):
    sparsify(module)
    x = torch.randn(shape)
    dense, nonzero = products_by_linearity(module, x)
    assert count_flops(module, Inputs.of(x)) == (2 * dense, 2 * nonzero)
    assert 0 < nonzero < dense


def test_padding_counts_as_input():
    """8 x 8 outputs, 6 x 4/2 x 3 x 3 weights; biases do not count."""
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    with torch.no_grad():
        conv.weight.view(-1)[:10] = 0
    assert count_flops(conv, Inputs.of(torch.randn(1, 4, 8, 8))) == (2 * 64 * 108, 2 * 64 * 98)


def test_attention_counts_projections_by_weight_and_scores_in_full():
    """L = 5 positions, E = 8: three input projections and one of outputs; Q K' and A V of L x L x E each."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return y

    sparsify(attention)
    weights = attention.in_proj_weight.count_nonzero() + attention.out_proj.weight.count_nonzero()
    assert count_flops(Self(), Inputs.of(torch.randn(1, 5, 8))) == (
        2 * (5 * 4 * 64 + 2 * 25 * 8),
        2 * (5 * int(weights) + 2 * 25 * 8),
    )


def test_the_fused_encoder_layer_is_seen_through():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    expected = 2 * (5 * (4 * 64 + 2 * 8 * 16) + 2 * 25 * 8)
    assert count_flops(layer, Inputs.of(torch.randn(1, 5, 8))) == (expected, expected)
    assert torch.backends.mha.get_fastpath_enabled()


class Functional(nn.Module):
    """Matrix products outside any layer: with a parameter (transposed, sliced), and between activations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0], [9.0, 9.0, 9.0]]))

    def forward(self, x: Tensor) -> Tensor:  # (1, 4, 3)
        y = x @ self.weight[:2].t()  # 4 x 6 products, 4 x 3 of them by weights that are not zero
        return y @ y.transpose(1, 2)  # 4 x 4 x 2


def test_functional_products():
    assert count_flops(Functional(), Inputs.of(torch.randn(1, 4, 3))) == (2 * (24 + 32), 2 * (12 + 32))


def test_product_of_two_weights_needs_both():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
            self.b = nn.Parameter(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.a @ self.b

    # over the inner index: 2 rows x 1 column, then 1 row x 2 columns
    assert count_flops(Two(), Inputs.of(torch.zeros(1, 2, 2))) == (2 * 8, 2 * 4)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers(bidirectional):
    lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=bidirectional)
    sparsify(lstm)
    matrices = [p for p in lstm.parameters() if p.dim() == 2]
    assert count_flops(lstm, Inputs.of(torch.randn(1, 5, 4))) == (
        2 * 5 * sum(p.numel() for p in matrices),
        2 * 5 * sum(int(p.count_nonzero()) for p in matrices),
    )


@pytest.mark.parametrize("masked", ["prune", "parametrize"])
def test_weights_that_are_computed(masked):
    class Mask(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * (torch.arange(weight.numel()).view_as(weight) % 3 == 0)

    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 4))
    for layer in (net[0], net[2]):
        if masked == "prune":
            mask = torch.arange(layer.weight.numel()).view_as(layer.weight) % 3 == 0
            prune.custom_from_mask(layer, "weight", mask)
        else:
            parametrize.register_parametrization(layer, "weight", Mask())
    # 12 weights at 3 positions, of which 4 stay; 36 weights, of which 12 stay
    assert count_flops(net, Inputs.of(torch.randn(1, 2, 4))) == (2 * (36 + 36), 2 * (12 + 12))


def test_a_whole_network_agrees_with_torch():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    x = torch.randn(1, 3, 12, 12)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(x)
    assert count_flops(net, Inputs.of(x)) == (counter.get_total_flops(),) * 2


def test_one_sample_whatever_the_batch_and_nothing_is_changed():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, 2))
    net[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random = torch.get_rng_state()
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert count_flops(net, Inputs.of(x)) == count_flops(net, Inputs.of(x[:1]))
    assert [child.training for child in net.children()] == [True, False, True, True, True]
    assert net.training
    assert all(not child._forward_hooks and not child._forward_pre_hooks for child in net.modules())
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in net.parameters())


def test_count_parameters_once_where_tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    with torch.no_grad():
        net[0].weight[0] = 0
        net[0].weight[1, 1] = -0.0
        net[0].bias.fill_(1)
        net[2].bias.fill_(1)
    # 9 shared weights, two biases of 3, batch norm's 3 ones and 3 zeros
    assert count_parameters(net) == (9 + 6 + 6, 5 + 6 + 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_counts_on_a_gpu():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    sparsify(net)
    x = torch.randn(1, 3, 4, 4)
    assert count_flops(net.cuda(), Inputs.of(x.cuda())) == count_flops(net.cpu(), Inputs.of(x))
    lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=True)
    assert count_flops(lstm.cuda(), Inputs.of(torch.randn(1, 5, 4).cuda())) == count_flops(
        lstm.cpu(), Inputs.of(torch.randn(1, 5, 4))
    )
