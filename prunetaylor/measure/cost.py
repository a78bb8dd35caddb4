"""Size and arithmetic cost of a network. A FLOP is one addition or one multiplication: a multiply-accumulate is two.

Counted are the products of convolutions and matrix products, biases and element-wise work aside, and a convolution's
padding counts as input: the conventions of torch.utils.flop_counter. Zero weights save products, not seconds: no
library skips them by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunetaylor.data.samples import Inputs
from prunetaylor.network.state import evaluating

_aten = torch.ops.aten
_CONVOLUTION = _aten.convolution.default
# Where the two factors stand among the arguments.
_PRODUCTS = {
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.mv.default: (0, 1),
    _aten.dot.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
    _aten.addmv.default: (1, 2),
}
# A layer's or a whole network's recurrence in one kernel: the input, then weights, then what is of no interest here.
_RECURRENT = {
    _aten.mkldnn_rnn_layer.default: slice(1, 5),
    _aten._cudnn_rnn.default: slice(1, 2),
    _aten.miopen_rnn.default: slice(1, 2),
}


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return (parameters, those that are not zero). A tied tensor counts once; buffers do not count."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(int(p.detach().count_nonzero()) for p in parameters)


def count_flops(module: nn.Module, example: Inputs) -> tuple[int, int]:
    """Return the FLOPs of one sample's forward pass: (of all products, without the products by zero weights).

    Args:
        module: the network, on the example's device; run once, in evaluation mode, nothing of it changed.
        example: a batch of inputs, ready for the network; only its first sample is used.
    """
    counter = _ProductCounter(module)
    with evaluating(module), _unfused(), torch.no_grad(), counter, _WeightsOfLinear(counter):
        example.rows(slice(1)).call(module)
    return 2 * counter.products, 2 * counter.nonzero


class _ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts products as tensors meet, below every module and function, so that nothing has to be known by name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products = 0
        self.nonzero = 0
        # By storage: a transposed or sliced weight is still one. Held, so that no activation takes a weight's address.
        self._weights: dict[int, Tensor] = {}
        for parameter in module.parameters():
            self.add_weight(parameter.detach())

    def add_weight(self, weight: Tensor) -> None:
        self._weights[weight.untyped_storage().data_ptr()] = weight

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload) and not self._counts(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if func is _CONVOLUTION:
            self._convolution(args[0], args[1], result, transposed=args[6])
        elif func in _PRODUCTS:
            self._product(*(args[i] for i in _PRODUCTS[func]))
        elif func in _RECURRENT:
            self._recurrence(args[0], args[_RECURRENT[func]])
        return result

    @staticmethod
    def _counts(func: Any) -> bool:
        return func is _CONVOLUTION or func in _PRODUCTS or func in _RECURRENT

    def _convolution(self, x: Tensor, weight: Tensor, y: Tensor, *, transposed: bool) -> None:
        """Count one input for each weight at every position: of the output, or of the input if transposed."""
        spatial = (x if transposed else y).shape[2:]
        positions = x.shape[0] * spatial.numel()
        self.products += positions * weight.numel()
        self.nonzero += positions * int(weight.count_nonzero())

    def _recurrence(self, x: Tensor, weights: Any) -> None:
        """Count one value for each entry of a weight matrix at every time step of every sequence, x (..., features)."""
        steps = x.numel() // x.shape[-1]
        for weight in tree_leaves(weights):
            if weight.dim() == 2:
                self.products += steps * weight.numel()
                self.nonzero += steps * int(weight.count_nonzero())

    def _product(self, a: Tensor, b: Tensor) -> None:
        """Count a (..., M, K) times b (..., K, N): over K, rows of one meet columns of the other."""
        a = a.unsqueeze(-2) if a.dim() == 1 else a
        b = b.unsqueeze(-1) if b.dim() == 1 else b
        self.products += a.numel() * b.shape[-1]
        met = self._work(a, -2) * self._work(b, -1)  # (..., K)
        self.nonzero += int(met.sum())

    def _work(self, factor: Tensor, dim: int) -> Tensor:
        """Return the entries along ``dim`` that count: all of an activation's, the nonzero ones of a weight."""
        if factor.untyped_storage().data_ptr() in self._weights:
            return factor.count_nonzero(dim)
        shape = [n for i, n in enumerate(factor.shape) if i != factor.dim() + dim]
        return torch.full(shape, factor.shape[dim], dtype=torch.int64, device=factor.device)


class _WeightsOfLinear(TorchFunctionMode):
    """Tells the counter of linear weights that are computed (a mask times a parameter), thus no parameters."""

    def __init__(self, counter: _ProductCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear:
            self._counter.add_weight(args[1] if len(args) > 1 else kwargs["weight"])
        return func(*args, **kwargs)


@contextmanager
def _unfused() -> Iterator[None]:
    """Compute attention by plain matrix products: fused kernels show none of them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
