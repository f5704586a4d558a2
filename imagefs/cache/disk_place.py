"""The directory of the SSD tier: is it ours, may it be used, and are we the one daemon that uses it.

``imagefs-cache.json`` says that a directory is a cache and of which format. A cache of another format is set aside in ``aside/`` and
never read; ``imagefs cache clear`` removes it.
"""

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from imagefs.errors import AccessError, DaemonError, ImageFSError, StoreFullError, UsageError

CACHE_FORMAT: Final = 2
MARKER: Final = "imagefs-cache.json"
ASIDE: Final = "aside"
_LOCK: Final = "lock"
_INDEX: Final = "index"
_WITHOUT_TIER: Final = ("starts", "profiles")
"""What a daemon that has no SSD tier keeps in the directory all the same."""

_CONTENTS: Final = ("objects", "suspect", "frames", "partial", "lmdb", "names")
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "ceph", "glusterfs"})
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_SIZE_MIN: Final = 8 << 20
"""Bytes of a file system on which a few frames find room beside the index."""

_CHECK: Final = "check --cache and IMAGEFS_CACHE"


class _Marker(msgspec.Struct):
    format: int


class CachePlace:
    """A cache directory that this process has locked. ``warnings`` says what follows from where it is; ``set_aside`` if an old one was."""

    def __init__(self, root: Path) -> None:
        """Check, lock and mark ``root``, making it where it is missing.

        ``AccessError`` if it cannot be used or is not this user's alone, ``UsageError`` if it is something else, ``DaemonError`` if another
        process uses it: the message names its pid.
        """
        self.root = root
        self.set_aside = False
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _unusable(root, error) from error
        self.warnings = look_at(root)
        self._descriptor = self._lock()
        try:
            self._mark()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others use it."""
        os.close(self._descriptor)

    def _lock(self) -> int:
        path = self.root / _LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unusable(self.root, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise DaemonError(
                f"the cache directory {self.root} is in use by process {holder or '(unknown)'}",
                hint="one daemon a cache directory: stop that one, or use another --cache",
            ) from None
        # On a full disk nobody is told our pid; the lock holds all the same.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def _mark(self) -> None:
        path = self.root / MARKER
        with contextlib.suppress(FileNotFoundError):
            try:
                if msgspec.json.decode(path.read_bytes(), type=_Marker).format == CACHE_FORMAT:
                    return
            except (msgspec.MsgspecError, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
            self._put_aside()
        try:
            path.write_bytes(msgspec.json.encode({"format": CACHE_FORMAT}) + b"\n")
        except OSError as error:
            raise _unusable(self.root, error) from error

    def _put_aside(self) -> None:
        aside = self.root / ASIDE
        aside.mkdir(exist_ok=True)
        number = 0
        while (aside / str(number)).exists():
            number += 1
        target = aside / str(number)
        target.mkdir()
        for name in (*_CONTENTS, MARKER):
            with contextlib.suppress(FileNotFoundError):
                (self.root / name).rename(target / name)
        self.set_aside = True


def look_at(root: Path) -> list[str]:
    """Return what follows from where the directory ``root`` is. Raises what :class:`CachePlace` does if it must not be used.

    Changes nothing.
    """
    try:
        status = root.stat()
        names = {path.name for path in root.iterdir()}
        size = shutil.disk_usage(root).total
    except OSError as error:
        raise _unusable(root, error) from error
    if status.st_uid != os.geteuid():
        raise AccessError(f"the cache directory {root} belongs to another user ({_name_of(status.st_uid)})", hint="use another --cache")
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise AccessError(f"the cache directory {root} can be written by others", hint=f"chmod go-w {root}")
    if MARKER not in names and names - {_INDEX, _LOCK, *_WITHOUT_TIER, "lost+found"}:
        raise UsageError(f"{root} is not a cache: it has other files and no {MARKER}", hint="a new cache wants an empty directory")
    return [*_about_kind(root, file_system_of(root)), *_about_size(root, size)]


def _about_kind(root: Path, kind: str) -> Iterator[str]:
    if kind in _MEMORY:
        yield f"{root} is on {kind}: the SSD tier takes memory there, and is gone after a reboot"
    elif kind.partition(".")[0] in _REMOTE:
        yield f"{root} is on {kind}: every read of the SSD tier goes over the network, and hangs when that does"


def _about_size(root: Path, size: int) -> Iterator[str]:
    if size < _SIZE_MIN:
        yield f"{root} is on a file system of {size >> 10} KiB: the SSD tier keeps next to nothing there, and the rest comes from the store"


def _name_of(user: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(user).pw_name
    return str(user)


def _unusable(root: Path, error: OSError) -> ImageFSError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFullError(f"the cache directory {root} has no room", hint="free some space, or use another --cache")
    if error.errno in {errno.EEXIST, errno.ENOTDIR}:
        return UsageError(f"the cache {root} is not a directory", hint=_CHECK)
    return AccessError(f"cannot use the cache directory {root}: {error.strerror}", hint=_CHECK)


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds ``path``, ``""`` if it cannot be told."""
    with contextlib.suppress(OSError):
        device = path.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return ""
