"""The functions of torch that multiply inputs by a weight, and how each reads its arguments.

Only functions are known here, no modules: whatever class calls one of them with a parameter has a layer there.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunetaylor.network.geometry import Contraction, Convolution, Geometry

IsWeight = Callable[[Tensor], bool]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Product:
    """A product y = W x + b that a function is about to compute.

    ``roles`` has a letter for each dimension of the weight once it is reshaped to ``sizes`` (``weight_form.py``).
    ``compute`` stands for the function where that adds something else than a bias.
    """

    x: Tensor
    weight: Tensor
    sizes: tuple[int, ...]
    roles: str
    geometry: Geometry
    bias: Tensor | None = None
    compute: Callable[[], Tensor] | None = None
    finish: Callable[[Tensor], Tensor] = lambda y: y


def read_product(func: Function, is_weight: IsWeight, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product | None:
    """Return the product that this call computes; None if it is none of a weight with inputs."""
    read = _READERS.get(func)
    return None if read is None else read(is_weight, *args, **kwargs)


def _linear(is_weight: IsWeight, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Product | None:
    letters = string.ascii_letters[: input.dim() - 1]
    if not is_weight(weight):
        return None
    if weight.dim() == 1:
        return _contract(input, weight, f"{letters}Y", "Y", letters)
    return _contract(input, weight, f"{letters}Y", "ZY", f"{letters}Z", bias)


def _matmul(is_weight: IsWeight, input: Tensor, other: Tensor) -> Product | None:
    # The second factor first: a parameter may also be an input, as a learned query is.
    for weight, x in ((other, input), (input, other)):
        if not (isinstance(weight, Tensor) and isinstance(x, Tensor) and is_weight(weight)):
            continue
        batch = string.ascii_lowercase[: max(input.dim(), other.dim(), 2) - 2]
        input_letters, other_letters = (f"{batch[len(batch) - max(0, t.dim() - 2) :]}" for t in (input, other))
        input_letters += "Y" if input.dim() == 1 else "XY"
        other_letters += "Y" if other.dim() == 1 else "YZ"
        out = batch + ("" if input.dim() == 1 else "X") + ("" if other.dim() == 1 else "Z")
        letters = {id(input): input_letters, id(other): other_letters}
        return _contract(x, weight, letters[id(x)], letters[id(weight)], out)
    return None


def _addmm(
    is_weight: IsWeight, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Product | None:
    product = _matmul(is_weight, mat1, mat2)
    if product is None or alpha != 1 or beta != 1:
        return None
    if input.dim() == 1 and product.weight is mat2 and len(input) == mat2.shape[-1]:
        return Product(product.x, product.weight, product.sizes, product.roles, product.geometry, input)
    return Product(
        product.x,
        product.weight,
        product.sizes,
        product.roles,
        product.geometry,
        compute=lambda: mat1 @ mat2,
        finish=lambda y: input + y,
    )


def _einsum(is_weight: IsWeight, equation: object, *operands: Any) -> Product | None:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or not all(isinstance(one, Tensor) for one in operands):
        return None
    terms, _, out = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    if "->" not in equation:
        counts = "".join(letters).replace(".", "")
        out = ("..." if "..." in terms else "") + "".join(sorted(c for c in set(counts) if counts.count(c) == 1))
    for w in (1, 0):
        weight, x = operands[w], operands[1 - w]
        if is_weight(weight) and "..." not in letters[w]:
            free = [c for c in string.ascii_letters if c not in equation]
            more = "".join(free[: x.dim() - len(letters[1 - w].replace("...", ""))])
            return _contract(x, weight, letters[1 - w].replace("...", more), letters[w], out.replace("...", more))
    return None


def _tensordot(is_weight: IsWeight, a: Tensor, b: Tensor, dims: Any = 2, out: Any = None) -> Product | None:
    if isinstance(dims, Tensor) or out is not None:
        return None
    a_dims, b_dims = (range(a.dim() - dims, a.dim()), range(dims)) if isinstance(dims, int) else dims
    a_letters, b_letters = list(string.ascii_lowercase[: a.dim()]), list(string.ascii_uppercase[: b.dim()])
    for i, j in zip(a_dims, b_dims, strict=True):
        b_letters[j] = a_letters[i]
    result = [c for c in a_letters if c not in b_letters] + [c for c in b_letters if c not in a_letters]
    return _einsum(is_weight, f"{''.join(a_letters)},{''.join(b_letters)}->{''.join(result)}", a, b)


def _bilinear(
    is_weight: IsWeight, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Product | None:
    """Read x1' W x2 as a product of W with all products of an entry of x1 and one of x2."""
    if not is_weight(weight):
        return None
    outer = (input1.unsqueeze(-1) * input2.unsqueeze(-2)).flatten(-2)
    batch = string.ascii_letters[: outer.dim() - 1]
    geometry = Contraction(f"{batch}Y", f"{batch}Z", batch, "", "Y", "Z")
    return Product(outer, weight, (len(weight), weight[0].numel()), "rc", geometry, bias)


