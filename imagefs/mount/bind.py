"""Bind mounts: made read-only and taken away, with the kernel's calls, without ``mount(8)`` and its rules.

Each of these blocks while the file system behind it does: call them from a thread when that file system is this process.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from imagefs import syscalls
from imagefs.errors import AccessError, MountError

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


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
    with _errors(f"cannot unmount {target}"):
        syscalls.umount(target, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))


def _mount(source: Path | None, target: Path, flags: int) -> None:
    with _errors(f"cannot mount at {target}"):
        syscalls.mount(source, target, flags)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{what}: {error.strerror}"
        if error.errno == errno.EBUSY:
            raise BusyError(message) from error
        if error.errno in (errno.EPERM, errno.EACCES):
            raise AccessError(message, hint="mounting takes root in this mount namespace (CAP_SYS_ADMIN)") from error
        raise MountError(message) from error
