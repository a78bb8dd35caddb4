"""Names and docstrings of the package: nouns of the field, and sentences.

The first version of this code had a private vocabulary (`found`, `said`, `left`, `aim`). A name has one meaning in the
whole package, and a docstring is a sentence that a colleague understands at first reading.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = ["cli", "prunetaylor"]
# Words with several meanings, adjectives and participles that name no thing, and idiom that was translated.
_WORDS = """
found said left held done wanted keep moment look aim unseen at_work take laid_out layout usage examine idle settled
settle retrained alone answers second tried apart absorber absorbers constant judge together alive identity due
believed on_the_fly decoded_together match_features chunks within lead join stopping board screen beat heard
"""
_CLASSES = """
Aim AtWork Usage Own Family Squared Keeper Forgetful FolderKeeper Follower Watcher Removal Removed Guess Said Draws
Chunks Replaced Outcome Side Level Crew Judging Absorber Replay _Pull
"""
BANNED, BANNED_CLASSES = frozenset(_WORDS.split()), frozenset(_CLASSES.split())
# Names that users read in results or states, and that therefore stay.
PUBLIC = {
    ("prunetaylor/core/results/outcome.py", "believed"),  # Stage.believed
    ("prunetaylor/core/results/outcome.py", "constant"),  # PruneResult.constant
    ("prunetaylor/core/state_store.py", "due"),  # StateStore.due
    ("prunetaylor/pipeline/files/resume.py", "due"),  # StateStore.due
}
FRAGMENTS = ("What", "Whether", "Of", "Where", "How", "None where", "Who", "Which")


def modules(room: str) -> list[Path]:
    path = ROOT / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of each class, function, parameter and variable that the module defines."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.alias(asname=str(name)):
                yield node.lineno, name


def documented(tree: ast.Module) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, qualified name, docstring) of the module, and of its classes and functions outside of functions."""
    yield 1, "module", ast.get_docstring(tree)
    scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    while scopes:
        prefix, scope = scopes.pop()
        for node in scope.body:
            if isinstance(node, ast.ClassDef):
                scopes.append((f"{prefix}{node.name}.", node))
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.lineno, f"{prefix}{node.name}", ast.get_docstring(node)


def is_banned(name: str, file: str) -> bool:
    if (file, name) in PUBLIC:
        return False
    return name.lstrip("_") in BANNED or name in BANNED_CLASSES


@pytest.mark.parametrize("room", ROOMS)
def test_names_are_those_of_the_field(room: str) -> None:
    offenders = []
    for path in modules(room):
        file = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text())
        defined = [(1, path.stem), *names(tree)]
        offenders += [f"{file}:{line} {name}" for line, name in defined if is_banned(name, file)]
    assert not offenders, "\n" + "\n".join(offenders)


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_are_sentences(room: str) -> None:
    offenders = []
    for path in modules(room):
        file = path.relative_to(ROOT).as_posix()
        for line, name, text in documented(ast.parse(path.read_text())):
            if text is None and needs_docstring(name):
                offenders.append(f"{file}:{line} {name} has no docstring")
            if text is not None and text.startswith(tuple(f"{word} " for word in FRAGMENTS)):
                offenders.append(f"{file}:{line} {name}: {text.splitlines()[0]}")
    assert not offenders, "\n" + "\n".join(offenders)


@cache
def documented_methods() -> frozenset[str]:
    """Return the names of methods that some class of the package documents: an implementation need not repeat it."""
    paths = [*modules("prunetaylor"), *modules("cli")]
    every = (entry for path in paths for entry in documented(ast.parse(path.read_text())))
    return frozenset(name.rpartition(".")[2] for _, name, text in every if text is not None and "." in name)


def needs_docstring(name: str) -> bool:
    *scopes, last = name.split(".")
    if any(part.startswith("_") for part in (*scopes, last)) or last == "forward":
        return False
    return not scopes or last not in documented_methods()
