"""Of all tests: the same random weights each time, one thread a process, so that parallel runs share the cores, and a
cache that is not the user's."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from support.runs import TRAIN
from support.toys import ConvNet, trained

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def conv() -> nn.Module:
    """A small convolutional network, trained to the end; nothing may change it."""
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 100)
