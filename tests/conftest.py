"""Every test has the same random weights each time, one thread a process, so that parallel runs share the cores, and
nothing of the user's: no settings, no cache, and no file that happens to lie where the tests were started."""

import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from support.networks import ConvNet, trained
from support.runs import TRAIN

torch.set_num_threads(1)

# what the tool, its libraries or a cluster's launcher would read
_SETTINGS = ("PRUNETAYLOR_", "GITHUB_", "SLURM_", "MPL", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "COLUMNS")
_COLOURS = ("NO_COLOR", "FORCE_COLOR")


@pytest.fixture(autouse=True, scope="session")
def _nothing_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The environment and the working directory of this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith(_SETTINGS) or key in _COLOURS]:
            patch.delenv(key)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def conv() -> nn.Module:
    """A small convolutional network, trained to the end; nothing may change it."""
    torch.manual_seed(0)
    return trained(ConvNet(), TRAIN, cross_entropy, 100)
