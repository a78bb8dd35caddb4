"""Imports go strictly downward, by the order of the rooms; what answers at once imports no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down: a room may import itself and the rooms after it, with the exceptions below.
ROOMS = ["__main__", "cli", "api", "sweep", "gate", "pipeline", "report"]
ROOMS += ["pruning", "measure", "taylor", "network", "data", "runtime", "core", "_version"]
BELOW = {room: set(ROOMS[number:]) for number, room in enumerate(ROOMS)}
BELOW["report"] = {"report", "core", "_version"}  # it renders plain results
BELOW["network"].remove("data")  # neither of the two sees the other
TOP = "prunetaylor"  # its public names are loaded when they are first used

TORCH_FREE = (
    "prunetaylor.cli",
    "prunetaylor.core",
    "prunetaylor.pipeline.files.run_folder",
    "prunetaylor.pipeline.files.signals",
    "prunetaylor.runtime.cores",
    "prunetaylor.runtime.parent_process",
    "prunetaylor.runtime.python_process",
    "prunetaylor.runtime.user_code",
    "prunetaylor._version",
)


def files() -> dict[str, Path]:
    """Every module of the package, by name; the folder cli/ is prunetaylor.cli."""
    found = {}
    for folder, prefix in ((ROOT / "prunetaylor", "prunetaylor"), (ROOT / "cli", "prunetaylor.cli")):
        for path in sorted(folder.rglob("*.py")):
            parts = [p for p in path.relative_to(folder).with_suffix("").parts if p != "__init__"]
            found[".".join([prefix, *parts])] = path
    return found


FILES = files()


def imports(name: str) -> list[str]:
    """Full names of all modules that a file imports, wherever in it; submodules taken by ``from`` included."""
    found = []
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = name if FILES[name].stem == "__init__" else name.rpartition(".")[0]
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                full = f"{module}.{alias.name}"
                found.append(full if full in FILES else module)
    return found


def room(name: str) -> str:
    """Return the room of a module: the first part of its name after the package's."""
    return name.split(".")[1] if "." in name else TOP


def test_imports_go_downward() -> None:
    offenders = [
        f"{name} imports {imported}"
        for name in FILES
        for imported in imports(name)
        if imported.split(".")[0] == TOP and name != TOP and room(imported) not in BELOW.get(room(name), ())
    ]
    assert len(FILES) > 50
    assert not offenders, "\n" + "\n".join(offenders)


def test_no_module_imports_itself_in_a_circle() -> None:
    """Inside a room too. Imports inside functions count: a circle that only they close is still one."""
    graph = {name: [i for i in imports(name) if i in FILES and i != name] for name in FILES if name != "prunetaylor"}
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for imported in graph.get(name, []):
                walk(imported, [*path, name])
            done.add(name)

    for name in graph:
        walk(name, [])


def test_only_the_rooms_for_it_talk_to_people_or_read_yaml() -> None:
    allowed = {
        "click": ("prunetaylor.cli",),
        "rich": ("prunetaylor.cli", "prunetaylor.report"),
        "yaml": ("prunetaylor.core.config",),
    }
    offenders = []
    for name in FILES:
        tops = {imported.split(".")[0] for imported in imports(name)}
        offenders += [f"{name} imports {top}" for top in tops & set(allowed) if not name.startswith(allowed[top])]
        if room(name) not in ("cli", "report"):
            calls = [node.func for node in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(node, ast.Call)]
            offenders += [f"{name} prints" for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not offenders, "\n" + "\n".join(offenders)


def alone(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


NO_TORCH = "assert not {'torch', 'torchvision', 'timm', 'sklearn'} & set(sys.modules)"


def test_torch_free_modules_import_no_torch() -> None:
    wanted = [n for n in FILES if n.startswith(TORCH_FREE)]
    assert len(wanted) > 15
    lines = [f"import {name}; {NO_TORCH}, {name!r}" for name in ["prunetaylor", *wanted]]
    found = alone("import sys\n" + "\n".join(lines))
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["prune", "--help"], ["config"]])
def test_the_command_line_answers_without_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from prunetaylor.cli.main import main
sys.argv = ["prunetaylor", *{arguments}]
try:
    status = main()
except SystemExit as stop:
    status = stop.code
assert not status, status
{NO_TORCH}
"""
    found = alone(code)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


def test_names_of_methods_need_no_torch() -> None:
    found = "from prunetaylor.core import registry; assert 'obs' in registry.names(registry.CRITERIA)"
    code = f"import sys; {found}; {NO_TORCH}"
    found = alone(code)
    assert found.returncode == 0, found.stderr
