"""Imports go strictly downward, by the order of the rooms; what answers at once imports no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down: a room may import the rooms after it, and itself. A new room needs its place here.
ROOMS = [
    "prunetaylor.__main__",
    "prunetaylor.cli",
    "prunetaylor",  # the public names; loads nothing until one is used
    "prunetaylor.api",
    "prunetaylor.sweep",
    "prunetaylor.gate",
    "prunetaylor.pipeline",
    "prunetaylor.report",
    "prunetaylor.pruning",
    "prunetaylor.measure",
    "prunetaylor.taylor",
    "prunetaylor.data",
    "prunetaylor.network",
    "prunetaylor.runtime",
    "prunetaylor.core",
    "prunetaylor._version",
]
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
    parts = name.split(".")
    return ".".join(parts[:2])


def test_every_module_has_a_room() -> None:
    assert {room(name) for name in FILES} <= set(ROOMS)
    assert len(FILES) > 50


@pytest.mark.parametrize("name", FILES)
def test_imports_go_downward(name: str) -> None:
    for imported in imports(name):
        if imported.split(".")[0] == "prunetaylor" and name != "prunetaylor":
            here, there = ROOMS.index(room(name)), ROOMS.index(room(imported))
            assert here <= there, f"{name} imports {imported}, which stands above it"


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


@pytest.mark.parametrize("name", FILES)
def test_only_the_rooms_for_it_talk_to_people_or_read_yaml(name: str) -> None:
    allowed = {
        "click": ("prunetaylor.cli",),
        "rich": ("prunetaylor.cli", "prunetaylor.report"),
        "yaml": ("prunetaylor.core.config",),
    }
    for imported in imports(name):
        top = imported.split(".")[0]
        if top in allowed:
            assert name.startswith(allowed[top]), f"{name} imports {top}"
    if room(name) not in ("prunetaylor.cli", "prunetaylor.report"):
        calls = [n.func for n in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(f, ast.Name) and f.id == "print" for f in calls), f"{name} prints"


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