def _contract(
    x: Tensor, weight: Tensor, x_letters: str, w_letters: str, y_letters: str, bias: Tensor | None = None
) -> Product | None:
    """Return the product in which the letters name the dimensions of inputs, weight and outputs."""
    if any(len(set(part)) < len(part) for part in (x_letters, w_letters, y_letters)):
        return None
    for i in reversed(range(weight.dim())):  # a weight that was expanded along a dimension of the inputs
        if weight.stride(i) == 0 and weight.shape[i] > 1 and w_letters[i] in x_letters and w_letters[i] in y_letters:
            weight, w_letters = weight.select(i, 0), w_letters[:i] + w_letters[i + 1 :]
    sizes = dict(zip(x_letters, x.shape, strict=True))
    if any(sizes.get(one, size) != size for one, size in zip(w_letters, weight.shape, strict=True)):
        return None
    roles = {(True, True): "g", (True, False): "c", (False, True): "r"}
    read = [roles.get((one in x_letters, one in y_letters)) for one in w_letters]
    batch = "".join(one for one in x_letters if one not in w_letters)
    if None in read or any(one not in y_letters for one in batch):
        return None
    by_role = {role: "".join(one for one, r in zip(w_letters, read, strict=True) if r == role) for role in "grc"}
    geometry = Contraction(x_letters, y_letters, batch, by_role["g"], by_role["c"], by_role["r"])
    return Product(x, weight, tuple(weight.shape), "".join(map(str, read)), geometry, bias)


def _convolution(axes: int) -> Callable[..., Product | None]:
    def read(
        is_weight: IsWeight,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Product | None:
        if not is_weight(weight):
            return None
        kernel, steps = tuple(weight.shape[2:]), _per_axis(dilation, axes)
        if isinstance(padding, str):
            total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(steps, kernel, strict=True)]
            pads = tuple((n // 2, n - n // 2) for n in total)
        else:
            pads = tuple((n, n) for n in _per_axis(padding, axes))
        geometry = Convolution(kernel, _per_axis(stride, axes), pads, steps, groups)
        sizes = (groups, len(weight) // groups, *weight.shape[1:])
        return Product(input, weight, sizes, "gr" + "c" * (axes + 1), geometry, bias)

    return read


def _transposed(axes: int) -> Callable[..., Product | None]:
    def read(
        is_weight: IsWeight,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Product | None:
        if not is_weight(weight):
            return None
        pads = tuple((n, n) for n in _per_axis(padding, axes))
        geometry = Convolution(
            tuple(weight.shape[2:]), _per_axis(stride, axes), pads, _per_axis(dilation, axes), groups, transposed=True
        )
        sizes = (groups, len(weight) // groups, *weight.shape[1:])
        return Product(input, weight, sizes, "gcr" + "c" * axes, geometry, bias)

    return read


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * axes if len(sizes) == 1 else sizes


_READERS: dict[Function, Callable[..., Product | None]] = {
    functional.linear: _linear,
    functional.bilinear: _bilinear,
    torch.einsum: _einsum,
    torch.tensordot: _tensordot,
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys(
        (
            *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.linalg.matmul, torch.mm, Tensor.mm),
            *(torch.bmm, Tensor.bmm, torch.mv, Tensor.mv),
        ),
        _matmul,
    ),
    **{getattr(functional, f"conv{n}d"): _convolution(n) for n in (1, 2, 3)},
    **{getattr(functional, f"conv_transpose{n}d"): _transposed(n) for n in (1, 2, 3)},
}
