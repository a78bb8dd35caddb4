"""The Taylor model's predictions against Hessians and Jacobians of the whole state in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian

from prunetaylor.core.errors import NumericsError
from prunetaylor.taylor.convergence import check_convergence
from prunetaylor.taylor.model import Prediction
from support.networks import NETWORKS, Encoder, network_case, normed, two_layers
from support.samples import rand
from support.taylor_models import jacobians, output_hessian, outputs_at, taylor


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm that does more than a batch norm (some libraries' do)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def step(module: nn.Module, seed: int = 5) -> dict[str, Tensor]:
    """A displacement of every parameter, tied ones under their own name."""
    return {name: 0.3 * rand(*p.shape, seed=seed + i) for i, (name, p) in enumerate(module.named_parameters())}


def as_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().double() for name, p in module.named_parameters()}


def along(
    error: Callable[[dict[str, Tensor]], Tensor], module: nn.Module, d: dict[str, Tensor]
) -> Callable[[Tensor], Tensor]:
    state = as_state(module)
    return lambda t: error({k: v + t * d[k].double() for k, v in state.items()})


@pytest.mark.parametrize("name", NETWORKS)
def test_divergence_at_the_dense_weights_is_predicted_by_its_own_hessian(name: str) -> None:
    module, x, _ = network_case(name)
    d = step(module)
    outputs = outputs_at(module, x)
    dense = outputs(as_state(module)).detach().log_softmax(1)

    def error(state: dict[str, Tensor]) -> Tensor:
        return nn.functional.kl_div(outputs(state).log_softmax(1), dense, log_target=True, reduction="batchmean")

    zero = torch.zeros(()).double()
    found = taylor(module, x).predict(d)
    assert abs(found.first_order) < 1e-7
    assert found.second_order == pytest.approx(0.5 * float(hessian(along(error, module, d))(zero)), rel=1e-4)
    assert found.first_order_share < 1e-4


def test_the_full_hessian_is_the_gauss_newton_matrix_at_the_dense_weights() -> None:
    """Weight by weight and pair by pair, over the state of a network of 31 parameters."""
    module, x, _ = network_case("mlp")
    outputs, state = outputs_at(module, x), as_state(module)
    dense = outputs(state).detach().log_softmax(1)
    h = hessian(
        lambda s: nn.functional.kl_div(outputs(s).log_softmax(1), dense, log_target=True, reduction="batchmean")
    )(state)
    model = taylor(module, x)
    names = list(state)
    flat = torch.cat([torch.cat([h[a][b].reshape(state[a].numel(), -1) for b in names], 1) for a in names]).detach()
    torch.testing.assert_close(
        torch.cat([model.diagonal[n].flatten().double() for n in ("0.weight", "2.weight")]),
        torch.cat([flat.diagonal()[:12], flat.diagonal()[16:28]]),
        rtol=1e-4,
        atol=1e-6,
    )
    for seed in range(3):
        d = step(module, seed)
        v = torch.cat([d[n].flatten() for n in names]).double()
        assert model.predict(d).second_order == pytest.approx(float(v @ flat @ v) / 2, rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("task", "kind"), [("classification", "task"), ("regression", "task"), ("regression", "divergence")]
)
def test_gradient_and_gauss_newton_of_any_error(name: str, task: str, kind: str) -> None:
    module, x, y = network_case(name)
    y = y if task == "classification" else rand(6, 3, seed=9)
    d = step(module)
    outputs, state = outputs_at(module, x), as_state(module)
    z = outputs(state).detach()
    if task == "classification":
        gradient = z.softmax(1) - nn.functional.one_hot(y, 3)
    else:
        gradient = z - (y.double() if kind == "task" else z)
    moved = sum(torch.einsum("nk...,...->nk", j, d[k].double()) for k, j in jacobians(module, x, list(d)).items())
    second = torch.einsum("ni,nij,nj->", moved, output_hessian(z, task), moved) / 12
    found = taylor(module, x, y, task=task, kind=kind).predict(d)
    assert found.first_order == pytest.approx(float((gradient * moved).sum()) / 6, rel=1e-4, abs=1e-7)
    assert found.second_order == pytest.approx(float(second), rel=1e-4)


def test_first_term_is_the_gradient_s() -> None:
    module, x, y = network_case("conv")
    model, d = taylor(module, x, y, kind="task"), step(module)
    only = {k: v for k, v in d.items() if k in model.gradient}
    by_gradient = sum(float((model.gradient[k] * v).sum()) for k, v in only.items())
    assert model.predict(only).first_order == pytest.approx(by_gradient, rel=1e-4)
    outputs = outputs_at(module, x)
    exact = grad(along(lambda s: nn.functional.cross_entropy(outputs(s), y), module, d))(torch.zeros(()).double())
    assert model.predict(d).first_order == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_predictions_do_not_depend_on_the_batch_size(size: int) -> None:
    module, x, y = network_case("normed")
    d = step(module)
    wanted, found = (taylor(module, x, y, kind="task", size=s).predict(d) for s in (3, size))
    assert (found.first_order, found.second_order) == pytest.approx((wanted.first_order, wanted.second_order), rel=1e-5)


def by_differences(module: nn.Module, x: Tensor, d: dict[str, Tensor]) -> float:
    """d'Gd / 2 of the divergence, with J d from central differences in float64: any tensor may move."""
    outputs = outputs_at(module, x)
    state = as_state(module) | {k: v.double() for k, v in module.named_buffers() if v.is_floating_point()}
    eps = 1e-5
    ends = [outputs({k: v + s * eps * d.get(k, torch.zeros(())).double() for k, v in state.items()}) for s in (1, -1)]
    moved = ((ends[0] - ends[1]) / (2 * eps)).detach()
    h = output_hessian(outputs(state).detach(), "classification")
    return float(torch.einsum("ni,nij,nj->", moved, h, moved)) / 2 / len(x)


