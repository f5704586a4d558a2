"""The files of the SSD tier: blocking functions, run in threads; they own no state but the open descriptors that they are given.

``partial/`` holds sparse files that are being filled, ``objects/`` complete ones; ``ab/cdef…`` below each is the object's name in hex. A
complete file that must be verified before the kernel may have it lies elsewhere (``disk_suspects``), and is found here like the others.

Invariants:

- a file gets its place in ``objects/`` after all of it was found to have the digest that is its name, and made durable: one ``syncfs`` for
  a batch, then the renames. What was put together from pieces is read back for that; a small one is written at once, and hashed before;
- what has its place gets fs-verity where the file system has it, once nobody has it open for writing: the kernel answers ``EIO`` then in
  place of a wrong byte. That it cannot be had is no error;
- a descriptor is closed when the last who uses it lets go of it, so an eviction never pulls a file from under a read.

Whole pages go past the page cache (``O_DIRECT``) where the file system can: what the tier serves is held by the page cache of the mount,
and should not be held twice; and it costs a tenth of the CPU time.
"""

import contextlib
import errno
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from imagefs.cache.disk_suspects import Suspects
from imagefs.digest import Buffer, Hasher
from imagefs.syscalls import enable_verity, syncfs

OBJECTS: Final = "objects"
PARTIAL: Final = "partial"

_STEP: Final = 1 << 20
_PAGE: Final = 4096
_VECTOR: Final = 64
_NO_VERITY: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS})
"""What the kernel answers where no file of a file system can have it, or none of this user's."""


_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


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
    """The two folders below ``root``, and what lies in ``suspects``. ``has_verity``: the file system may have fs-verity."""

    def __init__(self, root: Path) -> None:
        """Make them where they are missing."""
        self._root = os.fspath(root)
        self._made: set[str] = set()
        # For ``syncfs``: any file of it will do.
        self._descriptor = -1
        self.has_verity = True  # as far as is known
        for folder in (OBJECTS, PARTIAL):
            (root / folder).mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.suspects = Suspects(root)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def path(self, name: bytes, *, complete: bool) -> str:
        """Return where a file is."""
        text = name.hex()
        return f"{self._root}/{OBJECTS if complete else PARTIAL}/{text[:2]}/{text[2:]}"

    def open(self, name: bytes, *, complete: bool) -> OpenFile | None:
        """Open a file that is there; None if it is not."""
        with contextlib.suppress(OSError):
            return self.open_complete(name) if complete else OpenFile(self.path(name, complete=False), _OPEN | os.O_RDWR)
        return None

    def open_complete(self, name: bytes, *, ask: bool = True) -> OpenFile:
        """Open a complete file; ``ask``: a reader waits, so a suspect is verified soon. ``OSError``."""
        path = self.path(name, complete=True)
        try:
            return OpenFile(path, _OPEN)
        except FileNotFoundError:
            suspect = self.suspects.path(name)
        if suspect is not None:
            if ask:
                self.suspects.ask(name)
            with contextlib.suppress(FileNotFoundError):
                return OpenFile(suspect, _OPEN)
        # It may have got its place meanwhile.
        return OpenFile(path, _OPEN)

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
        if complete:
            self.suspects.remove(name)
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
        if good or small:
            syncfs(self._descriptor)
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

    def clear(self, name: bytes) -> bool:
        """Give a suspect, which was verified, its place again; False if it is none any more. ``OSError``."""
        path, target = self.suspects.path(name), self.path(name, complete=True)
        if path is None:
            return False
        if os.path.exists(target):  # noqa: PTH110
            self.suspects.remove(name)
            return False
        self._make_parent(target)
        try:
            os.rename(path, target)  # noqa: PTH104
        except FileNotFoundError:
            return False
        self.protect(name)
        return True

    def protect(self, name: bytes) -> None:
        """Enable fs-verity on a file that has its place, where that can be had. It stays without if somebody has it open for writing."""
        if not self.has_verity:
            return
        try:
            descriptor = os.open(self.path(name, complete=True), _OPEN)
            try:
                enable_verity(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.has_verity = error.errno not in _NO_VERITY

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


class Readback:
    """Hashes a file's bytes as they are read back from the disk, some at a time."""

    def __init__(self, file: OpenFile, size: int) -> None:
        """``size`` is the file's."""
        self._file = file
        self._size = size
        self._offset = 0
        self._hasher = Hasher()
        # A mapping: its memory begins with a page.
        self._buffer = memoryview(mmap.mmap(-1, min(max(size, 1), _STEP), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def go_on(self, most: int) -> bool:
        """Read about ``most`` bytes more; True when that was the last. ``OSError`` if they cannot be read, or are not there."""
        until = min(self._size, self._offset + most)
        while self._offset < until:
            view = self._buffer[: self._size - self._offset]
            if not self._file.read_into(view, self._offset):
                raise OSError(errno.EIO, "the file is cut short")
            self._hasher.update(view)
            self._offset += len(view)
        return self._offset >= self._size

    def digest(self) -> bytes:
        """Return the digest of what was read."""
        return self._hasher.digest()


def _digest(file: OpenFile, size: int) -> bytes:
    """Return the digest of a file's bytes as they are read back; of nothing that could be a name if they cannot be."""
    readback = Readback(file, size)
    try:
        readback.go_on(size)
    except OSError:
        return b""
    return readback.digest()
