"""Taking away what is mounted for a daemon that does not serve it any more: one that was killed, or one that is ending.

The caller holds the instance's lock, so whatever is found is nobody's but the caller's, or has asked all daemons and none has it. What
still uses a mount keeps it until it is done, and gets errors.
"""

import errno
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from imagefs.errors import AccessError, MountError
from imagefs.mount.bind import unmount
from imagefs.mount.fusemount import is_fuse_mount, release_mount
from imagefs.mount.mountinfo import FUSE_TYPE, is_image, mount_at, read_mounts

_ANSWER_SECONDS: Final = 5.0


def detach_all(fuse: Path, trees: Path, recorded: Iterable[str]) -> list[str]:
    """Detach the FUSE mount at ``fuse``, everything else that shows its file system, what is below ``trees``, and what was ``recorded``.

    Touches no mountpoint, as all of them may be dead. Returns them; those that would not go are left, and found again next time.
    """
    entries = read_mounts()
    dead = mount_at(fuse, entries)
    known = set(recorded)
    gone = []
    for entry in reversed(entries):
        same = dead is not None and entry.device == dead.device and dead.fstype == FUSE_TYPE
        recorded_one = is_image(entry) and entry.mountpoint in known
        if (entry.fstype == FUSE_TYPE and same) or recorded_one or Path(entry.mountpoint).is_relative_to(trees):
            with suppress(MountError, AccessError):
                unmount(Path(entry.mountpoint), lazy=True)
                gone.append(entry.mountpoint)
    return gone


def detach_single(point: Path) -> list[str]:
    """Detach the FUSE mount at ``point``, which a daemon without root has made. Returns the mountpoints."""
    return [str(point)] if is_fuse_mount(point) and not release_mount(point, lazy=True) else []


def detach_dead(place: str) -> bool:
    """Detach what a killed daemon left at ``place``: nobody else will, and every access to it fails. False if there is no such mount."""
    entry = mount_at(place)
    if entry is None or not is_image(entry):
        return False
    if entry.fstype == FUSE_TYPE and not _is_dead(place):
        return False
    # In kernel mode what is on this host is read without a daemon; no daemon knows of it, so it is a dead one's.
    unmount(Path(place), lazy=True)
    return True


def _is_dead(place: str) -> bool:
    """Say whether the kernel answers for a dead daemon, which it does at once; not to a stat, whose answer it has kept.

    A daemon of another runtime directory may be alive there and not answer: whoever opens it then is not seen again.
    """
    dead: list[bool] = []

    def look() -> None:
        try:
            os.close(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            dead.append(error.errno in {errno.ENOTCONN, errno.ECONNABORTED})

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_ANSWER_SECONDS)
    return dead == [True]
