"""``imagefs snapshot``: its table of commands. Each is imported when it is used: ``imagefs_cli.<module>.<name>_command``."""

from typing import Final

from imagefs_cli.group import Entry, LazyGroup
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


snapshot_command = LazyGroup(
    "snapshot",
    COMMANDS,
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
