"""The command ``prunetaylor config``: it prints the settings, or those that a command line would give."""

from __future__ import annotations

from pathlib import Path

import click

from prunetaylor.core.errors import UsageError

from .support.options import config_option, examples, json_option, read_configuration, split_words, words
from .terminal.console import say_json, say_lines


@click.command(
    short_help="Print all settings, or their JSON schema.",
    epilog=examples(
        "prunetaylor config",
        "prunetaylor config prune.method",
        "prunetaylor config --schema > prunetaylor.schema.json",
    ),
)
@words("[KEY | KEY=VALUE]...")
@config_option
@click.option("--schema", is_flag=True, help="Print the JSON schema of configuration files, for editors.")
@json_option
def config(words: tuple[str, ...], file: Path | None, schema: bool, as_json: bool) -> None:
    """Print every setting with its default and meaning, as YAML that -c reads.

    With KEY, such as prune.method, or a section, such as finetune, it prints its meaning and values, and for each
    method its cost and when to use it.

    With -c or KEY=VALUE it prints the resulting configuration, each value with its origin (default, FILE:line,
    environment, command line).
    """
    from prunetaylor.core.config.describe import defaults, dump, explain, json_schema

    if schema:
        say_json(json_schema(), indent=2)
        return
    key, pairs = split_words(words)
    if key is not None:
        if pairs or file is not None or as_json:
            raise UsageError(f"{key} cannot be combined with other arguments", f"run: prunetaylor config {key}")
        say_lines(explain(key))
        return
    resolved = read_configuration(words, file, {}, model_needed=False)
    if as_json:
        say_json({"configuration": resolved.config.model_dump(), "origins": resolved.origins}, allow_nan=True)
    elif all(origin == "default" for origin in resolved.origins.values()):
        say_lines(defaults())
    else:
        say_lines(dump(resolved))
