"""A directory as a source: its entries in bytewise order, as one layer that needs no flattening but has the same shape.

Invariants: nothing of the host gets in but what an image keeps: no atime, ctime, inode or device numbers of regular files. Symbolic links
are kept and never followed. What is mounted below the directory is part of it, as ``tar`` and ``podman`` have it. A file that changes while
it is read is an error, because half of an old and half of a new file is neither.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from imagefs.convert.entry import Entry, Kind
from imagefs.convert.platforms import Target
from imagefs.convert.stream import LayerBlob
from imagefs.digest import Buffer
from imagefs.errors import AccessError, SourceError

_CHUNK: Final = 1024 * 1024
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Non-blocking, so that a FIFO that took a file's place is seen and not waited for."""

_HOST_LABELS: Final = frozenset({"security.selinux", "security.ima", "security.evm", "security.SMACK64"})
"""What a host's security modules wrote: its policy and its keys, nothing of the image."""

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIR,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


class DirSource:
    """A directory tree. It has the face of :class:`~imagefs.convert.oci.Source`, with entries in place of layers."""

    def __init__(self, root: Path, platform: Target) -> None:
        """``platform`` is what the image is said to be for."""
        try:
            if not root.is_dir():
                raise SourceError(f"{root} is not a directory" if root.exists() else f"there is no {root}")
        except PermissionError:
            raise AccessError(f"this user may not look for {root}") from None
        # A symbolic link there is what the user named; from here on none is followed.
        self._root = os.fsencode(root.resolve())
        self.platform = platform
        self.layers: list[LayerBlob] = []
        self.layer_count = 1
        self.annotations: dict[str, str] = {}
        self.config: dict[str, Any] = {
            "architecture": platform.architecture,
            "os": platform.os,
            "rootfs": {"type": "layers", "diff_ids": []},
        }
        if platform.variant:
            self.config["variant"] = platform.variant
        self.described = f"{root}: a directory, {platform}"
        self.notes: list[str] = []

    def layer_name(self, _index: int) -> str:
        """What people are told of the one layer that it is."""
        return "the directory"

    @property
    def total_bytes(self) -> int:
        """Unknown before the walk."""
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""

    def entries(self) -> Iterator[tuple[Entry, Iterator[Buffer]]]:
        """Yield each entry with an iterator over its stored bytes, directories before what is in them."""
        links: dict[tuple[int, int], bytes] = {}
        sockets = 0
        pending = [b""]
        while pending:
            path = pending.pop()
            full = os.path.join(self._root, path) if path else self._root  # noqa: PTH118 - names are bytes
            try:
                status = os.lstat(full)
                kind = _KINDS.get(stat.S_IFMT(status.st_mode))
                if kind is None:
                    sockets += 1
                    continue
                if kind is Kind.DIR:
                    names = sorted(os.listdir(full), reverse=True)  # noqa: PTH208
                    pending += [path + b"/" + name if path else name for name in names]
                entry = self._entry(full, path, kind, status)
            except OSError as error:
                raise _error(full, error) from error
            key = (status.st_dev, status.st_ino)
            if kind is not Kind.DIR and status.st_nlink > 1:
                first = links.setdefault(key, path)
                if first != path:
                    entry.kind, entry.link, entry.size = Kind.HARDLINK, first, 0
            yield entry, _pieces(full, status, entry.sparse) if entry.kind is Kind.FILE else iter(())
        if sockets:
            self.notes.append(f"{sockets} sockets were left out: they mean nothing in an image")

    def _entry(self, full: bytes, path: bytes, kind: Kind, status: os.stat_result) -> Entry:
        entry = Entry(path, kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
        if kind is Kind.FILE:
            entry.size = status.st_size
            if status.st_blocks * 512 < status.st_size:
                entry.sparse = _segments(full, status.st_size)
        elif kind is Kind.SYMLINK:
            entry.link = os.readlink(full)  # noqa: PTH115 - names are bytes
        elif kind in (Kind.CHAR, Kind.BLOCK):
            entry.rdev = status.st_rdev
        entry.xattrs = _xattrs(full)
        return entry


def _xattrs(full: bytes) -> dict[bytes, bytes] | None:
    try:
        names = os.listxattr(full, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.ENODATA):
            return None
        raise
    found = {}
    for name in names:
        if name not in _HOST_LABELS:
            found[os.fsencode(name)] = os.getxattr(full, name, follow_symlinks=False)
    return found or None


def _segments(full: bytes, size: int) -> list[tuple[int, int]] | None:
    """Return the data segments of a sparse file, or None if the file system does not tell."""
    descriptor = os.open(full, _OPEN)
    try:
        segments = []
        at = 0
        while at < size:
            try:
                start = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                return None
            at = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
            segments.append((start, at - start))
        return segments
    finally:
        os.close(descriptor)


def _pieces(full: bytes, status: os.stat_result, segments: list[tuple[int, int]] | None) -> Iterator[Buffer]:
    """Yield a file's stored bytes; checks before the first and after the last that it is the file that was looked at."""
    try:
        descriptor = os.open(full, _OPEN)
        try:
            for start, length in [(0, status.st_size)] if segments is None else segments:
                at, end = start, start + length
                while at < end:
                    data = os.pread(descriptor, min(_CHUNK, end - at), at)
                    if not data:
                        raise _changed(full)
                    yield data
                    at += len(data)
            now = os.fstat(descriptor)
            if (now.st_ino, now.st_size, now.st_mtime_ns) != (status.st_ino, status.st_size, status.st_mtime_ns):
                raise _changed(full)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _error(full, error) from error


def _changed(full: bytes) -> SourceError:
    return SourceError(f"{os.fsdecode(full)!r} changed while it was read", hint="convert a tree that nobody writes to")


def _error(full: bytes, error: OSError) -> SourceError | AccessError:
    name = os.fsdecode(full)
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessError(f"this user may not read {name!r}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return _changed(full)
    return SourceError(f"{name!r} cannot be read: {error.strerror}")
