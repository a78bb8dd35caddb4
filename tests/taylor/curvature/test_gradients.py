"""Gradients and Gauss-Newton diagonals, sample by sample, against Jacobians in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.layer import Call
from prunetaylor.network.network import Network
from prunetaylor.network.observation import observing
from prunetaylor.taylor.curvature import gradients, tape
from prunetaylor.taylor.curvature.gradients import (
    gauss_newton_diagonal,
    gradient_norms,
    mean_gradient,
    output_sensitivity,
    sampled_diagonal,
)
from support.samples import rand
from support.taylor_models import jacobians, output_hessian, outputs_at, risk


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).tanh()).tanh())


class Twice(nn.Module):
    """A layer called twice, once by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(input=self.a(x).tanh()).tanh())


class Windows(nn.Module):
    """A layer whose first dimension is a multiple of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(2, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x.reshape(-1, 2)).tanh().reshape(len(x), -1))


class TimeFirst(nn.Module):
    """Whose layers read (time, samples, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x.transpose(0, 1)).tanh().mean(0))


class Queries(nn.Module):
    """A layer that reads rows which are no sample's, and one that reads a row without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.mix, self.shift = nn.Parameter(rand(3, 4)), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.queries).tanh()
        return self.head((mixed.mean(0) + self.shift(mixed[0]) + x).tanh())


class Routed(nn.Module):
    """Of two layers each sample goes through one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        here = (x[:, 0] > 0).nonzero().flatten()
        there = (x[:, 0] <= 0).nonzero().flatten()
        both = torch.cat([self.a(x[here]), self.b(x[there])])
        return self.head(both.tanh())[torch.cat([here, there]).argsort()]


NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)), (3, 4)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (2, 4, 4),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)),
        (2, 2, 2),
    ),
    "in-place": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(9, 3)),
        (2, 4),
    ),
    "one position": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)),
        (4, 3),
    ),
    "tied": (Tied, (4,)),
    "twice": (Twice, (4,)),
    "windows": (Windows, (4,)),
    "time first": (TimeFirst, (3, 4)),
    "queries": (Queries, (4,)),
    "routed": (Routed, (4,)),
}


def case(name: str, samples: int = 7) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = NETWORKS[name]
    return make(), 1.5 * rand(samples, *shape), torch.arange(samples) % 3


def weights_of(module: nn.Module) -> list[str]:
    return [layer.parameter for layer in Network.from_module(module).layers]


def output_gradients(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    outputs = outputs_at(module, x)({})
    return (outputs.softmax(1) - nn.functional.one_hot(y, outputs.shape[1])).detach()


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_mean_gradient(name: str, size: int) -> None:
    module, x, y = case(name)
    found = mean_gradient(risk(module, x, y, kind="task", size=size), Network.from_module(module).layers)
    g = output_gradients(module, x, y)
    close(
        found, {k: torch.einsum("nk,nk...->...", g, j) / 7 for k, j in jacobians(module, x, weights_of(module)).items()}
    )


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_gauss_newton_diagonal(name: str, size: int, task: str) -> None:
    module, x, _ = case(name)
    found = gauss_newton_diagonal(risk(module, x, task=task, size=size), Network.from_module(module).layers, 0)
    h = output_hessian(outputs_at(module, x)({}).detach(), task)
    each = jacobians(module, x, weights_of(module))
    close(found, {k: torch.einsum("ni...,nij,nj...->...", j, h, j) / 7 for k, j in each.items()})


@pytest.mark.parametrize("name", ["conv", "twice"])
def test_gauss_newton_diagonal_in_small_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, _ = case(name)
    layers, at = Network.from_module(module).layers, risk(module, x)
    wanted = gauss_newton_diagonal(at, layers, 0)
    monkeypatch.setattr(tape, "chunk_elements", lambda device: 100)
    close(gauss_newton_diagonal(at, layers, 0), {k: v.double() for k, v in wanted.items()})


def test_sampled_gauss_newton_diagonal_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, _ = case("conv", 3)
    layers = Network.from_module(module).layers
    at = risk(module, x.repeat(700, 1, 1, 1), size=2100)
    exact = gauss_newton_diagonal(at, layers, 0)
    monkeypatch.setattr(gradients, "EXACT_OUTPUTS", 2)
    sampled = gauss_newton_diagonal(at, layers, 0)
    for name, value in exact.items():
        assert not torch.equal(sampled[name], value)
        torch.testing.assert_close(sampled[name], value, rtol=0.1, atol=0.02 * float(value.max()))


def test_sampled_labels_are_the_seed_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "EXACT_OUTPUTS", 2)
    module, x, _ = case("linear")
    layers, at = Network.from_module(module).layers, risk(module, x)
    for fit in (gauss_newton_diagonal, output_sensitivity):
        first, again, other = (fit(at, layers, seed) for seed in (0, 0, 1))
        for name in first:
            assert torch.equal(first[name], again[name])
        assert any(not torch.equal(first[name], other[name]) for name in first)


