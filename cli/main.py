"""The command ``prunetaylor``: it finds the command that is meant, and turns errors into messages and exit codes.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 gate failed, 4 gate inconclusive, 5 checkpoint refused, 6 a
sweep has failed trials, 130 interrupted (Ctrl-C), 143 ended by SIGTERM.
Nothing here imports torch, pydantic, yaml or rich: ``--help`` and shell completion answer at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from prunetaylor._version import __version__
from prunetaylor.core.errors import PeerError, PruneTaylorError, close_match
from prunetaylor.core.text import neutral_lines
from prunetaylor.pipeline.files.signals import Terminated, raise_terminated
from prunetaylor.runtime.processes.place import find
from prunetaylor.runtime.python_process import forget_working_directory
from prunetaylor.runtime.torchvision_import import repair_imports

from .check import check
from .compare import compare
from .config import config
from .demo import demo
from .eval import evaluate
from .inspect import inspect
from .prune import prune
from .report import report
from .score import score
from .support.options import State, refuse_repeated
from .sweep import sweep
from .terminal.console import forget_stdout, say, with_own_stdout

_EPILOG = """\b
Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 gate failed,
4 gate inconclusive, 5 checkpoint refused, 6 a sweep has failed trials,
130 interrupted. Errors name cause and remedy; -vv shows where they came
from.
"""


class _Commands(click.Group):
    """The group of commands. An unknown command gets the closest name as a hint, whatever its case.

    An option with two different values is refused, where click would use the last one.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word.startswith("-") or word in self.commands or ctx.resilient_parsing:
            name, command, rest = super().resolve_command(ctx, args)
            if command is not None and not ctx.resilient_parsing:
                refuse_repeated(command, ctx, rest)
            return name, command, rest
        exact = word.lower() in self.commands
        hint = f"; did you mean {word.lower()!r}?" if exact else close_match(word, self.commands)
        if Path(word).exists():
            hint = f"; to prune it, run: prunetaylor prune {shlex.quote(word)}"
        raise click.UsageError(f"unknown command {word!r}{hint}", ctx)


@click.group(
    cls=_Commands,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="prunetaylor", message="%(prog)s %(version)s")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Prune a trained PyTorch network by second-order Taylor saliency, repair it, and measure the result.

    \b
    Try it:   prunetaylor demo && prunetaylor prune model.pt
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (prune, score, sweep, evaluate, check, compare, report, inspect, demo, config):
    assert _command.callback is not None
    _command.callback = with_own_stdout(_command.callback)
    group.add_command(_command)


def main() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    forget_working_directory()
    repair_imports()  # before anything of the user's or of another package imports torchvision
    sys.exit(run(sys.argv[1:], last=True))


def run(arguments: Sequence[str], *, last: bool = False) -> int:
    """Run one command line and return its exit code. Errors go to stderr; a broken pipe ends quietly.

    With ``last`` the process ends with the command, and stdout is not restored.
    """
    state = State(arguments=tuple(arguments), main=_is_main(), last=last)
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        result = group.main(list(arguments), prog_name="prunetaylor", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        forget_stdout()
        return 1
    except (Exception, click.Abort, KeyboardInterrupt, Terminated) as err:
        return _report(err, state)
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_main() -> bool:
    """Return whether this is the main one of the processes that share a run."""
    try:
        place = find(os.environ)
    except PruneTaylorError:
        return True
    return place is None or place.rank == 0


def _report(err: BaseException, state: State) -> int:
    """Print what happened on stderr, and return the exit code."""
    if (isinstance(err, PeerError) and err.silent) or (not state.main and isinstance(err, click.UsageError)):
        return err.exit_code
    if not state.main and isinstance(err, KeyboardInterrupt | Terminated):  # the main one prints it
        return 130 if isinstance(err, KeyboardInterrupt) else 143
    if state.verbosity >= 2:
        click.echo(neutral_lines("".join(traceback.format_exception(err))), err=True, nl=False)
    if isinstance(err, click.Abort | KeyboardInterrupt):
        _print_error("interrupted", state.remedy)
        return 130
    if isinstance(err, Terminated):
        _print_error("ended by SIGTERM", state.remedy)
        return 143
    if isinstance(err, click.UsageError):
        command = err.ctx.command_path if err.ctx else "prunetaylor"
        _print_error(err.format_message(), f"`{command} --help` shows the options")
        return err.exit_code
    if isinstance(err, click.ClickException):
        _print_error(err.format_message(), "")
        return err.exit_code
    if isinstance(err, PruneTaylorError):
        _print_error(err.cause, "\n".join(text for text in (err.remedy, state.remedy) if text))
        return err.exit_code
    cause, remedy = _unexpected(err)
    _print_error(cause, "\n".join(text for text in (remedy, state.remedy) if text))
    return 1


def _unexpected(err: BaseException) -> tuple[str, str]:
    """Return cause and remedy of an error that no part of the program foresaw."""
    text = " ".join(str(err).split())
    if isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError":
        return "out of memory", "try a smaller data.batch_size or calibration.samples, or --device cpu"
    if isinstance(err, OSError) and err.strerror:
        return f"{err.filename}: {err.strerror}" if err.filename else err.strerror, ""
    return (
        f"{type(err).__name__}: {text[:500]}",
        "this should not have happened; please report it with the output of the same command and -vv",
    )


def _print_error(cause: str, remedy: str) -> None:
    # stderr may be closed or full as well; the exit code remains
    with contextlib.suppress(OSError):
        say(cause, err=True, head=click.style("error: ", fg="red", bold=True))
        for line in remedy.splitlines():
            say(f"  {line}", err=True)


if __name__ == "__main__":
    main()
