"""The files of the SSD tier: blocking functions, run in threads; they own no state but the open descriptors that they are given.

``partial/`` holds sparse files that are being filled, ``objects/`` complete ones; ``ab/cdef…`` below each is the object's name in hex.

Invariants:

- a file gets its place in ``objects/`` after all of it was found to have the digest that is its name, and made durable: one ``syncfs`` for
  a batch, then the renames. What was put together from pieces is read back for that; a small one is written at once, and hashed before;
- a descriptor is closed when the last who uses it lets go of it, so an eviction never pulls a file from under a read.

Whole pages go past the page cache (``O_DIRECT``) where the file system can: what the tier serves is held by the page cache of the mount,
and should not be held twice; and it costs a tenth of the CPU time.
"""

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from imagefs.digest import Buffer, Hasher

OBJECTS: Final = "objects"
PARTIAL: Final = "partial"

_STEP: Final = 1 << 20
_PAGE: Final = 4096
_VECTOR: Final = 64
_libc: Final = ctypes.CDLL(None, use_errno=True)


class OpenFile:
    """A file's descriptor, and a second one past the page cache (-1: there is none). They close themselves."""

    __slots__ = ("descriptor", "direct")

    def __init__(self, path: str, flags: int) -> None:
        """Open ``path``. ``OSError``."""
        self.descriptor = self.direct = -1
        self.descriptor = os.open(path, flags, 0o600)
        with contextlib.suppress(OSError):
            self.direct = os.open(path, (flags & ~os.O_CREAT) | os.O_DIRECT)

    def __del__(self) -> None:
        for descriptor in (self.descriptor, self.direct):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def read_into(self, target: memoryview, offset: int) -> bool:
        """Fill ``target`` from ``offset`` on; False if the file ends before. ``OSError``."""
        done = 0
        size = len(target)
        while done < size:
            whole = (size - done) & -_PAGE if not (offset + done) % _PAGE else 0
            count = 0
            if whole and self.direct >= 0:
                try:
                    count = os.preadv(self.direct, [target[done : done + whole]], offset + done)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
            # Odd ends, and memory that lies as the file system does not like it.
            count = count or os.preadv(self.descriptor, [target[done:]], offset + done)
            if not count:
                return False
            done += count
        return True

    def write_from(self, views: list[memoryview], offset: int) -> None:
        """Write buffers back to back from ``offset`` on. ``OSError``."""
        while views:
            direct = self.direct >= 0 and not offset % _PAGE and not any(len(view) % _PAGE for view in views[:-1])
            batch = [*views[:-1], views[-1][: len(views[-1]) & -_PAGE]] if direct else views
            count = 0
            if direct and any(batch):
                try:
                    count = os.pwritev(self.direct, [view for view in batch if len(view)], offset)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
            count = count or os.pwritev(self.descriptor, views, offset)
            if not count:
                raise OSError(errno.EIO, "a write wrote nothing")
            offset += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]


class Piece(NamedTuple):
    """Bytes that are to be written at ``offset`` of a file."""

    offset: int
    data: Buffer


class Folders:
    """The two folders below ``root``."""

    def __init__(self, root: Path) -> None:
        """Make them where they are missing."""
        self._root = os.fspath(root)
        self._made: set[str] = set()
        # For ``syncfs``: any file of it will do.
        self._descriptor = -1
        for folder in (OBJECTS, PARTIAL):
            (root / folder).mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def path(self, name: bytes, *, complete: bool) -> str:
        """Return where a file is."""
        text = name.hex()
        return f"{self._root}/{OBJECTS if complete else PARTIAL}/{text[:2]}/{text[2:]}"

    def open(self, name: bytes, *, complete: bool) -> OpenFile | None:
        """Open a file that is there; None if it is not."""
        flags = os.O_RDONLY if complete else os.O_RDWR
        with contextlib.suppress(OSError):
            return OpenFile(self.path(name, complete=complete), flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        return None

    def create(self, name: bytes, size: int) -> OpenFile:
        """Open an incomplete file, new or not, with room for ``size`` bytes. ``OSError``."""
        path = self.path(name, complete=False)
        self._make_parent(path)
        file = OpenFile(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW)
        if os.fstat(file.descriptor).st_size != size:
            os.ftruncate(file.descriptor, size)
        return file

    def remove(self, name: bytes, *, complete: bool) -> None:
        """Unlink a file, if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(name, complete=complete))  # noqa: PTH108

    def write_small(self, name: bytes, data: Buffer) -> bool:
        """Write a whole file, to be sealed as it is; False if one of that name is there. ``OSError``."""
        path = self.path(name, complete=False)
        self._make_parent(path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444)
        except FileExistsError:
            return False
        try:
            count = os.write(descriptor, data)
        except OSError:
            self.remove(name, complete=False)
            raise
        finally:
            os.close(descriptor)
        if count != len(data):
            self.remove(name, complete=False)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return True

    def seal(self, files: Sequence[tuple[bytes, int, OpenFile]], small: Sequence[bytes] = ()) -> list[bytes]:
        """Verify complete files, given as (name, size, file), make them and those of ``small`` durable, and give them their places.

        Returns the names of those that do not have their digest, or are gone; they are removed. ``OSError`` if not all of that could be
        done: then it may be done again.
        """
        bad = [name for name, size, file in files if _digest(file, size) != name]
        good = [item for item in files if item[0] not in bad]
        if (good or small) and _libc.syncfs(self._descriptor):
            code = ctypes.get_errno() or errno.EIO
            raise OSError(code, os.strerror(code))
        for _, _, file in good:
            os.fchmod(file.descriptor, 0o444)
        bad += [name for name in (*(item[0] for item in good), *small) if not self._place(name)]
        for name in bad:
            self.remove(name, complete=False)
        return bad

    def _place(self, name: bytes) -> bool:
        """Give a file its place; False if it is gone: it may have been unlinked meanwhile, with an older one of its name."""
        target = self.path(name, complete=True)
        self._make_parent(target)
        try:
            os.rename(self.path(name, complete=False), target)  # noqa: PTH104
        except FileNotFoundError:
            return os.path.exists(target)  # noqa: PTH110
        return True

    def is_sound(self, name: bytes, size: int) -> bool:
        """Say whether a complete file has the digest that is its name."""
        file = self.open(name, complete=True)
        return file is not None and _digest(file, size) == name

    def _make_parent(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent not in self._made:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, 0o700)  # noqa: PTH102
            self._made.add(parent)

    def free(self) -> tuple[int, int]:
        """Return the file system's free bytes (those that this user may fill) and its size."""
        status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def write_pieces(file: OpenFile, pieces: Iterable[Piece]) -> None:
    """Write pieces to their places, neighbours together. ``OSError``."""
    start = end = -1
    views: list[memoryview] = []
    for offset, data in sorted(pieces, key=_offset):
        if offset != end or len(views) == _VECTOR:
            file.write_from(views, start)
            start = end = offset
            views = []
        views.append(memoryview(data).cast("B"))
        end += len(data)
    file.write_from(views, start)


def _offset(piece: Piece) -> int:
    return piece.offset


def _digest(file: OpenFile, size: int) -> bytes:
    """Return the digest of a file's bytes as they are read back; of nothing that could be a name if they cannot be."""
    hasher = Hasher()
    # A mapping: its memory begins with a page.
    buffer = memoryview(mmap.mmap(-1, _STEP, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    try:
        for offset in range(0, size, _STEP):
            view = buffer[: size - offset]
            if not file.read_into(view, offset):
                return b""
            hasher.update(view)
    except OSError:
        return b""
    return hasher.digest()
