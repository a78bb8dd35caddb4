"""Relative paths among the settings, in full."""

from pathlib import Path

import pytest

from prunetaylor.core.config.paths import rooted


@pytest.mark.parametrize("key", ["model.arch", "data.source", "gate.metric", "loss"])
def test_own_code_is_found_from_anywhere(key: str) -> None:
    assert rooted(key, "sub/net.py:name") == f"{Path.cwd()}/sub/net.py:name"
    assert rooted(key, "/elsewhere/net.py:name") == "/elsewhere/net.py:name"


@pytest.mark.parametrize("key", ["model.checkpoint", "data.root", "cache.dir", "gate.baseline"])
def test_files_are_found_from_anywhere(key: str) -> None:
    assert rooted(key, "sub/file") == f"{Path.cwd()}/sub/file"
    assert rooted(key, "~/file") == "~/file"
    assert rooted(key, None) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.arch", "torchvision:resnet18"),
        ("model.arch", "package.module:factory"),
        ("data.source", "digits"),
        ("loss", "cross-entropy"),
        ("prune.method", "obs"),
        ("loss", "auto"),
    ],
)
def test_what_is_no_path_stays(key: str, value: str) -> None:
    assert rooted(key, value) == value


def test_data_after_its_scheme() -> None:
    assert rooted("data.source", "arrays:x.npz") == f"arrays:{Path.cwd()}/x.npz"
    assert rooted("data.source", "folder:~/images") == "folder:~/images"