@pytest.mark.parametrize(
    "make", [normed, lambda: normed(ActivatedNorm), lambda: normed(lambda c: nn.BatchNorm2d(c, affine=False))]
)
def test_batch_norm_statistics_may_move_and_integer_buffers_do_not(make: Callable[[], nn.Module]) -> None:
    module, x = make().eval(), 1.5 * rand(6, 2, 3, 3)
    d = step(module) | {"1.running_mean": 0.2 * rand(3, seed=7), "1.running_var": 0.2 * rand(3, seed=8)}
    model = taylor(module, x)
    found = model.predict(d | {"1.num_batches_tracked": torch.tensor(7)})
    assert found.second_order == pytest.approx(by_differences(module, x, d), rel=1e-3)
    alone = {"1.running_mean": d["1.running_mean"]}
    assert model.predict(alone).second_order == pytest.approx(by_differences(module, x, alone), rel=1e-3)
    assert found.second_order > 0


@pytest.mark.parametrize("make", [Attention, Encoder])
def test_attention(make: Callable[[], nn.Module]) -> None:
    module, x = make().eval(), rand(6, 5, 4)
    d = step(module)
    assert taylor(module, x).predict(d).second_order == pytest.approx(by_differences(module, x, d), rel=1e-3)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_tied_tensor_moves_once_under_any_of_its_names() -> None:
    module, x, _ = network_case("tied")
    model, d = taylor(module, x), 0.3 * rand(3, 3)
    wanted = by_differences(module, x, {"a.weight": d})
    for displacement in ({"a.weight": d}, {"b.weight": d}, {"a.weight": d, "b.weight": d}):
        assert model.predict(displacement).second_order == pytest.approx(wanted, rel=1e-3)


def test_nothing_moves_nothing() -> None:
    module, x, y = network_case("normed")
    model = taylor(module, x, y, kind="task")
    for displacement in ({}, {k: torch.zeros_like(v) for k, v in model.state.items()}):
        found = model.predict(displacement)
        assert (found.first_order, found.second_order, found.first_order_share) == (0, 0, 0)


def test_the_expansion_stays_where_it_was_made() -> None:
    module, x, _ = network_case("normed")
    d = step(module)
    model = taylor(module, x)
    before = model.predict(d)
    with torch.no_grad():
        for p in module.parameters():
            p += 1
        module[1].running_mean += 1
    assert model.predict(d) == before


