"""Samples of several predictions (tokens, pixels), and losses of users, against derivatives in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, hessian, vmap
from torch.nn import functional

from prunetaylor.core.errors import UsageError
from prunetaylor.data.samples import Inputs
from prunetaylor.taylor import risk as module_of_risk
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.objective import Objective, Reference, SampledFactors
from prunetaylor.taylor.outputs import OutputForm, set_output_form
from prunetaylor.taylor.passes import all_outputs
from prunetaylor.taylor.risk import DenseOutputs, Risk
from support.samples import batches, rand

Z = 2 * rand(3, 4, 5).double()
IDS = torch.tensor([[0, 4, -100, 1], [2, 2, 2, 2], [-100, -100, -100, -100]])
COUNTED = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
CASES = [
    (Objective("classification", "task"), Reference(IDS)),
    (Objective("classification", "task"), Reference(rand(3, 4, 5, seed=1).double().softmax(-1))),
    (Objective("classification", "divergence"), Reference(rand(3, 4, 5, seed=1).double(), COUNTED)),
    (Objective("features", "divergence"), Reference(rand(3, 4, 5, seed=1).double())),
]


def expand(objective: Objective, reference: Reference) -> Tensor:
    """Return the Hessian of each sample (B, P K, P K)."""

    def value(z: Tensor, i: int) -> Tensor:
        return objective.values(z.view(1, 4, 5), reference.rows(i, i + 1)).squeeze(0)

    return torch.stack([hessian(lambda z, i=i: value(z, i))(Z[i].flatten()) for i in range(len(Z))])


@pytest.mark.parametrize(("objective", "reference"), CASES)
def test_gradient_curvature_and_factors_of_positions(objective: Objective, reference: Reference) -> None:
    total = grad(lambda z: objective.values(z, reference).sum())(Z)
    torch.testing.assert_close(objective.gradient(Z, reference), total)
    h, v = expand(objective, reference), rand(3, 4, 5, seed=2).double()
    product = torch.einsum("bij,bj->bi", h, v.flatten(1)).view(3, 4, 5)
    torch.testing.assert_close(objective.hvp(Z, reference, v), product)
    torch.testing.assert_close(objective.quadratic_form(Z, reference, v), (v * product).flatten(1).sum(1))
    n = 4000
    draws = SampledFactors(objective, 3 * n, seed=0).sample(
        Z.repeat(n, 1, 1),
        Reference(
            reference.values.repeat(n, *[1] * (reference.values.dim() - 1)),
            None if reference.counted is None else reference.counted.repeat(n, 1),
        ),
        0,
    )
    moments = torch.einsum("nbi,nbj->bij", draws.view(n, 3, 20).double(), draws.view(n, 3, 20).double()) / n
    torch.testing.assert_close(moments, h, rtol=0, atol=0.03)


def test_the_error_of_a_sample_is_the_mean_over_its_positions_that_count() -> None:
    values = Objective("classification", "task").values(Z, Reference(IDS))
    expected = functional.cross_entropy(Z[0], IDS[0]), functional.cross_entropy(Z[1], IDS[1]), torch.tensor(0.0)
    torch.testing.assert_close(values, torch.stack([e.double() for e in expected]))
    copied = Reference(Z.clone(), COUNTED)
    assert Objective("classification", "divergence").values(Z, copied).abs().max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**31))
def test_random_numbers_do_not_depend_on_the_batches(size: int, seed: int) -> None:
    objective = Objective("classification", "divergence")
    z = rand(7, 4, 5)
    whole = SampledFactors(objective, 7, seed).sample(z, Reference(z), 0)
    parts = SampledFactors(objective, 7, seed)
    batched = [parts.sample(z[i : i + size], Reference(z[i : i + size]), i) for i in range(0, 7, size)]
    torch.testing.assert_close(torch.cat(batched), whole)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


def test_dense_outputs_that_are_not_stored_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, dense = Tagger(), Tagger()
    for one in (module, dense):
        set_output_form(one, OutputForm(axes="positions"))
    samples = batches(rand(6, 4, 3), IDS.repeat(2, 1), 4)
    stored = DenseOutputs.compute(dense, samples)
    monkeypatch.setattr(module_of_risk, "STORED_BYTES", 100)
    again = DenseOutputs.compute(dense, samples)
    assert stored.stored is not None
    assert again.stored is None
    objective = Objective("classification", "divergence")
    values = [Risk(module, samples, objective, outputs).values() for outputs in (stored, again)]
    torch.testing.assert_close(*values)
    outputs, targets = all_outputs(module, samples)
    kl = functional.kl_div(outputs.log_softmax(-1), stored.stored.log_softmax(-1), reduction="none", log_target=True)
    counted = targets != -100
    expected = (kl.sum(-1) * counted).sum(1) / counted.sum(1).clamp_min(1)
    torch.testing.assert_close(values[0], expected.double())


def pairwise(z: Tensor, y: Tensor) -> Tensor:
    """Convex, of all outputs of a sample together; (B, C, H) and (B,)."""
    return (z.flatten(1).logsumexp(1) + 0.5 * (z.mean((1, 2)) - y).square()).mean()


def test_a_loss_of_ones_own_on_many_outputs_forms_no_hessian() -> None:
    own = CustomLoss.from_function("m:f", pairwise)
    z, y, v = rand(3, 4, 10).double(), rand(3, seed=3).double(), rand(3, 4, 10, seed=1).double()
    h = vmap(hessian(lambda a, b: pairwise(a[None], b[None])))(z, y).view(3, 40, 40)
    torch.testing.assert_close(
        own.hvp(z, y, v), torch.einsum("bij,bj->bi", h, v.flatten(1)).view_as(v), rtol=1e-6, atol=1e-9
    )
    n = 3000
    draws = own.sampled_factor(
        z.repeat(n, 1, 1), y.repeat(n), torch.rand(3 * n, 40, generator=torch.Generator().manual_seed(0))
    ).view(n, 3, 40)
    torch.testing.assert_close(torch.einsum("nbi,nbj->bij", draws, draws) / n, h, rtol=0, atol=0.02)


def test_a_loss_that_is_not_convex_has_no_negative_curvature_on_many_outputs_either() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(20).double()
    own = CustomLoss.from_function("m:f", lambda z, y: (signs * z.square()).sum())
    z, v = rand(2, 40).double(), rand(2, 40, seed=1).double()
    torch.testing.assert_close(own.hvp(z, z, v), 2 * signs.clamp_min(0) * v)
    assert (v * own.hvp(z, z, v)).sum(1).min() >= 0


def with_steps(z: Tensor, y: Tensor) -> Tensor:
    """vmap cannot follow it: it reads a value."""
    return z.square().sum() if float(z.sum()) > 0 else 2 * z.square().sum()


def test_a_loss_that_vmap_cannot_follow_is_called_sample_by_sample() -> None:
    own, z = CustomLoss.from_function("m:f", with_steps), torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    torch.testing.assert_close(own.values(z, z), torch.tensor([5.0, 10.0]))
    torch.testing.assert_close(own.hvp(z, z, torch.ones(2, 2)), torch.tensor([[2.0, 2.0], [4.0, 4.0]]))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda z, y: z[:, 7], "IndexError: "),
        (lambda z, y: {}["no"], "KeyError: 'no'"),
        (lambda z, y: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda z, y: 3.0, "TypeError: it returned float, not a tensor"),
    ],
)
def test_whatever_a_loss_raises_is_named(function: object, says: str) -> None:
    with pytest.raises(UsageError, match=rf"loss=m:f fails on outputs \(2, 3\) and targets \(2,\): {says}"):
        CustomLoss.from_function("m:f", function).values(torch.ones(2, 3), torch.zeros(2))


def test_positions_that_the_attention_mask_leaves_out_do_not_count_without_labels() -> None:
    module = Tagger()
    set_output_form(module, OutputForm(axes="positions"))
    x, mask = rand(3, 4, 3), COUNTED.long()
    samples = batches(x, None, 3)
    outputs = DenseOutputs.compute(module, samples)
    at = Risk(module, samples, Objective("features", "divergence"), outputs)
    inputs = Inputs.of({"x": x, "attention_mask": mask})
    counted = at.reference(0, inputs, torch.zeros(3)).counted
    assert counted is not None
    assert torch.equal(counted, COUNTED)
    assert at.reference(0, Inputs.of(x), torch.zeros(3)).counted is None
