"""The mount calls: ``mount(2)`` and ``umount2(2)``, without ``mount(8)`` and its rules.

Each of these blocks while the file system behind it does: call them from a thread when that file system is this process.
"""

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from imagefs.errors import AccessError, MountError

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

_libc: Final = ctypes.CDLL(None, use_errno=True)


class BusyError(MountError):
    """Somebody still uses what was to be unmounted."""


def bind_readonly(source: Path, target: Path) -> None:
    """Show ``source`` at ``target``, read-only, without devices and set-user-id. Nothing stays mounted if that fails: ``MountError``."""
    _mount(source, target, _MS_BIND)
    try:
        # The kernel ignores the flags of the call that makes a bind mount; they take a second one.
        _mount(None, target, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    except BaseException:
        unmount(target, lazy=True)
        raise


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount; ``lazy`` takes it out of sight at once and lets those who use it finish.

    ``BusyError`` if it is in use; ``MountError`` otherwise.
    """
    if _libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)):
        _raise(f"cannot unmount {target}")


def _mount(source: Path | None, target: Path, flags: int) -> None:
    if _libc.mount(os.fsencode(source) if source else None, os.fsencode(target), None, ctypes.c_ulong(flags), None):
        _raise(f"cannot mount at {target}")


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    message = f"{what}: {os.strerror(number)}"
    if number == errno.EBUSY:
        raise BusyError(message)
    if number in (errno.EPERM, errno.EACCES):
        raise AccessError(message, hint="mounting takes root in this mount namespace (CAP_SYS_ADMIN)")
    raise MountError(message)
