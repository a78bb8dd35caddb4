"""The derivative of outputs along a step is the same in forward mode, by two backward passes, and by a difference."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunetaylor.data.samples import Inputs
from prunetaylor.taylor.curvature.directional import differentiate_outputs
from support.samples import rand


class Square(torch.autograd.Function):
    """A square without a forward-mode derivative; with ``once`` its backward pass cannot be differentiated either."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, once: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.once = once
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.once and torch.is_grad_enabled():
            raise NotImplementedError("double backward")
        return 2 * ctx.saved_tensors[0] * gradient, None


class Net(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Linear(4, 5), nn.Linear(5, 3), way

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h * h if self.way == "forward mode" else Square.apply(h, self.way == "a central difference"))


@pytest.mark.parametrize(("way", "tolerance"), [("two backward passes", 1e-5), ("a central difference", 1e-2)])
def test_ways(way: str, tolerance: float) -> None:
    torch.manual_seed(0)
    plain, other, x, notes = Net("forward mode"), Net(way), Inputs.of(rand(6, 4)), list[str]()
    other.load_state_dict(plain.state_dict())
    state = {name: tensor.detach() for name, tensor in plain.named_parameters()}
    step = {name: 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    expected = differentiate_outputs(plain, x, state, step, notes.append)
    assert not notes
    for _ in range(2):
        found = differentiate_outputs(other, x, state, step, notes.append)
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1], rtol=tolerance, atol=tolerance)
    assert notes[-1].startswith(f"derivatives: {way}")
    assert len(notes) == (1 if way == "two backward passes" else 2)


def test_a_recurrent_network_has_a_forward_mode_derivative() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return F.softplus(self.core(x)[0][:, -1])

    module, notes = Last(), list[str]()
    state = {name: tensor.detach() for name, tensor in module.named_parameters()}
    moved = differentiate_outputs(module, Inputs.of(rand(2, 5, 4)), state, state, notes.append)[1]
    assert not notes
    assert bool(moved.any())
