"""What commands share on the command line: the global options and ``--json``.

The global options are accepted before and after the command. Both places write to the same :class:`Invocation`; the later one wins.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from imagefs.config import Config
    from imagefs.store.base import ObjectStore

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
"""Those of ``imagefs.config``, which help must not import; a test compares them."""

SOURCE_KINDS: Final = ("oci-archive:", "oci:", "docker-archive:", "dir:")
COMPLETIONS_MAX: Final = 1000
COMPLETION_SECONDS: Final = 1.0


@dataclass(slots=True)
class Invocation:
    """One run of the command: whether it was asked for JSON, and the global options as they come."""

    wants_json: bool = False
    command_line: tuple[str, ...] = ()
    verbose: bool = False
    flags: dict[str, Any] = field(default_factory=dict)

    def config(self) -> "Config":
        """Build the configuration from flags, environment, file and defaults."""
        from imagefs.config import load_config

        return load_config(self.flags)

    def store(self, *, create: bool = False) -> "ObjectStore":
        """Open the store."""
        from imagefs.store.opening import open_store

        return open_store(self.config().store, create=create)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and value is not False and param.name is not None:
        invocation = ctx.ensure_object(Invocation)
        if param.name == "verbose":
            invocation.verbose = True
        else:
            invocation.flags[param.name] = value


def GLOBAL_OPTIONS() -> list[click.Option]:  # noqa: N802 - reads as the constant that it would be, were options shareable
    """Return the options that every command takes, anew each time: click binds an option to one command."""

    def option(*names: str, **rest: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_keep, **rest)

    return [
        option("--store", metavar="URL", help="The store: file:///DIR, or a directory."),
        option("--cache", metavar="DIR", shell_complete=complete_directory, help="Where the host keeps indexes and content."),
        option("--runtime", metavar="DIR", shell_complete=complete_directory, help="Where sockets and the mount table are."),
        option("--config", metavar="FILE", shell_complete=complete_file, help="The TOML configuration file."),
        option(
            "--log-level",
            metavar="LEVEL",
            shell_complete=lambda _ctx, _param, incomplete: [level for level in LOG_LEVELS if level.startswith(incomplete)],
            help=f"Least severe event that the daemon logs: {', '.join(LOG_LEVELS)}.",
        ),
        option("-v", "--verbose", is_flag=True, help="Show the traceback of an unexpected error."),
    ]


JSON_OPTION_HELP = "Print one JSON document and nothing else."


def command(name: str, kind: type[click.Command] = click.Command, **attributes: Any) -> Callable[[Callable[..., object]], click.Command]:
    """Make a function a command that takes the global options and ``--json`` beside its own.

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
        made.params.append(
            click.Option(["--json"], is_flag=True, expose_value=False, callback=_keep_json, help=JSON_OPTION_HELP),
        )
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
