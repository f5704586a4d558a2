"""Whether something can be mounted at a place, said in words that help."""

import errno
import os
from pathlib import Path

from imagefs.errors import AccessError, MountError
from imagefs.mount.mountinfo import is_image, mount_at


def canonical(mountpoint: str) -> Path:
    """Return the absolute path without links that a mountpoint has in ``/proc/self/mountinfo``. Follows links: may block.

    The last part is not looked at, so it works where a dead mount is.
    """
    if not mountpoint.startswith("/") or "\0" in mountpoint:
        raise MountError(f"not an absolute path: {mountpoint!r}")
    path = Path(os.path.normpath(mountpoint))
    return Path(os.path.realpath(path.parent)) / path.name if path.name else path


def check_mountpoint(path: Path) -> None:
    """Raise ``MountError`` unless ``path`` is an empty directory where nothing is mounted. Blocks if its file system does."""
    mounted = mount_at(path)
    if mounted is not None:
        if is_image(mounted):
            raise MountError(f"an image is already mounted at {path}", hint=f"imagefs umount {path}")
        raise MountError(f"something is already mounted at {path}: {mounted.source} ({mounted.fstype})")
    try:
        if path.is_symlink():
            raise MountError(f"the mountpoint {path} is a symbolic link", hint=f"name the directory itself: {os.path.realpath(path)}")
        with os.scandir(path) as entries:
            if next(entries, None) is not None:
                raise MountError(f"the mountpoint {path} is not empty", hint="what it holds would be hidden: choose an empty directory")
    except FileNotFoundError:
        raise MountError(f"the mountpoint {path} does not exist", hint=f"mkdir -p {path}") from None
    except NotADirectoryError:
        raise MountError(f"the mountpoint {path} is not a directory") from None
    except PermissionError:
        raise AccessError(f"this user may not read the mountpoint {path}") from None
    except OSError as error:
        hint = "a mount whose daemon has died is there: umount it" if error.errno == errno.ENOTCONN else None
        raise MountError(f"the mountpoint {path} cannot be used: {error.strerror}", hint=hint) from error
