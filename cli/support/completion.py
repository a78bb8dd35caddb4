"""Completion by the shell. It imports no torch and runs none of the user's code: the names of networks are read from
the sources of torchvision and timm, those of functions from the user's files.

Switch it on with ``eval "$(_PRUNETAYLOR_COMPLETE=bash_source prunetaylor)"``, or with zsh_source or fish_source.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from prunetaylor.core.config.paths import PATH_SCHEMES

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_REGISTERED = re.compile(r"@register_model\b(?:\((?:name=)?(?:[\"'](\w+)[\"'])?\))?.*?\bdef (\w+)", re.DOTALL)
"""The way in which torchvision and timm declare their networks."""
_FILES = 'COMPREPLY+=($(compgen {} -- "$value"))\n            compopt -o filenames'


def complete_setting(key: str) -> Complete:
    """Return a function that completes the values of a setting, for the option that stands for it."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _values(key, incomplete)

    return complete


def complete_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete sections, keys, files and, after an equals sign or the comma of a list, values."""
    from prunetaylor.core.config.keys import leaves

    key, equals, value = incomplete.partition("=")
    if equals:
        before, comma, last = value.rpartition(",")
        return [
            CompletionItem(f"{key}={before}{comma}{one.value}", help=one.help) if one.type == "plain" else one
            for one in _values(key, last)
        ]
    known = {f"{name}=": info.description or "" for name, info in leaves() if name.startswith(incomplete)}
    if "." not in incomplete:  # a list of all eighty keys would be too long
        inner = {f"{word.partition('.')[0]}.": "settings" for word in known if "." in word}
        known = inner | {word: meaning for word, meaning in known.items() if "." not in word}
    return [*(CompletionItem(word, help=help) for word, help in known.items()), CompletionItem(incomplete, type="file")]


def _values(key: str, incomplete: str) -> list[CompletionItem]:
    from prunetaylor.core.config.keys import choices, leaves

    known = dict(leaves())
    if key in ("model.arch", "data.source"):
        return _specs(key, incomplete)
    if key == "loss":
        return _functions(incomplete, ("auto", "cross-entropy", "bce", "mse"))
    if key in ("metric", "gate.metric"):
        return _functions(incomplete, tuple(choices(known["metric"])))
    if key == "device":
        return _starting(("auto", "cpu", "cuda", "mps"), incomplete)
    words = choices(known[key]) if key in known else {}
    if not words:
        return [CompletionItem(incomplete, type="file")]
    return [
        CompletionItem(word, help=meaning or None) for word, meaning in words.items() if word.startswith(incomplete)
    ]


def _specs(key: str, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a network (``model.arch``) or of samples (``data.source``)."""
    scheme, colon, _ = incomplete.partition(":")
    if not colon:
        networks, samples = (
            "torchvision: timm: builtin: hf:",
            "digits none torchvision: folder: arrays: csv: lines: hf-data:",
        )
        return [*_starting((networks if key == "model.arch" else samples).split(), incomplete), *_functions(incomplete)]
    if scheme in PATH_SCHEMES:
        kind = "dir" if scheme in ("folder", "hf", "hf-data") else "file"
        return [CompletionItem(incomplete.partition(":")[2], type=kind)]
    if scheme == "torchvision":
        names = _networks("torchvision", "models") if key == "model.arch" else _data_sets()
    elif scheme in ("timm", "builtin") and key == "model.arch":
        names = _networks("timm", "models") if scheme == "timm" else ["digits", "lenet"]
    else:
        return _functions(incomplete)
    return _starting((f"{scheme}:{name}" for name in names), incomplete)


def _starting(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _functions(incomplete: str, words: Iterable[str] = ()) -> list[CompletionItem]:
    """Complete files, and after a colon the functions and classes of a Python file, which is not run."""
    file, colon, _ = incomplete.rpartition(":")
    if not colon:
        return [*_starting(words, incomplete), CompletionItem(incomplete, type="file")]
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    named = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return _starting((f"{file}:{node.name}" for node in named if not node.name.startswith("_")), incomplete)


def _networks(package: str, folder: str) -> list[str]:
    """Return the names of the networks that a package declares; none where it is not installed."""
    root = _sources(package)
    texts = (
        (file.read_text(encoding="utf-8", errors="replace") for file in (root / folder).rglob("*.py")) if root else ()
    )
    return sorted({name or function for text in texts for name, function in _REGISTERED.findall(text)})


def _data_sets() -> list[str]:
    """Return the names of torchvision's data sets."""
    root = _sources("torchvision")
    text = (root / "datasets" / "__init__.py").read_text(encoding="utf-8") if root else ""
    exported = re.search(r"__all__ = \(([^)]*)\)", text)
    return sorted(re.findall(r'"(\w+)"', exported[1])) if exported else []


def _sources(package: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


class _Bash(BashComplete):
    """Completion for bash, which splits words at ``=`` and ``:``: this joins them, and returns only the last part.

    No blank follows a word that is incomplete. Files are offered beside keys, not in place of them.
    """

    source_template = (
        BashComplete.source_template.replace(
            "COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *[=:.] ]] && compopt -o nospace"
        )
        .replace("COMPREPLY=()\n            compopt -o dirnames", _FILES.format("-d"))
        .replace("COMPREPLY=()\n            compopt -o default", _FILES.format("-f"))
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        given, incomplete = super().get_completion_args()
        whole: list[str] = []
        for word in [*given, incomplete]:
            if whole and (word[:1] in ("=", ":") or whole[-1][-1:] in ("=", ":")):
                whole[-1] += word
            else:
                whole.append(word)
        # in --option=value click completes the value
        value = whole[-1].partition("=")[2] if whole[-1].startswith("--") else whole[-1]
        self._cut = max(value.rfind("="), value.rfind(":")) + 1
        return whole[:-1], whole[-1]

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value[self._cut :] if item.type == 'plain' else item.value}"


add_completion_class(_Bash)
