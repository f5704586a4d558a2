"""``imagefs snapshot``: its table of commands. Each is imported when it is used: ``imagefs_cli.<module>.<name>_command``."""

from importlib import import_module
from typing import Final

import click
from click.exceptions import NoSuchCommand

from imagefs_cli.group import Entry
from imagefs_cli.options import GLOBAL_OPTIONS

COMMANDS: Final[dict[str, Entry]] = {
    "create": Entry("snapshot_bundle", "Freeze the program of an OCI bundle."),
    "restore": Entry("snapshot_bundle", "Restore the program of a bundle, and stay with it."),
    "run": Entry("snapshot_run", "Call a method of a service, restored from a snapshot where one fits."),
    "push": Entry("snapshot_move", "Store a checkpoint that an engine has made."),
    "pull": Entry("snapshot_move", "Bring all of a snapshot to this host."),
    "ls": Entry("snapshot_show", "List the snapshots in the store."),
    "inspect": Entry("snapshot_show", "Show one snapshot in full."),
    "diff": Entry("snapshot_diff", "Show how two snapshots differ."),
    "verify": Entry("snapshot_verify", "Read all of a snapshot from the store, and verify it."),
    "rm": Entry("snapshot_move", "Remove a ref of a snapshot."),
    "doctor": Entry("snapshot_doctor", "Check what this host can restore."),
}
"""In the order of use. A test compares them with the commands."""


class LazySnapshots(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 # click's signature
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 # click's signature
        """Import and return a command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(f"imagefs_cli.{entry.module}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)  # narrows getattr's Any; a test loads every entry
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; suggest the nearest names if there is none."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 # click's signature
        """Write the list of commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.short_help) for name, entry in COMMANDS.items()])


snapshot_command = LazySnapshots(
    "snapshot",
    params=GLOBAL_OPTIONS(),
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    short_help="Freeze, keep and restore programs.",
    help=(
        "Freeze programs, keep them in the store, and restore them.\n\n"
        "A snapshot is a program after the work that every start of it repeats: its memory and its writable layer. It is named as an image "
        "is, by a ref; and it is a core dump, with all that the program knew."
    ),
)
