"""Of all tests: the same random weights each time, and one thread a process, so that parallel runs share the cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
