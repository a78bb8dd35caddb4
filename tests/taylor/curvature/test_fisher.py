"""Gradient rows of the Fisher information against Jacobians in float64."""

import pytest
import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.taylor.curvature import tape
from prunetaylor.taylor.curvature.fisher import FisherRows, fisher_rows
from prunetaylor.taylor.objective import Reference, SampledFactors
from support.networks import NETWORKS, network_case
from support.samples import rand
from support.taylor_models import jacobians, output_hessian, outputs_at, risk


def oracle(module: nn.Module, x: Tensor, y: Tensor, task: str = "classification") -> dict[str, Tensor]:
    """(N, p) by parameter name, from the same draws."""
    at, layers = risk(module, x, y, kind="task", task=task), Network.from_module(module).layers
    z = outputs_at(module, x)({}).detach()
    vector = SampledFactors(at.objective, len(x), 7).sample(z.float(), Reference(y), 0).double()
    each = jacobians(module, x, [layer.parameter for layer in layers])
    return {name: torch.einsum("nk...,nk->n...", j, vector).flatten(1) for name, j in each.items()}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_rows(name: str, size: int, task: str) -> None:
    module, x, y = network_case(name)
    y = y if task == "classification" else rand(6, 3, seed=9)
    at, layers = risk(module, x, y, kind="task", task=task, size=size), Network.from_module(module).layers
    close(fisher_rows(at, layers, 7), oracle(module, x, y, task))


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, y = network_case("normed")
    monkeypatch.setattr(tape, "chunk_elements", lambda device: 30)
    close(
        fisher_rows(risk(module, x, y, kind="task"), Network.from_module(module).layers, 7),
        oracle(module, x, y),
    )


def test_sampled_labels_make_the_gauss_newton_matrix_in_expectation() -> None:
    module, x, _ = network_case("mlp", 3)
    at = risk(module, x.repeat(3000, 1), size=9000)
    rows = torch.cat(list(fisher_rows(at, Network.from_module(module).layers, 0).values()), 1).double()
    each = torch.cat([j.flatten(2) for j in jacobians(module, x, ["0.weight", "2.weight"]).values()], 2)
    h = output_hessian(outputs_at(module, x)({}).detach(), "classification")
    exact = torch.einsum("nip,nij,njq->pq", each, h, each) / 3
    torch.testing.assert_close(rows.T @ rows / len(rows), exact, rtol=0, atol=0.03 * float(exact.diagonal().max()))


def test_layers_that_fit_share_a_pass_and_only_one_pass_is_kept() -> None:
    module, x, y = network_case("normed")  # 24 and 36 weights, six samples
    layers, at = Network.from_module(module).layers, risk(module, x, y, kind="task")
    wanted = fisher_rows(at, layers, 7)
    for elements, parts in ((360, 1), (359, 2), (1, 2)):
        rows = FisherRows(at, layers, 7, elements)
        assert [len(part) for part in rows.passes()] == ([2] if parts == 1 else [1, 1])
        first, again = list(rows), list(rows)
        for (layer, value), (_, second) in zip(first, again, strict=True):
            torch.testing.assert_close(value, wanted[layer.parameter], rtol=0, atol=0)
            torch.testing.assert_close(second, value, rtol=0, atol=0)
            assert (second is value) is (parts == 1)
        assert [layer.name for layer, _ in first] == ["0", "4"]


def test_a_layer_without_part_in_the_error_has_rows_of_zeros() -> None:
    module, x, y = network_case("mlp")
    module[1].unused = nn.Linear(2, 2)
    rows = fisher_rows(risk(module, x, y, kind="task"), Network.from_module(module).layers, 0)
    assert rows["1.unused.weight"].shape == (6, 4)
    assert not bool(rows["1.unused.weight"].any())


def test_a_row_that_is_not_finite_is_refused_by_name() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).abs().sqrt()

    module = Root()
    with pytest.raises(NumericsError, match=r"a\.weight: .*not finite"):
        fisher_rows(risk(module, torch.zeros(2, 4), kind="task"), Network.from_module(module).layers, 0)
