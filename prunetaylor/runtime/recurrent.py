"""Recurrent networks step by step: what torch computes in one operator, with every product a call of its own.

Fused kernels show none of their products, and on a CPU have no derivative in forward mode. The functions here take the
arguments of ``torch.lstm``, ``torch.gru`` and the others, and return what these return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

State = tuple[Tensor, ...]
"""The hidden state h (B, H), and for an LSTM the cell state c (B, H)."""


@dataclass(frozen=True)
class _Weights:
    """The weights of one layer in one direction."""

    inputs: Tensor
    hidden: Tensor
    inputs_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None


Step = Callable[[Tensor, State, _Weights], State]
"""A step from the product of the inputs (B, gates x H) and the state to the next state."""


def _lstm_step(product: Tensor, state: State, weights: _Weights) -> State:
    h, c = state
    i, f, g, o = (product + linear(h, weights.hidden, weights.hidden_bias)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if weights.projection is None else linear(h, weights.projection)), c


def _gru_step(product: Tensor, state: State, weights: _Weights) -> State:
    (h,) = state
    from_h = linear(h, weights.hidden, weights.hidden_bias)
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = product.chunk(3, -1), from_h.chunk(3, -1)
    new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
    return (new + (update_x + update_h).sigmoid() * (h - new),)


def _rnn_step(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(product: Tensor, state: State, weights: _Weights) -> State:
        (h,) = state
        return (activation(product + linear(h, weights.hidden, weights.hidden_bias)),)

    return step


def _cell(step: Step) -> Callable[..., Any]:
    def run(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        after = step(linear(input, w_ih, b_ih), state, _Weights(w_ih, w_hh, b_ih, b_hh))
        return after[0] if isinstance(hx, Tensor) else after

    return run


def _network(step: Step) -> Callable[..., Any]:
    def run(input: Tensor, *args: Any) -> Any:
        # After the input: batch sizes of a packed sequence, state, weights, has_biases, layers, dropout, training,
        # bidirectional, and batch_first unless it is packed.
        packed = not isinstance(args[2], bool)
        hx, params, biases, layers, drop, training, both, *order = args[1:] if packed else args
        sizes = args[0].tolist() if packed else None
        time_first = not packed and not order[0]
        x = input.transpose(0, 1) if time_first else input
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        ways, finals = 2 if both else 1, []
        each = len(params) // (layers * ways)
        for n in range(layers):
            outputs = []
            for way in range(ways):
                k = n * ways + way
                weights = _split(params[k * each : (k + 1) * each], biases)
                y, final = _run(step, x, tuple(s[k] for s in state), weights, sizes, backwards=way == 1)
                outputs.append(y)
                finals.append(final)
            x = torch.cat(outputs, -1) if both else outputs[0]
            if n < layers - 1:
                x = dropout(x, drop, training)
        return (x.transpose(0, 1) if time_first else x), *(torch.stack(part) for part in zip(*finals, strict=True))

    return run


def _split(params: Sequence[Tensor], biases: bool) -> _Weights:
    """Return the weights of one layer and direction from torch's list: a projection, if there is one, comes last."""
    projection = params[-1] if len(params) % 2 else None
    inputs, hidden = params[:2]
    inputs_bias, hidden_bias = params[2:4] if biases else (None, None)
    return _Weights(inputs, hidden, inputs_bias, hidden_bias, projection)


def _run(
    step: Step, x: Tensor, state: State, weights: _Weights, sizes: Sequence[int] | None, *, backwards: bool
) -> tuple[Tensor, State]:
    """Return the outputs of one layer in one direction, and its last state.

    ``x`` is (B, T, I); or, with ``sizes``, the rows of a packed sequence: those of the first step, of the second...
    """
    product = linear(x, weights.inputs, weights.inputs_bias)
    steps = product.unbind(1) if sizes is None else torch.split(product, list(sizes))
    outputs = []
    for one in reversed(steps) if backwards else steps:
        # The first rows are those of sequences that have this step.
        after = step(one, tuple(s[: len(one)] for s in state), weights)
        state = tuple(a if len(a) == len(s) else torch.cat([a, s[len(a) :]]) for a, s in zip(after, state, strict=True))
        outputs.append(after[0])
    if backwards:
        outputs.reverse()
    return (torch.stack(outputs, 1) if sizes is None else torch.cat(outputs)), state


STEP_BY_STEP: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.lstm: _network(_lstm_step),
    torch.gru: _network(_gru_step),
    torch.rnn_tanh: _network(_rnn_step(torch.tanh)),
    torch.rnn_relu: _network(_rnn_step(torch.relu)),
    torch.lstm_cell: _cell(_lstm_step),
    torch.gru_cell: _cell(_gru_step),
    torch.rnn_tanh_cell: _cell(_rnn_step(torch.tanh)),
    torch.rnn_relu_cell: _cell(_rnn_step(torch.relu)),
}
"""The operators of torch, and the functions that stand for them."""
