"""``prunetaylor config``: what can be set, and what a command line would set."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import config_option, json_option, read_configuration, words


@click.command(short_help="Print all settings, or their JSON schema.")
@words("[KEY=VALUE]...")
@config_option
@click.option("--schema", is_flag=True, help="Print the JSON schema of configuration files, for editors.")
@json_option
def config(words: tuple[str, ...], file: Path | None, schema: bool, as_json: bool) -> None:
    """Print every setting with its default and meaning, as YAML that -c reads.

    With -c or KEY=VALUE: the configuration that they give, each value with its origin (default, FILE:line,
    environment, command line).
    """
    from prunetaylor.config.describe import defaults, dump, json_schema

    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
        return
    resolved = read_configuration(words, file, {}, model_needed=False)
    if as_json:
        click.echo(json.dumps({"configuration": resolved.config.model_dump(), "origins": resolved.origins}))
    elif all(origin == "default" for origin in resolved.origins.values()):
        click.echo(defaults(), nl=False)
    else:
        click.echo(dump(resolved), nl=False)
