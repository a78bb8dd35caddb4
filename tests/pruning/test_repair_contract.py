"""Every repair and every refiner of the registries keeps its contract."""

from collections.abc import Callable

import pytest

from prunetaylor.core import registry
from prunetaylor.pruning.interfaces import load_repair
from support.repair_contract import REFINER_CONTRACT, REPAIR_CONTRACT


@pytest.mark.parametrize("rule", REPAIR_CONTRACT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("repair", registry.names(registry.REPAIRS))
def test_repair(repair: str, rule: Callable[[str], None]) -> None:
    rule(repair)


@pytest.mark.parametrize("rule", REFINER_CONTRACT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("refiner", registry.names(registry.REFINERS))
def test_refiner(refiner: str, rule: Callable[[str], None]) -> None:
    rule(refiner)


def test_names_are_those_of_the_configuration() -> None:
    assert registry.names(registry.REPAIRS) == ("batch-norm", "least-squares", "obs")
    assert registry.names(registry.REFINERS) == ("features", "gauss-newton")
    assert load_repair("none") is None
