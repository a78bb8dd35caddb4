"""Gauss-Newton products against the whole matrix J'HJ in float64."""

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.taylor.curvature.gauss_newton import gauss_newton_product
from support.networks import NETWORKS, Encoder, network_case, normed
from support.samples import rand
from support.taylor_models import jacobians, output_hessian, outputs_at, risk


def vector(module: nn.Module, names: list[str], seed: int = 5) -> dict[str, Tensor]:
    known = dict(module.named_parameters(remove_duplicate=False))
    return {name: rand(*known[name].shape, seed=seed + i) for i, name in enumerate(names)}


def oracle(module: nn.Module, x: Tensor, v: dict[str, Tensor], task: str) -> dict[str, Tensor]:
    each = jacobians(module, x, list(v))
    h = output_hessian(outputs_at(module, x)({}).detach(), task)
    moved = sum(torch.einsum("nk...,...->nk", j, v[name].double()) for name, j in each.items())
    weighted = torch.einsum("nij,nj->ni", h, moved)
    return {name: torch.einsum("nk...,nk->...", j, weighted) / len(x) for name, j in each.items()}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_over_all_parameters(name: str, size: int, task: str) -> None:
    module, x, _ = network_case(name)
    v = vector(module, [n for n, _ in module.named_parameters()])
    close(gauss_newton_product(risk(module, x, task=task, size=size), v), oracle(module, x, v, task))


def test_over_some_parameters_the_others_stay() -> None:
    module, x, _ = network_case("normed")
    v = vector(module, ["4.weight", "1.bias"])
    close(gauss_newton_product(risk(module, x), v), oracle(module, x, v, "classification"))


def test_attention() -> None:
    module, x = Encoder().eval(), rand(6, 5, 4)
    v = vector(module, ["layer.self_attn.in_proj_weight", "layer.linear1.weight", "head.weight"])
    # Differences instead of a Jacobian: fused attention has no batched derivative.
    outputs, weights = outputs_at(module, x), {k: w.detach().double() for k, w in module.named_parameters()}
    leaves = {k: weights[k].clone().requires_grad_() for k in v}
    ends = [outputs({k: weights[k] + s * 1e-5 * v[k].double() for k in v}).detach() for s in (1, -1)]
    moved = (ends[0] - ends[1]) / 2e-5
    z = outputs(leaves)
    weighted = torch.einsum("nij,nj->ni", output_hessian(z.detach(), "classification"), moved)
    wanted = torch.autograd.grad((z * weighted).sum() / len(x), list(leaves.values()))
    close(gauss_newton_product(risk(module, x), v), dict(zip(v, wanted, strict=True)))
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_matrix_is_symmetric_and_its_quadratic_form_is_not_negative() -> None:
    module, x, _ = network_case("conv")
    at = risk(module, x)
    names = [n for n, _ in module.named_parameters()]
    u, v = vector(module, names, 1), vector(module, names, 20)
    gu, gv = gauss_newton_product(at, u), gauss_newton_product(at, v)
    left, right = (sum(float((a[n] * b[n]).sum()) for n in names) for a, b in ((u, gv), (v, gu)))
    assert left == pytest.approx(right, rel=1e-4)
    assert sum(float((u[n] * gu[n]).sum()) for n in names) > 0


def test_a_tied_tensor_moves_once_under_any_of_its_names() -> None:
    module, x, _ = network_case("tied")
    at, d = risk(module, x), rand(3, 3)
    wanted = oracle(module, x, {"a.weight": d}, "classification")["a.weight"]
    for names in (["a.weight"], ["b.weight"], ["a.weight", "b.weight"]):
        close(gauss_newton_product(at, dict.fromkeys(names, d)), dict.fromkeys(names, wanted))


def test_a_parameter_without_part_in_the_outputs() -> None:
    module, x, _ = network_case("mlp")
    module[1].unused = nn.Parameter(torch.ones(2))
    found = gauss_newton_product(risk(module, x), {"1.unused": torch.ones(2), "0.bias": torch.ones(4)})
    assert bool((found["1.unused"] == 0).all())
    assert bool((found["0.bias"] != 0).any())


def test_what_is_no_parameter_is_refused() -> None:
    module, x, _ = network_case("normed")
    for name in ("1.running_mean", "2.weight"):
        with pytest.raises(ValueError, match=f"no parameter '{name}'"):
            gauss_newton_product(risk(module, x), {name: torch.ones(3)})


def test_a_product_that_is_not_finite_is_refused_by_name() -> None:
    module, x, _ = network_case("mlp")
    with pytest.raises(NumericsError, match=r"0\.weight: .*Gauss-Newton"):
        gauss_newton_product(risk(module, x), {"0.weight": torch.full((4, 3), float("nan"))})


def test_nothing_is_left_behind() -> None:
    module, x = normed().train(), rand(6, 2, 3, 3)
    module[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    gauss_newton_product(risk(module, x), vector(module, ["0.weight"]))
    assert all(child.training for child in module.modules())
    assert not module[0].weight.requires_grad
    assert all(p.grad is None for p in module.parameters())
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