def sensitivity_oracle(module: nn.Module, x: Tensor, task: str) -> dict[str, Tensor]:
    """Exact: the sum over outputs k and positions p of (s_k'dz/dy_p)^2, in float64, sample by sample."""
    double = module.double()
    layers = Network.from_module(double).layers
    total = {}
    for sample in x.double():
        made: list[Call] = []
        with observing(layers, made.append):
            outputs = double.eval()(sample[None])
        values, vectors = torch.linalg.eigh(output_hessian(outputs.detach(), task)[0])
        for value, vector in zip(values, vectors.T, strict=True):
            grads = torch.autograd.grad((outputs[0] * vector).sum(), [call.y for call in made], retain_graph=True)
            for call, g in zip(made, grads, strict=True):
                columns = call.geometry.output_columns(call.geometry.arrange_outputs(g))
                name = call.layer.name
                total[name] = total.get(name, 0) + value * columns.square().sum((0, 3)) / len(x)
    module.float()
    return total


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "in-place"])
def test_output_sensitivity_in_expectation(name: str, task: str) -> None:
    module, x, _ = case(name, 3)
    wanted = sensitivity_oracle(module, x, task)
    many = x.repeat(700, *[1] * (x.dim() - 1))
    found = output_sensitivity(risk(module, many, task=task, size=700), Network.from_module(module).layers, 0)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0.1, atol=0.05 * float(value.max()))


def test_an_activation_in_place_changes_nothing() -> None:
    inplace, x, _ = case("in-place")
    plain = nn.Sequential(inplace[0], nn.ReLU(), inplace[2], inplace[3])
    for fit in (gauss_newton_diagonal, output_sensitivity):
        found, wanted = (fit(risk(m, x), Network.from_module(m).layers, 0) for m in (inplace, plain))
        close(found, {k: v.double() for k, v in wanted.items()})