def test_the_module_is_put_back() -> None:
    module, x, _ = network_case("normed")
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    model = taylor(module, x)
    model.predict(step(module))
    assert [len(v) for v in (model.moments, model.gradient, model.diagonal, model.sensitivity)] == [2, 2, 2, 2]
    assert all(m.training for m in module.modules())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in module.modules())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_prediction_that_is_not_finite_is_refused() -> None:
    module, x, _ = network_case("mlp")
    with pytest.raises(NumericsError, match=r"0\.weight(.|\n)*prune.damping"):
        taylor(module, x).predict({"0.weight": torch.full((4, 3), float("nan"))})


class Roots(nn.Module):
    """A square root at zero behind one of three layers: its derivative is infinite."""

    def __init__(self, behind: int) -> None:
        super().__init__()
        self.a, self.b, self.c, self.behind = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), behind

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate((self.a, self.b, self.c)):
            x = layer(x)
            x = x.relu().sqrt() if i == self.behind else x
        return x


@pytest.mark.parametrize(("behind", "where"), [(0, "a and b"), (1, "b and c"), (2, "c and the error")])
def test_a_derivative_that_is_not_finite_is_found_between_layers(behind: int, where: str) -> None:
    module, x = Roots(behind).eval(), rand(20, 4)
    moves = {"a.weight": torch.ones(4, 4), "c.weight": torch.ones(3, 4)}
    with pytest.raises(NumericsError, match=rf"no finite derivative between {where}\n.*square root"):
        taylor(module, x).predict(moves)
    assert not any(m._forward_hooks for m in module.modules())


def test_share_and_change() -> None:
    found = Prediction(-1.0, 3.0)
    assert found.first_order_share == 0.25
    assert found.change(True) == 2.0
    assert found.change(False) == 3.0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_small_step_changes_the_error_by_what_is_predicted(name: str) -> None:
    module, x, _ = network_case(name)
    d = {k: 1e-2 * v for k, v in step(module).items()}
    outputs, state = outputs_at(module, x), as_state(module)
    ends = [outputs({k: v + t * d[k].double() for k, v in state.items()}).detach().log_softmax(1) for t in (0, 1)]
    measured = float(nn.functional.kl_div(ends[1], ends[0], log_target=True, reduction="batchmean"))
    assert taylor(module, x).predict(d).change(True) == pytest.approx(measured, rel=0.03)


def trained(converged: bool) -> tuple[nn.Module, Tensor, Tensor]:
    module, x = nn.Linear(4, 3).eval(), rand(400, 4)
    y = torch.multinomial((2 * x[:, :3]).softmax(1), 1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    if converged:
        optimizer = torch.optim.LBFGS(
            module.parameters(), max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        module.zero_grad()
    return module, x, y


@pytest.mark.parametrize("converged", [True, False])
def test_convergence_is_seen(converged: bool) -> None:
    module, x, y = trained(converged)
    found = check_convergence(taylor(module, x, y, kind="task", size=100), 0.25)
    assert found.first_order_matters is not converged
    assert (found.gradient_norm < 0.1 * found.noise_norm) is converged
    assert (found.first_order_share < 0.05) is converged
    assert f"{found.first_order_share:.0%} of the change" in found.describe()


def test_dead_inputs_and_layers_without_a_curvature_are_named() -> None:
    torch.manual_seed(0)
    module = two_layers()
    x = rand(20, 3)
    x[:, 1] = 0.5
    model = taylor(module, x)
    assert model.moments.keys() == {"0", "2"}
    assert model.notes == [
        "0: 1 of 3 inputs never change on the calibration samples (dead units?); their weights look free to remove",
    ]
    with torch.no_grad():
        module[2].weight.zero_()  # nothing of the first layer arrives
    model = taylor(module, x)
    assert not model.diagonal["0.weight"].any()
    assert model.diagonal["2.weight"].any()
    assert model.notes == ["0.weight: zero Gauss-Newton diagonal on all samples, so its weights look free to remove"]
