"""The commands of ``imagefs``: their table, and the group that click reads command lines with.

Promises:

- ``imagefs --help`` imports no command module: names and short helps stand in :data:`COMMANDS` (a test compares them with the commands);
- whatever goes wrong, the process ends with a documented exit code and a line on stderr, without a traceback.

What a command does lives in its own module; what an error looks like in :mod:`imagefs_cli.failures`.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

import click
from click.exceptions import NoSuchCommand

from imagefs_cli import failures
from imagefs_cli.options import GLOBAL_OPTIONS, Invocation


class Entry(NamedTuple):
    """Where a command is found: attribute ``<name>_command`` of ``imagefs_cli.<module>``, and its line in the group's help."""

    module: str
    short_help: str


COMMANDS: Final[dict[str, Entry]] = {
    "convert": Entry("convert", "Convert a container image into the store."),
    "mount": Entry("mounting", "Mount an image."),
    "umount": Entry("mounting", "Unmount an image."),
    "prefetch": Entry("mounting", "Bring what an image's starts read to this host."),
    "images": Entry("images", "List the images in the store."),
    "inspect": Entry("images", "Show one image in full."),
    "tag": Entry("images", "Give an image another ref."),
    "rm": Entry("images", "Remove a ref."),
    "diff": Entry("diff", "Show how two images differ."),
    "optimize": Entry("optimize", "Lay an image out in the order in which it starts."),
    "snapshot": Entry("snapshot", "Freeze, keep and restore programs."),
    "cache": Entry("cache", "Show and steer the SSD tier."),
    "profile": Entry("profile", "Show and move what is known of starts."),
    "stats": Entry("stats", "Show what the daemon has served, and from which tier."),
    "explain": Entry("explain.command", "Show where the time of a start went."),
    "top": Entry("top", "Show who reads what from which tier now."),
    "logs": Entry("logs", "Show what replicas of services have printed."),
    "doctor": Entry("doctor", "Check what this host can do."),
    "daemon": Entry("daemon", "Run, show or stop the daemon."),
    "completion": Entry("completion", "Print the completion script for a shell."),
    "man": Entry("manual", "Write the man pages."),
    "version": Entry("version", "Show the version."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used. ``table`` has its commands by name, in the order of use."""

    def __init__(self, name: str, table: Mapping[str, Entry], **options: Any) -> None:
        """``options`` are those of a click group."""
        super().__init__(name, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 # click's signature
        """Return the names in the order of the table: the order of use."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 # click's signature
        """Import and return a command."""
        entry = self._table.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(f"imagefs_cli.{entry.module}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)  # narrows getattr's Any; a test loads every entry
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; suggest the nearest names if there is none."""
        if args and args[0] not in self._table and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise NoSuchCommand(args[0], possibilities=self._table, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 # click's signature
        """Write the list of commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.short_help) for name, entry in self._table.items()])


cli = LazyGroup(
    "imagefs",
    COMMANDS,
    params=[
        *GLOBAL_OPTIONS(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=failures.show_version,
            help="Show the version and exit.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "obj": None},
    no_args_is_help=True,
    help=(
        "Container images that mount at once and load lazily.\n\n"
        "The options below are accepted before and after the command. Each also has an environment variable (IMAGEFS_STORE, IMAGEFS_CACHE, "
        "IMAGEFS_RUNTIME, IMAGEFS_CONFIG, IMAGEFS_LOG_LEVEL) and, except for --config, a key in the TOML configuration file; "
        "a flag wins over the environment, which wins over the file."
    ),
)


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    invocation = Invocation(wants_json=failures.asks_for_json(arguments), command_line=tuple(arguments))
    return failures.guard(lambda: cli.main(arguments, prog_name="imagefs", standalone_mode=False, obj=invocation), invocation)
