"""Where ``imagefs`` begins: a plain one of a mount or a call goes the short way (``imagefs_cli.lean``), any other to click (``group``)."""

import io
import os
import sys

from imagefs_cli import lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(args: "Sequence[str] | None" = None) -> int:
    """Run the command line ``args`` (default: the process's own, which may end here) and return the exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    # A file's name need not be text in the terminal's encoding; to say it in escapes is better than to fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    code = lean.run(arguments)
    if code is None:
        from imagefs_cli import group

        return group.run(arguments)
    if args is None:
        # All is said. What the interpreter does at its end takes a fifth of what it takes altogether.
        os._exit(code)
    return code
