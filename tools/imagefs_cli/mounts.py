"""What ``imagefs mount`` and ``imagefs umount`` do, however their command line was read: by click or by ``imagefs_cli.lean``.

On the way of every container start: imports what asks the daemon, and nothing that takes longer to load than that.
"""

from imagefs.daemon import mounting
from imagefs_cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from imagefs_cli.invocation import Invocation


def mount(invocation: "Invocation", ref: str, mountpoint: str, options: "dict[str, Any]") -> None:
    """Mount an image; ``options`` are those of ``declared.MOUNT``, by name."""
    settings = invocation.settings()
    result = mounting.mount(
        settings,
        ref=ref,
        mountpoint=mountpoint,
        mode=options["mode"],
        upper=mounting.absolute(options["upper"]) if options["upper"] else "",
        dev=options["dev"],
        suid=options["suid"],
        record=not options["no_record"],
        label=options["profile_label"],
        prefetch=not options["no_prefetch"],
        wait=options["wait"],
    )
    if invocation.wants_json:
        output.print_json(result)
        # One document is all there may be, whatever follows.
        invocation.wants_json = False
    elif (options["mode"] or settings["mode"]) == "auto":
        output.say(f"{result['mode']} mode: {result['reason']}")


def umount(invocation: "Invocation", mountpoint: str, options: "dict[str, Any]") -> None:
    """Unmount an image; ``options`` are those of ``declared.UMOUNT``, by name."""
    result = mounting.umount(invocation.settings(), mountpoint, lazy=options["lazy"])
    if invocation.wants_json:
        output.print_json(result)
