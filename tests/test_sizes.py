"""Folders, modules and functions stay small enough to be read at one go."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [path for room in ("prunetaylor", "cli") for path in sorted((ROOT / room).rglob("*.py"))]
MOST_MODULES, MOST_LINES, MOST_BODY = 12, 350, 40

# A registry has one file a method.
REGISTRIES = {
    "prunetaylor/pruning/criteria",
    "prunetaylor/data/sources",
    "prunetaylor/measure/metrics",
    "prunetaylor/report/trackers",
}
LONG_FUNCTIONS = {
    "prunetaylor/pipeline/planning/plan.py make_plan": "it lists every choice of a run in the order of its making",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def body_lines(function: ast.FunctionDef) -> int:
    """Return the lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_a_folder_has_at_most_twelve_modules() -> None:
    folders = {path.parent for path in FILES}
    counts = {name(folder): sum(one.stem != "__init__" for one in folder.glob("*.py")) for folder in folders}
    assert not {folder: n for folder, n in counts.items() if n > MOST_MODULES and folder not in REGISTRIES}


def test_a_module_has_at_most_350_lines() -> None:
    counts = {name(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {module: n for module, n in counts.items() if n > MOST_LINES}


def test_a_function_has_at_most_40_lines() -> None:
    counts = {
        f"{name(path)} {node.name}": body_lines(node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert not {function: n for function, n in counts.items() if n > MOST_BODY and function not in LONG_FUNCTIONS}
