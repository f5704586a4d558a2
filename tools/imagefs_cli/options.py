"""What commands share on the command line: the global options and ``--json``.

The global options are accepted before and after the command. Both places write to the same :class:`Invocation`; the later one wins.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from imagefs.config import Config
    from imagefs.store.base import ObjectStore


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
        option("--cache", metavar="DIR", help="Where the host keeps indexes and content."),
        option("--runtime", metavar="DIR", help="Where sockets and the mount table are."),
        option("--config", metavar="FILE", help="The TOML configuration file."),
        option("--log-level", metavar="LEVEL", help="Least severe event that the daemon logs: debug, info, warning or error."),
        option("-v", "--verbose", is_flag=True, help="Show the traceback of an unexpected error."),
    ]


JSON_OPTION_HELP = "Print one JSON document and nothing else."


def command(name: str, **attributes: Any) -> Callable[[Callable[..., object]], click.Command]:
    """Make a function a command that takes the global options and ``--json`` beside its own.

    The function gets the :class:`Invocation` first.
    """

    def decorate(function: Callable[..., object]) -> click.Command:
        made = click.Command(
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


def complete_ref(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a ref from the store; nothing at all if that goes wrong, since a shell's prompt is no place for errors."""
    try:
        from imagefs.store.refs import list_refs

        invocation = ctx.find_object(Invocation) or Invocation()
        names = []
        for count, (ref, _) in enumerate(list_refs(invocation.store())):
            if str(ref).startswith(incomplete):
                names.append(CompletionItem(str(ref)))
            if count >= 1000:
                break
    except Exception:  # noqa: BLE001 - see above
        return []
    return names
