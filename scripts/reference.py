"""Write the generated pages of docs/reference/ anew: after a change of an option, a setting, a method, an error or a
result, run

    python scripts/reference.py

The command line comes from click's commands, settings from the configuration's schema, methods from what criteria
state, exit codes from the errors' classes, the Python interface from its docstrings, and the schema of report.json from
the result's dataclasses. ``tests/docs/test_reference.py`` fails where a page is not what this writes.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from reference_python import python_page
from reference_text import HEAD, prose, table
from report_schema import report_schema

from prunetaylor.cli.main import group
from prunetaylor.core import errors
from prunetaylor.core.config.describe import methods_table, metrics_table
from prunetaylor.core.config.keys import choices, is_section
from prunetaylor.core.config.schema import Config, Section
from prunetaylor.core.config.values import dump_value

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def command_line() -> str:
    """Return the page of all commands."""
    parts = [
        f"{HEAD}# Command line\n",
        "Every command has `--help`. `MODEL` and `KEY=VALUE` may stand in any order among the options; "
        "[settings](configuration.md) has all keys.\n",
        table(
            ("command", "what it does"),
            [(f"[`{name}`](#prunetaylor-{name})", command.get_short_help_str(120)) for name, command in commands()],
        ),
    ]
    for name, command in commands():
        parts.append(f"## prunetaylor {name}\n")
        parts += paragraphs(command)
        parts.append(table(("option", "meaning"), [option for one in command.params for option in options(one)]))
        examples = re.search(r"Examples:\n(.*)", command.epilog or "", re.DOTALL)
        lines = [line.strip() for line in examples[1].splitlines() if line.strip()] if examples else []
        parts.append("<!-- parsed: examples from the help text -->\n```bash\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def commands() -> list[tuple[str, click.Command]]:
    return list(group.commands.items())


def paragraphs(command: click.Command) -> Iterator[str]:
    """Yield the usage and the text of a command."""
    context = click.Context(command, info_name=f"prunetaylor {command.name}")
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    for text in inspect.cleandoc(command.help or "").replace("\b\n", "").split("\n\n"):
        yield prose(" ".join(text.split())) + "\n"


def options(parameter: click.Parameter) -> Iterator[tuple[str, str]]:
    """Yield the row of an option: its names and their value, its meaning."""
    if not isinstance(parameter, click.Option) or parameter.hidden:
        return
    value = "" if parameter.is_flag or parameter.count else f" {parameter.make_metavar(click.Context(group))}"
    names = ", ".join(f"`{name}`" for name in parameter.opts[:-1]) + (", " if parameter.opts[:-1] else "")
    meaning = " ".join((parameter.help or "").split()).replace("[default:", "Default:").rstrip("]")
    yield f"{names}`{parameter.opts[-1]}{value}`", prose(meaning + ("" if meaning.endswith(".") else "."))


def configuration() -> str:
    """Return the page of all settings."""
    return "\n".join(
        [
            f"{HEAD}# Settings\n",
            "A setting is given on the command line (`KEY=VALUE`), in the environment (`PRUNETAYLOR_PRUNE_SPARSITY` "
            "for `prune.sparsity`), or in a YAML file (`-c FILE`). The command line wins over the environment, "
            "the environment over the file. Fractions may be written as `80%`. From Python, `settings={KEY: VALUE}`.\n",
            "`prunetaylor config` prints the same, `prunetaylor config --schema` a JSON schema for editors.\n",
            "## General\n",
            settings(Config, ""),
            *(part for name, info in Config.model_fields.items() for part in section(name, info.annotation)),
        ]
    )


def section(prefix: str, annotation: Any) -> Iterator[str]:
    """Yield the heading and the settings of a section, and those of the sections in it."""
    if is_section(annotation):
        yield f"## {prefix}\n"
        yield prose(" ".join((annotation.__doc__ or "").split())) + "\n"
        yield settings(annotation, f"{prefix}.")
        for name, info in annotation.model_fields.items():
            yield from section(f"{prefix}.{name}", info.annotation)


def settings(of: type[Section], prefix: str) -> str:
    """Return the table of a section's own settings."""
    rows = []
    for name, info in of.model_fields.items():
        if is_section(info.annotation):
            continue
        words = choices(info)
        known = f" Values: {', '.join(f'`{word}`' for word in words)}." if len(words) > 1 else ""
        rows.append(
            (
                f"`{prefix}{name}`",
                f"`{dump_value(info.default)}`",
                prose(" ".join((info.description or "").split())) + known,
            )
        )
    return table(("setting", "default", "meaning"), rows)


def exit_codes() -> str:
    """Return the table of exit codes: those that errors have, and those of runs that end without one."""
    kinds = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.PruneTaylorError)]
    known = {
        0: ["The command did what it was asked to."],
        3: ["A gate's limit is not met."],
        4: ["A gate cannot judge: there are too few test samples."],
        130: ["Interrupted (Ctrl-C)."],
        143: ["Ended by SIGTERM."],
    }
    for kind in kinds:
        meaning = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        known.setdefault(kind.exit_code, []).append(f"`{kind.__name__}`: {prose(meaning)}")
    rows = [(f"{code}", "<br>".join(texts)) for code, texts in sorted(known.items())]
    return table(("code", "meaning"), rows)


def within(page: str, name: str, text: str) -> str:
    """Return a page of docs/reference/ with ``text`` between the two comments that ``name`` begins and ends."""
    before, begin, rest = (
        (FOLDER / page).read_text(encoding="utf-8").partition(f"<!-- {name}: written by scripts/reference.py -->\n")
    )
    end = f"<!-- end of {name} -->\n"
    assert begin, f"{page} has no place for the {name}"
    assert end in rest, f"{page}: the place for the {name} has no end"
    return f"{before}{begin}{text}{end}{rest.partition(end)[2]}"


def pages() -> dict[str, str]:
    """Return every generated page as it should be, by its name in docs/reference/."""
    return {
        "cli.md": command_line(),
        "configuration.md": configuration(),
        "exit-codes.md": within("exit-codes.md", "exit codes", exit_codes()),
        "metrics.md": within("metrics.md", "metrics", metrics_table()),
        "methods.md": within("methods.md", "methods", methods_table()),
        "python.md": python_page(),
        "report.schema.json": json.dumps(report_schema(), indent=2) + "\n",
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
