"""Names of tensors, tied ones included."""

import pytest
from torch import nn

from prunetaylor.network.names import own_names, parameters_named


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    return module


def test_a_tensor_s_own_name_is_its_first() -> None:
    found = own_names(tied())
    assert found["0.weight"] == found["2.weight"] == "0.weight"
    assert found["2.bias"] == "2.bias"
    assert found["1.running_mean"] == "1.running_mean"


def test_parameters_come_once_under_their_own_names() -> None:
    module = tied()
    found = parameters_named(module, ["2.weight", "2.bias", "0.weight"])
    assert list(found) == ["0.weight", "2.bias"]
    assert found["0.weight"] is module[0].weight


@pytest.mark.parametrize("name", ["3.weight", "1.running_var"])
def test_what_is_no_parameter_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no parameter '{name}'"):
        parameters_named(tied(), [name])
