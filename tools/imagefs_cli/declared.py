"""The options of commands that others wait for, and those that all commands take: declared once, for the two that read command lines.

``imagefs_cli.options`` makes options of click out of them, which knows all that there is to know of a command line; ``imagefs_cli.lean``
reads the plain ones of these commands by itself, because click takes longer to load than a mount takes.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

LOG_LEVELS: "Final" = ("debug", "info", "warning", "error")
"""Those of ``imagefs.settings``, which help must not import; a test compares them."""

FLAG: "Final" = "flag"
TEXT: "Final" = "text"
DIRECTORY: "Final" = "directory"
FILE: "Final" = "file"
LEVEL: "Final" = "level"
CHOICE: "Final" = "choice"
SHARE: "Final" = "share"
"""What kind of value an option takes; a share, of 0 to 1, only behind ``=``, and without one it is 1."""


class Option:
    """One option. ``names``: how it may be written; ``name``: that of its value, in Python; ``choices``: all values that it can have.

    ``default`` is the value of one that is not given, which a ``required`` one must be. ``rare`` ones are click's alone.
    """

    __slots__ = ("choices", "default", "help", "kind", "metavar", "name", "names", "rare", "required")

    def __init__(
        self,
        *names: str,
        kind: str,
        help: str,  # noqa: A002 # as click calls it
        metavar: str | None = None,
        name: str = "",
        default: "Any" = None,
        choices: tuple[str, ...] = (),
        rare: bool = False,
        required: bool = False,
    ) -> None:
        """Keep what is said."""
        self.names = names
        self.name = name or names[-1].removeprefix("--").replace("-", "_")
        self.kind = kind
        self.help = help
        self.metavar = metavar
        self.default = False if kind == FLAG else default
        self.choices = choices
        self.rare = rare
        self.required = required


GLOBAL: "Final" = (
    Option("--store", kind=TEXT, metavar="URL", help="The store: file:///DIR, or a directory."),
    Option("--cache", kind=DIRECTORY, metavar="DIR", help="Where the host keeps indexes and content."),
    Option("--runtime", kind=DIRECTORY, metavar="DIR", help="Where sockets and the mount table are."),
    Option("--config", kind=FILE, metavar="FILE", help="The TOML configuration file."),
    Option("--log-level", kind=LEVEL, metavar="LEVEL", help=f"Least severe event that the daemon logs: {', '.join(LOG_LEVELS)}."),
    Option("-v", "--verbose", kind=FLAG, help="Show the traceback of an unexpected error."),
)
"""Accepted before and after the command."""

JSON: "Final" = Option("--json", kind=FLAG, help="Print one JSON document and nothing else.")

MOUNT: "Final" = (
    Option(
        "--mode",
        kind=CHOICE,
        choices=("auto", "kernel", "fuse"),
        help="How it is served; auto: kernel mode where that works.",
    ),
    Option("--upper", kind=DIRECTORY, metavar="DIR", help="A writable layer, in an empty directory (kernel mode)."),
    Option("--dev", kind=FLAG, help="Let the image's devices work (kernel mode)."),
    Option("--suid", kind=FLAG, help="Let set-user-id programs of the image work (kernel mode)."),
    Option("--foreground", kind=FLAG, rare=True, help="Stay until it is unmounted or interrupted, and unmount then."),
    Option("--no-prefetch", kind=FLAG, help="Fetch nothing before it is read."),
    Option(
        "--wait-prefetch",
        kind=SHARE,
        name="wait",
        metavar="[=SHARE]",
        default=0.0,
        help="Return when so much (0 to 1; by default all) of what the image's profile names is on this host, or no more of it comes.",
    ),
    Option("--no-record", kind=FLAG, help="Do not record what is read."),
    Option(
        "--profile-label",
        kind=TEXT,
        metavar="LABEL",
        default="",
        help="Record under this name: of programs that are started alike.",
    ),
)

UMOUNT: "Final" = (Option("--lazy", kind=FLAG, help="Detach it now, and let go when the last user is gone."),)

RUN: "Final" = (
    Option("--call", kind=TEXT, name="method", metavar="METHOD", required=True, help="The method to call."),
    Option(
        "--args",
        kind=TEXT,
        name="arguments",
        metavar="JSON",
        default="[]",
        help="A list of arguments, or an object of named ones (default: none).",
    ),
    Option(
        "--source",
        kind=DIRECTORY,
        metavar="DIR",
        default=".",
        help="The directory that the module is imported from (default: this one).",
    ),
    Option("--image", kind=TEXT, metavar="REF", help="Run it in this image (default: the one that its decorator names)."),
    Option(
        "--engine",
        kind=CHOICE,
        choices=("auto", "runsc", "criu"),
        default="auto",
        help="What runs and freezes it; auto: what has a snapshot that fits.",
    ),
    Option("--no-snapshot", kind=FLAG, help="Start it cold, and make no snapshot."),
    Option("--fresh", kind=FLAG, help="Start it cold, and make a new snapshot in place of the one that there may be."),
)
"""Those of ``snapshot run`` that are plain: click knows more."""
