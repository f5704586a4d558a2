"""``imagefs mount`` and ``imagefs umount``. On the way of every container start: imports the client and nothing heavier."""

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_directory, complete_ref


@command("mount", short_help="Mount an image.")
@click.argument("ref", shell_complete=complete_ref)
@click.argument("mountpoint", shell_complete=complete_directory)
@click.option("--mode", type=click.Choice(["auto", "kernel", "fuse"]), help="How it is served; auto: kernel mode where that works.")
@click.option("--upper", metavar="DIR", shell_complete=complete_directory, help="A writable layer, in an empty directory (kernel mode).")
@click.option("--dev", is_flag=True, help="Let the image's devices work (kernel mode).")
@click.option("--suid", is_flag=True, help="Let set-user-id programs of the image work (kernel mode).")
@click.option("--foreground", is_flag=True, help="Stay until it is unmounted or interrupted, and unmount then.")
@click.option("--no-prefetch", is_flag=True, help="Fetch nothing before it is read.")
@click.option("--no-record", is_flag=True, help="Do not record what is read.")
def mount_command(
    invocation: Invocation, ref: str, mountpoint: str, *, mode: str | None, upper: str | None, foreground: bool, **options: bool
) -> None:
    """Mount image REF at MOUNTPOINT, an empty directory; returns when it serves.

    REF is NAME[:TAG], NAME@DIGEST or a digest. Only the index is brought to the host; content comes when it is read. A daemon is started
    if there is none.
    """
    from imagefs.daemon import client

    # --no-prefetch and --no-record: this version does neither.
    config = invocation.config()
    place = client.absolute(upper) if upper else ""
    result = client.mount(config, ref=ref, mountpoint=mountpoint, mode=mode, upper=place, dev=options["dev"], suid=options["suid"])
    if (mode or config.mode) == "auto" and not invocation.wants_json:
        output.say(f"{result['mode']} mode: {result['reason']}")
    if invocation.wants_json:
        output.print_json(result)
        # One document is all there may be, whatever follows.
        invocation.wants_json = False
    if foreground:
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


@command("umount", short_help="Unmount an image.")
@click.argument("mountpoint", shell_complete=complete_directory)
@click.option("--lazy", is_flag=True, help="Detach it now, and let go when the last user is gone.")
def umount_command(invocation: Invocation, mountpoint: str, lazy: bool) -> None:
    """Unmount the image at MOUNTPOINT. A daemon that was started for a mount ends with its last one."""
    from imagefs.daemon import client

    result = client.umount(invocation.config(), mountpoint, lazy=lazy)
    if invocation.wants_json:
        output.print_json(result)
