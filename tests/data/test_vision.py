"""torchvision imports beside any torch."""

import importlib.util
import subprocess
import sys

import pytest

from prunetaylor.core.errors import UsageError
from prunetaylor.runtime.torchvision_import import import_torchvision

_HIDE = """
import sys, torch
# The compiled operators of a torchvision that was built for another torch do not load.
refuse = torch.ops.load_library
def load_library(path):
    if "torchvision" in str(path):
        raise OSError("undefined symbol")
    return refuse(path)
torch.ops.load_library = load_library
from prunetaylor.runtime.torchvision_import import import_torchvision
tv = import_torchvision()
assert tv is import_torchvision() is sys.modules["torchvision"]
import torchvision
assert not torchvision.extension._has_ops()
print(len(tv.models.list_models()), tv.datasets.CIFAR10.__name__)
"""


def test_it_imports_here():
    assert import_torchvision().models.resnet18.__name__ == "resnet18"


def test_it_imports_without_its_compiled_operators():
    done = subprocess.run([sys.executable, "-c", _HIDE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, name = done.stdout.split()
    assert int(count) > 50
    assert name == "CIFAR10"


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_it_imports_in_a_users_program(package):
    """The first public name that is used prepares the import."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is an extra")
    code = f"from prunetaylor import load\nimport {package}\nassert {package}.models is not None"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torchvision_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UsageError, match="pip install 'torchvision>="):
        import_torchvision()
