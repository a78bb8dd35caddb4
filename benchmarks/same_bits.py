"""Compare a handful of runs before and after a change that must not change any result.

    python benchmarks/same_bits.py record before.json     # with the old code
    python benchmarks/same_bits.py compare before.json    # with the new code, on the same machine

The runs prune the network of `prunetaylor demo` on one thread: one-shot, with labels by another method, gradual with
epochs, resumed after SIGTERM, and on two processes. Recorded are a hash of each tensor of `model.safetensors`, which
holds the masks as zeros, each stage's sparsity, predicted and measured change, and the seconds. `compare` exits with 1
where a hash or a stage differs, and prints the seconds side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

PROGRAM = [sys.executable, "-P", "-m", "prunetaylor.cli.main"]
GRADUAL = ["prune.schedule=cubic", "--epochs", "3", "prune.during=2", "prune.stages=3", "--sparsity", "80%"]
RUNS: dict[str, list[str]] = {
    "one-shot": ["--sparsity", "70%"],
    "stages": ["--sparsity", "90%", "prune.stages=[0.5,0.8,0.9]", "prune.refine=stages", "prune.refine_steps=20"],
    "labels": ["prune.method=obs", "calibration.labels=true", "prune.refine_by=gauss-newton", "prune.refine=last"],
    "joint": ["prune.method=joint", "prune.stages=2", "calibration.samples=300", "prune.refine=none"],
    "gradual": GRADUAL,
    "resumed": GRADUAL,
    "two-processes": ["--sparsity", "80%", "--nproc", "2"],
}
STAGE = ("sparsity", "predicted_change", "measured_change", "damping", "accepted")


def command(folder: Path, name: str, *more: str) -> list[str]:
    return [*PROGRAM, "prune", "model.pt", "-q", "--device", "cpu", "-o", str(folder / name), *RUNS[name], *more]


def interrupt(here: Path, environment: dict[str, str]) -> None:
    """Start the run, end it by SIGTERM once it keeps a state, and leave it to be resumed."""
    running = subprocess.Popen(command(here, "resumed", "checkpoint.every=0.2"), cwd=here, env=environment)
    state = here / "resumed" / ".partial" / "state.pt"
    while not state.exists() and running.poll() is None:
        time.sleep(0.01)
    time.sleep(0.5)
    running.send_signal(signal.SIGTERM)
    running.wait()
    if not state.exists():
        sys.exit("the run ended before it could be interrupted; nothing was resumed")


def measure(here: Path) -> dict[str, Any]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(here / "cache"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([*PROGRAM, "demo", "-q"], cwd=here, env=environment, check=True)
    found = {}
    for name in RUNS:
        more = []
        if name == "resumed":
            interrupt(here, environment)
            more = ["checkpoint.every=0.2", "--resume"]
        start = time.monotonic()
        subprocess.run(command(here, name, *more), cwd=here, env=environment, check=True, stdout=subprocess.DEVNULL)
        found[name] = {"seconds": round(time.monotonic() - start, 1), **results(here / name)}
    if found["resumed"]["tensors"] != found["gradual"]["tensors"]:
        sys.exit("the resumed run differs from the one that ran through")
    return found


def results(run: Path) -> dict[str, Any]:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    stages = [{key: stage.get(key) for key in STAGE} for stage in report["stages"]]
    with safe_open(run / "model.safetensors", framework="pt") as file:
        names = sorted(file.keys())
        tensors = {n: hashlib.sha256(file.get_tensor(n).numpy().tobytes()).hexdigest()[:16] for n in names}
    return {"tensors": tensors, "stages": stages}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as here:
        now = measure(Path(here))
    if given.action == "record":
        given.file.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return 0
    before = json.loads(given.file.read_text(encoding="utf-8"))
    differs = False
    for name, run in now.items():
        same = all(run[key] == before[name][key] for key in ("tensors", "stages"))
        differs |= not same
        seconds = f"{before[name]['seconds']:6.1f} s {run['seconds']:6.1f} s"
        print(f"{name:14} {'same bits' if same else 'DIFFERS':10} {seconds}")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
