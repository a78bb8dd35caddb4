import pytest
import torch
from torch import nn


@pytest.fixture
def net():
    """A network with a parameter-free layer, batch norm's integer buffer, and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.fixture
def network_file(tmp_path):
    """A FILE.py whose factory makes the same network as ``net``, and which leaves a trace when it is imported."""
    file = tmp_path / "network_file.py"
    file.write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        f"Path({str(tmp_path / 'imported')!r}).touch()\n"
        "print('imported')\n"
        "def make(num_classes=3):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(16, num_classes))\n"
    )
    return file
