"""``imagefs mount``, ``umount`` and ``prefetch``, as click reads them. What the first two do is in ``imagefs_cli.mounts``."""

from typing import Any, Final

import click

from imagefs_cli import declared, mounts, output
from imagefs_cli.options import Invocation, command, complete_directory, complete_ref

WAIT: Final = "--wait-prefetch"


class _Mount(click.Command):
    """Takes ``--wait-prefetch`` with a value behind ``=`` and without one: what follows it otherwise is the image."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give it the value that it has without one."""
        return super().parse_args(ctx, [f"{WAIT}=1" if word == WAIT else word for word in args])


@command("mount", kind=_Mount, options=declared.MOUNT, short_help="Mount an image.")
@click.argument("ref", shell_complete=complete_ref)
@click.argument("mountpoint", shell_complete=complete_directory)
def mount_command(invocation: Invocation, ref: str, mountpoint: str, **options: Any) -> None:
    """Mount image REF at MOUNTPOINT, an empty directory; returns when it serves.

    REF is NAME[:TAG], NAME@DIGEST or a digest. Only the index is brought to the host; content comes when it is read, and what earlier
    starts have read comes by itself. A daemon is started if there is none.
    """
    mounts.mount(invocation, ref, mountpoint, options)
    if options["foreground"]:
        _stay(invocation, mountpoint)


def _stay(invocation: Invocation, mountpoint: str) -> None:
    """Wait until the mount is gone; on SIGINT or SIGTERM unmount it."""
    import signal

    from imagefs.daemon import client
    from imagefs.errors import ImageFSError

    config = invocation.config()
    place = client.absolute(mountpoint)
    wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    while True:
        if signal.sigtimedwait(wanted, 1.0) is not None:
            client.umount(config, place, lazy=False)
            return
        try:
            mounts = client.status(config, at=client.home(place))["mounts"]
        except ImageFSError:
            return
        if not any(mount["mountpoint"] == place for mount in mounts):
            return


@command("prefetch", short_help="Bring what an image's starts read to this host.")
@click.argument("ref", shell_complete=complete_ref)
@click.option("--wait", is_flag=True, help="Return when it is here, or no more of it comes.")
def prefetch_command(invocation: Invocation, ref: str, wait: bool) -> None:
    """Make this host warm for image REF, without mounting it: its index, and what its profile names, come to the SSD tier.

    The profile is what earlier starts have read, or those of an image that is much like it. A daemon is started if there is none, and ends
    when it is done.
    """
    from imagefs.daemon import client

    result = client.prefetch(invocation.config(), ref=ref, wait=wait)
    if invocation.wants_json:
        output.print_json(result)
    elif not wait:
        output.say(f"{ref}: the index is here, and what its profile names is coming")
    elif result["profile_bytes"]:
        output.say(f"{ref}: {result['prefetched']:.0%} of {output.size(result['profile_bytes'])} are here")
    else:
        output.say(f"{ref}: the index is here; there is no profile of it")


@command("umount", options=declared.UMOUNT, short_help="Unmount an image.")
@click.argument("mountpoint", shell_complete=complete_directory)
def umount_command(invocation: Invocation, mountpoint: str, **options: Any) -> None:
    """Unmount the image at MOUNTPOINT. A daemon that was started for a mount ends with its last one."""
    mounts.umount(invocation, mountpoint, options)
