"""score through the real command line, on a small network; one test takes the demo's, whose fits are kept."""

import json
from pathlib import Path

import pytest

# few samples to predict on, and a method that takes each step at once: these are what takes time
_KEPT = ["cache.dir=kept", "calibration.holdout=5%", "prune.method=obs"]


def test_it_says_how_far_and_the_second_time_takes_the_fit_from_the_cache(
    demo_model: Path, inline, tmp_path: Path
) -> None:
    code, stdout, stderr = inline("score", str(demo_model), "--json", *_KEPT)
    assert code == 0, stderr
    document = json.loads(stdout)
    assert document["schema_version"] == 1
    assert [level["sparsity"] for level in document["levels"]][-3:] == [0.9, 0.95, 0.98]
    assert document["levels"][0]["trusted"] is True
    assert {layer["name"] for layer in document["layers"]} == {"conv1", "conv2", "conv3", "fc1", "fc2"}
    assert set(document["hashes"]) == {"checkpoint", "data"}
    assert document["configuration"]["cache"]["dir"] == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    code, stdout, stderr = inline("score", str(demo_model), "-v", *_KEPT)
    assert code == 0, stderr
    assert "layer Grams of stage 1 taken from the cache" in stderr
    lines = stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in stdout
    [row] = [line.split() for line in lines if line.startswith("50%")]
    [level] = [level for level in document["levels"] if level["sparsity"] == 0.5]
    assert float(row[1]) == pytest.approx(level["predicted_change"], rel=0.01)
    assert "`prunetaylor prune` works in stages" in " ".join(stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none"], "score needs samples to measure the error on"),
        (["prune.method=exact_ops"], "did you mean 'exact_obs'"),
        (["cache.limit=0"], "cache.limit"),
    ],
)
def test_what_cannot_be_scored(
    small_model: list[str], inline, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, stdout, stderr = inline("score", *small_model[:3], *arguments)
    assert code == 2, stderr
    assert stdout == ""
    assert message in stderr
    assert list(tmp_path.iterdir()) == []
