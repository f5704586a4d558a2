"""What commands share on the command line: the global options and ``--json``.

The global options are accepted before and after the command. Both places write to the same :class:`Invocation`; the later one wins.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from imagefs_cli import declared
from imagefs_cli.declared import LOG_LEVELS
from imagefs_cli.invocation import Invocation

__all__ = ["GLOBAL_OPTIONS", "LOG_LEVELS", "Invocation", "command", "complete_directory", "complete_ref", "complete_source"]

SOURCE_KINDS: Final = ("oci-archive:", "oci:", "docker-archive:", "dir:")
COMPLETIONS_MAX: Final = 1000
COMPLETION_SECONDS: Final = 1.0


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and value is not False and param.name is not None:
        ctx.ensure_object(Invocation).keep(param.name, value)


def option_of(option: declared.Option, **rest: Any) -> click.Option:
    """Make an option of click of one that is declared."""
    made: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    # To click None is a default like any other.
    made |= {"required": True} if option.required else {"default": option.default}
    match option.kind:
        case declared.FLAG:
            made = {"help": option.help, "is_flag": True}
        case declared.CHOICE:
            made["type"] = click.Choice(option.choices)
        case declared.SHARE:
            made["type"] = click.FloatRange(0, 1)
        case declared.DIRECTORY:
            made["shell_complete"] = complete_directory
        case declared.FILE:
            made["shell_complete"] = complete_file
        case declared.LEVEL:
            made["shell_complete"] = lambda _ctx, _param, incomplete: [level for level in LOG_LEVELS if level.startswith(incomplete)]
    return click.Option([*option.names, option.name], **made, **rest)


def GLOBAL_OPTIONS() -> list[click.Option]:  # noqa: N802 - reads as the constant that it would be, were options shareable
    """Return the options that every command takes, anew each time: click binds an option to one command."""
    return [option_of(option, expose_value=False, callback=_keep) for option in declared.GLOBAL]


def command(
    name: str, kind: type[click.Command] = click.Command, options: Sequence[declared.Option] = (), **attributes: Any
) -> Callable[[Callable[..., object]], click.Command]:
    """Make a function a command that takes the global options and ``--json`` beside its own, which may be declared: ``options``.

    The function gets the :class:`Invocation` first.
    """

    def decorate(function: Callable[..., object]) -> click.Command:
        made = kind(
            name,
            callback=click.pass_obj(function),
            context_settings={"help_option_names": ["-h", "--help"]},
            help=function.__doc__,
            **attributes,
        )
        # What the click.option decorators left on the function, the last one first.
        made.params = list(reversed(getattr(function, "__click_params__", [])))
        made.params += map(option_of, options)
        made.params.append(option_of(declared.JSON, expose_value=False, callback=_keep_json))
        made.params += GLOBAL_OPTIONS()
        return made

    return decorate


def _keep_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).wants_json = True


def complete_directory(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell to complete a directory. Unlike ``click.Path`` this never looks at the path, which may be a dead mount."""
    return [CompletionItem(incomplete, type="dir")]


def complete_file(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell to complete a file."""
    return [CompletionItem(incomplete, type="file")]


def complete_source(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a kind of source, and the path behind it, which no shell does after a colon."""
    kind = next((prefix for prefix in SOURCE_KINDS if incomplete.startswith(prefix)), "")
    found = [] if kind else [prefix for prefix in SOURCE_KINDS if prefix.startswith(incomplete)]
    folder, _, start = incomplete.removeprefix(kind).rpartition("/")
    slash = incomplete.removeprefix(kind)[: len(folder) + 1] if folder or incomplete.removeprefix(kind).startswith("/") else ""
    try:
        with os.scandir(slash or ".") as entries:
            paths = [
                f"{kind}{slash}{entry.name}" + ("/" if entry.is_dir() else "")
                for entry in entries
                if entry.name.startswith(start) and (start or not entry.name.startswith("."))
            ]
    except OSError:
        paths = []
    return [CompletionItem(text) for text in found + sorted(paths)[:COMPLETIONS_MAX]]


def complete_ref(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a ref from the store; nothing at all if that goes wrong, since a shell's prompt is no place for errors.

    Returns what was found within ``COMPLETION_SECONDS``.
    """
    # Imported here: the rest of the command line has no use for threads.
    import threading

    names: list[str] = []

    def collect() -> None:
        from imagefs.store.refs import list_refs

        # Whatever it meets ends this thread alone.
        with contextlib.suppress(Exception):
            for ref, _ in list_refs((ctx.find_object(Invocation) or Invocation()).store()):
                if str(ref).startswith(incomplete):
                    names.append(str(ref))
                if len(names) >= COMPLETIONS_MAX:
                    break

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(COMPLETION_SECONDS)
    return [CompletionItem(name) for name in list(names)]
