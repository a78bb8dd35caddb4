"""Only taylor/passes.py runs the network on samples, registers hooks on modules and asks for a first batch."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "prunetaylor"
LOOP = "taylor/passes.py"
# These run the network themselves, with the reason.
CALLERS = {
    "measure/cost.py": "counts the operations of one pass, below every module",
    "measure/latency.py": "times passes",
    "pruning/training/backward.py": "trains: in training mode, with autocast, in parts that fit in memory",
    "taylor/live_memory.py": "follows the tensors of one pass, below every module",
}
# These register hooks on modules themselves, with the reason.
REGISTRARS = {
    "network/checkpoint/huggingface/pooling.py": "makes a hook a part of the network: the pooling of its outputs",
    "network/observation.py": "follows which module runs while the calls of parameters are recorded",
    "pipeline/estimates/sizes.py": "measures the memory of the modules in one pass",
}
CALL = "data/inputs.py"
"""``Inputs.call`` passes the inputs as arguments; the callers above have it call the network."""
NETWORKS = {"module", "_module", "network", "net", "dense", "teacher", "_teacher", "student"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(PACKAGE).as_posix(), node


def last_name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def offenders(offends: Callable[[ast.Call], bool], *allowed: str) -> list[str]:
    return [f"{name}:{call.lineno}" for name, call in calls() if name not in allowed and offends(call)]


def test_only_the_loop_calls_the_network() -> None:
    def runs(call: ast.Call) -> bool:
        name = last_name(call.func)
        takes_network = name == "call" and any(last_name(one) in NETWORKS for one in call.args)
        return (name in NETWORKS and bool(call.args)) or takes_network or name in ("read_outputs", "functional_call")

    assert offenders(runs, LOOP, CALL, *CALLERS) == []


def test_only_the_loop_registers_hooks_on_modules() -> None:
    def registers(call: ast.Call) -> bool:
        return last_name(call.func).startswith(("register_forward_", "register_full_backward_"))

    assert offenders(registers, LOOP, *REGISTRARS) == []


def test_only_the_loop_asks_for_a_first_batch() -> None:
    def first(call: ast.Call) -> bool:
        text = ast.unparse(call)
        return text.startswith("next(iter(") and ("batch" in text or "_test" in text)

    assert offenders(first, LOOP) == []
