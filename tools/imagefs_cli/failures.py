"""How a run ends that did not go well: exit codes, and what is printed.

Expected failures end with their class's exit code and one line; ``--json`` puts the same on standard output as ``{"error": …}``. An
unexpected one ends with 70 and says that it is a bug; its traceback is shown with ``-v``. Ctrl-C ends with 130, a reader that went away
with 141.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

import click

from imagefs import __version__
from imagefs_cli.options import Invocation

EXIT_USAGE: Final = 2
EXIT_BUG: Final = 70
EXIT_LEFT: Final = 75
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE: Final = 141


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Say whether ``--json`` is among the arguments: also a command line that cannot be parsed is answered in JSON then."""
    return "--json" in arguments


def show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Print the version and end."""
    if value and not ctx.resilient_parsing:
        click.echo(f"imagefs {__version__}")
        ctx.exit()


def guard(run: Callable[[], object], invocation: Invocation) -> int:
    """Run a command line; return the exit code for whatever comes of it."""
    from imagefs.errors import ImageFSError

    stdout = sys.stdout
    try:
        result = run()
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        if error.ctx is not None and not invocation.wants_json:
            click.echo(error.ctx.get_usage(), err=True)
        return fail(invocation, "UsageError", EXIT_USAGE, error.format_message(), f"`{_path(error.ctx)} --help` shows what it takes")
    except click.ClickException as error:
        return fail(invocation, "UsageError", EXIT_USAGE, error.format_message(), None)
    except (click.Abort, KeyboardInterrupt) as error:
        # Click has ended the line in which a terminal shows "^C" by itself.
        click.echo("interrupted" if isinstance(error, click.Abort) else "\ninterrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as end:
        # Click ends a run so for a broken pipe, which it shows only by wrapping the stream, and after a completion.
        if sys.stdout is not stdout:
            return _reader_left()
        return end.code if isinstance(end.code, int) else 0
    except ImageFSError as error:
        return fail(invocation, type(error).__name__, error.exit_code, error.message, error.hint)
    except Exception as error:  # noqa: BLE001 - the last resort, so that nobody sees a traceback unasked
        if invocation.verbose:
            import traceback

            traceback.print_exc()
        hint = "this is a bug in imagefs; run it again with -v and report what it says"
        return fail(invocation, type(error).__name__, EXIT_BUG, f"unexpected: {error!r}", hint)
    return result if isinstance(result, int) else 0


def _reader_left() -> int:
    """Keep the interpreter from trying to write what is left at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_PIPE


def fail(invocation: Invocation, kind: str, code: int, message: str, hint: str | None) -> int:
    """Say what went wrong, to people and, if asked, to programs; return the exit code."""
    from imagefs_cli.output import plain, print_json

    click.echo(f"imagefs: {plain(message)}", err=True)
    if hint:
        click.echo(f"  {plain(hint)}", err=True)
    if invocation.wants_json:
        print_json({"error": {"type": kind, "exit_code": code, "message": message, "hint": hint}})
    return code


def _path(ctx: click.Context | None) -> str:
    return ctx.command_path if ctx is not None else "imagefs"
