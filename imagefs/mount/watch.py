"""Who opens which file of an image that is mounted in kernel mode, although nobody asks the daemon: the kernel tells, by fanotify.

Its directories are watched, each for what is opened in it: so opens through bind mounts, other namespaces and overlays on top are seen, and
those that precede a mapping or run a program. An event is a process and a file handle, out of which the inode number on the tree is read:
for that no file is opened, nothing is pinned but the directories, nothing waits. What is told is told late, in the order in which it
happened; of events that are the same and not yet read the kernel makes one. Its queue is bounded: what it cannot hold is counted as lost.

To watch the file system as a whole would be one call, but wants one that opens files by handle (``nfs_export``), and that must not be: what
is opened so, and from then on by its name too, reads as the hole that the tree has in place of content (``docs/design/kernel-mode.md``).

It wants Linux 6.8 or newer, and the rights of who mounted the image. Calls block for no longer than the kernel takes. What does not live
here: which directories there are, and which object an inode number is.
"""

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from imagefs import syscalls
from imagefs.errors import UnsupportedError
from imagefs.mount.fscontext import explained

_INIT: Final = 0x1 | 0x2 | 0x20 | 0x200  # FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_MARKS, FAN_REPORT_FID; FAN_CLASS_NOTIF is 0
_ADD: Final = 0x1 | 0x4 | 0x8  # FAN_MARK_ADD, FAN_MARK_DONT_FOLLOW, FAN_MARK_ONLYDIR
_OPEN: Final = 0x20 | 0x0800_0000  # FAN_OPEN, FAN_EVENT_ON_CHILD
_OVERFLOW: Final = 0x4000

_EVENT: Final = struct.Struct("=IBBHQii")
_VERSION: Final = 3
_HANDLE: Final = struct.Struct("=BBHQIi")  # the record's type, -, its length; the file system; the handle's length and type
_RECORD_FID: Final = 1
_OVERLAY: Final = 0xF8  # OVL_FILEID_V1
_LAYER: Final = struct.Struct("=3xBBBBB16s")  # version, magic number, length, flags, type of the layer's handle; the layer's UUID
_UPPER: Final = 4  # OVL_FH_FLAG_PATH_UPPER
_MAGIC: Final = 0xFB
_INODE: Final = struct.Struct("=II")  # the inode number's high and low half, as EROFS has them first
_READ: Final = 64 * 1024

_HINTS: Final = "opens of content that is on this host can be seen from Linux 6.8 on"
_NOT_THERE: Final = frozenset({errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EXDEV})


class Opened(NamedTuple):
    """A process has opened a file, whose inode number on the tree is ``nid``. A process that cannot be seen from here is 0."""

    pid: int
    nid: int


class Watch:
    """The opens of one mount, from when it is made until it is closed."""

    def __init__(self, target: Path) -> None:
        """Watch the root of the image at ``target``. ``UnsupportedError`` if it cannot be watched; ``AccessError``, ``MountError``."""
        self.lost = 0
        self.stopping = False
        """Set, it has :meth:`add` return."""
        self._target = target
        self._descriptor = -1
        with explained(f"cannot watch {target}"):
            try:
                self._descriptor = syscalls.fanotify_init(_INIT)
                self.add([b"."])
            except OSError as error:
                self.close()
                if error.errno in _NOT_THERE:
                    raise UnsupportedError(f"this kernel does not tell of opens at {target}: {error.strerror}", hint=_HINTS) from error
                raise

    def add(self, folders: Iterable[bytes]) -> int:
        """Watch directories of the image too, by their paths below its root; return how many. ``OSError``.

        For a thread: 2,500 of them take 20 to 60 ms. It must have returned before this is closed.
        """
        count = 0
        # What others mount inside of it is not the image's.
        root = syscalls.open_tree_clone(self._target)
        try:
            for folder in folders:
                if self.stopping:
                    break
                with suppress(FileNotFoundError, NotADirectoryError):
                    syscalls.fanotify_mark(self._descriptor, _ADD, _OPEN, root, folder)
                    count += 1
        finally:
            os.close(root)
        return count

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is something to take."""
        return self._descriptor

    def close(self) -> None:
        """Watch no longer. Twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def take(self) -> list[bytes]:
        """Return what has happened since this was asked last, for :func:`opens`. It does not wait, and is cheap."""
        taken: list[bytes] = []
        with suppress(BlockingIOError):
            while self._descriptor >= 0:
                taken.append(os.read(self._descriptor, _READ))
        return taken

    def opens(self, taken: bytes) -> Iterator[Opened]:
        """Yield what was taken; what is not an open of a file of the tree is passed over, and what the kernel has lost is counted."""
        at = 0
        while at + _EVENT.size <= len(taken):
            length, version, _, head, mask, _, pid = _EVENT.unpack_from(taken, at)
            if version != _VERSION or length < _EVENT.size:
                return
            if mask & _OVERFLOW:
                self.lost += 1
            elif (nid := _nid(taken[at + head : at + length])) is not None:
                yield Opened(pid, nid)
            at += length


def _nid(record: bytes) -> int | None:
    """Return the inode number on the tree that the one record of an event has."""
    if len(record) < _HANDLE.size + _LAYER.size + _INODE.size:
        return None
    kind, _, _, _, _, handle = _HANDLE.unpack_from(record)
    _, magic, _, flags, _, _ = _LAYER.unpack_from(record, _HANDLE.size)
    if kind != _RECORD_FID or handle != _OVERLAY or magic != _MAGIC or flags & _UPPER:
        return None
    high, low = _INODE.unpack_from(record, _HANDLE.size + _LAYER.size)
    return int(high) << 32 | int(low)