class Recomputed(nn.Sequential):
    """Keeps no activations for the backward pass, which calls the layers once more."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def test_layers_that_the_backward_pass_calls_again_count_once() -> None:
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    again, x = Recomputed(*plain), torch.randn(6, 4)
    for fit in (gauss_newton_diagonal, output_sensitivity):
        found, wanted = (fit(risk(m, x), Network.from_module(m).layers, 0) for m in (again, plain))
        close(found, {k: v.double() for k, v in wanted.items()})


@pytest.mark.parametrize("samples", [5, 40, 70])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_gradient_norms_are_those_of_groups_of_consecutive_samples(samples: int, size: int) -> None:
    module, x, y = case("conv", samples)
    found = gradient_norms(risk(module, x, y, kind="task", size=size), Network.from_module(module).layers)
    g = output_gradients(module, x, y)
    each = torch.cat(
        [torch.einsum("nk,nk...->n...", g, j).flatten(1) for j in jacobians(module, x, weights_of(module)).values()], 1
    )
    groups = min(32, samples)
    owner = torch.arange(samples) * groups // samples
    mean = each.mean(0)
    noise = 0.0
    for group in range(groups):
        own = each[owner == group]
        noise += (len(own) / samples) ** 2 * float((own.mean(0) - mean).square().sum())
    assert found == pytest.approx((float(mean.norm()), (noise * groups / (groups - 1)) ** 0.5), rel=1e-4)


def test_noise_is_what_the_mean_gradient_scatters_by() -> None:
    """The mean gradients of many sets of samples scatter by as much as the noise of one set says."""
    module = nn.Linear(3, 3)
    layers = Network.from_module(module).layers
    means, noises = [], []
    for seed in range(40):
        x, y = rand(64, 3, seed=seed), torch.randint(3, (64,), generator=torch.Generator().manual_seed(seed))
        at = risk(module, x, y, kind="task", size=64)
        means.append(mean_gradient(at, layers)["weight"])
        noises.append(gradient_norms(at, layers)[1])
    scatter = float((torch.stack(means) - torch.stack(means).mean(0)).square().sum((1, 2)).mean()) ** 0.5
    assert sum(noises) / 40 == pytest.approx(scatter, rel=0.15)


def test_of_a_single_sample_all_may_be_noise() -> None:
    module, x, y = case("linear", 1)
    norm, noise = gradient_norms(risk(module, x, y, kind="task"), Network.from_module(module).layers)
    assert norm > 0
    assert noise == norm


def test_unused_layers_have_no_curvature() -> None:
    module, x, y = case("linear")
    module.unused = nn.Linear(2, 2)
    module.forward = lambda x: module[:3](x)
    layers, at = Network.from_module(module).layers, risk(module, x, y, kind="task")
    assert bool((gauss_newton_diagonal(at, layers, 0)["unused.weight"] == 0).all())
    assert bool((mean_gradient(at, layers)["unused.weight"] == 0).all())
    assert "unused" not in output_sensitivity(at, layers, 0)
    assert gradient_norms(at, layers)[0] > 0


def test_a_part_without_gradients_has_no_curvature() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).tanh().detach())

    module, x = Frozen(), rand(5, 4)
    layers, at = Network.from_module(module).layers, risk(module, x)
    found = gauss_newton_diagonal(at, layers, 0)
    assert bool((found["body.weight"] == 0).all())
    assert bool((found["head.weight"] > 0).all())
    assert list(output_sensitivity(at, layers, 0)) == ["head"]


def test_a_gradient_that_is_not_finite_is_refused_by_name() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).abs().sqrt()

    module = Root()
    with pytest.raises(NumericsError, match=r"a\.weight: .*not finite"):
        mean_gradient(risk(module, torch.zeros(2, 4), kind="task"), Network.from_module(module).layers)


def test_the_first_nonfinite_layer_is_named() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c((self.b(self.a(x).relu()) ** 2).sqrt())

    module = Root()
    with torch.no_grad():
        module.b.weight[0] = 0
    at, layers = risk(module, rand(6, 4), kind="task"), Network.from_module(module).layers
    fits = {
        "the gradient of the error": lambda: mean_gradient(at, layers),
        "the gradient of the error is": lambda: gradient_norms(at, layers),
        "the Gauss-Newton diagonal": lambda: gauss_newton_diagonal(at, layers, 0),
        "the Gauss-Newton diagonal is": lambda: sampled_diagonal(at, dict(module.named_parameters()), 0),
        "the gradient of the error in its outputs": lambda: output_sensitivity(at, layers, 0),
    }
    for what, fit in fits.items():
        with pytest.raises(NumericsError, match=rf"^a(\.weight)?: {what}.*\n.*behind b(\.weight)?;"):
            fit()


def test_nothing_is_left_behind() -> None:
    module, x, y = case("conv")
    module.train()
    module[4].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    layers, at = Network.from_module(module).layers, risk(module, x, y, kind="task")
    mean_gradient(at, layers)
    gradient_norms(at, layers)
    gauss_newton_diagonal(at, layers, 0)
    output_sensitivity(at, layers, 0)
    assert all(child.training for child in module.modules())
    assert all(p.grad is None for p in module.parameters())
    assert not module[4].weight.requires_grad
    assert not any(child._forward_hooks for child in module.modules())
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_sampled_labels_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "EXACT_OUTPUTS", 2)
    module, x, _ = case("linear")
    layers = Network.from_module(module).layers
    for fit in (gauss_newton_diagonal, output_sensitivity):
        whole, small = fit(risk(module, x, size=100), layers, 0), fit(risk(module, x, size=2), layers, 0)
        for name, value in whole.items():
            torch.testing.assert_close(small[name], value)
