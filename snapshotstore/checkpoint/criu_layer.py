"""A copy of a writable layer, as it is now: whoever calls this sees to it that nobody writes to it.

Promises: the copy shows the same as the layer does when it lies between others: whiteouts, opaque directories and redirections are as
overlayfs has them, and names, links, owners, modes, times, holes and attributes are those of the layer. What overlayfs notes for itself
alone (``trusted.overlay.origin`` and its like) is left out: it is of the layer's place on this host. A file of which the layer has the
metadata only (``metacopy``: something changed its mode) is copied whole: without that attribute it would be one of zeros.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

_OVERLAY: Final = "trusted.overlay."
_METACOPY: Final = "trusted.overlay.metacopy"
_MEANT: Final = {"opaque", "redirect", "whiteout", "whiteouts"}
_CHUNK: Final = 64 << 20
_FALLBACK: Final = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def copy_layer(source: Path, target: Path, whole: Path, check: Callable[[], object]) -> None:
    """Copy the directory ``source`` to ``target``, which is not there. ``OSError``.

    ``whole`` shows what the layer and all below it make together. ``check`` is called often, and may raise.
    """
    _Copy(source, whole, check).folder(source, target)


class _Copy:
    def __init__(self, source: Path, whole: Path, check: Callable[[], object]) -> None:
        self._source = source
        self._whole = whole
        self._check = check
        self._linked: dict[tuple[int, int], Path] = {}

    def folder(self, source: Path, target: Path) -> None:
        target.mkdir(mode=0o700)
        pending = [(source, target)]
        made = []
        while pending:
            old, new = pending.pop()
            made.append((old, new))
            with os.scandir(old) as entries:
                for entry in entries:
                    self._check()
                    below = new / entry.name
                    if entry.is_dir(follow_symlinks=False):
                        below.mkdir(mode=0o700)
                        pending.append((Path(entry.path), below))
                    else:
                        self._entry(Path(entry.path), below)
        for old, new in reversed(made):  # Their times, when nothing is made in them any more.
            _attributes(old, new, old.lstat())

    def _entry(self, old: Path, new: Path) -> None:
        found = old.lstat()
        known = self._linked.get((found.st_dev, found.st_ino))
        if known is not None:
            os.link(known, new, follow_symlinks=False)
            return
        if found.st_nlink > 1:
            self._linked[found.st_dev, found.st_ino] = new
        if stat.S_ISLNK(found.st_mode):
            new.symlink_to(old.readlink())
        elif stat.S_ISREG(found.st_mode):
            has_content = _METACOPY not in os.listxattr(old)
            self._content(old if has_content else self._whole / old.relative_to(self._source), new, found.st_size)
        else:
            os.mknod(new, found.st_mode, found.st_rdev)
        _attributes(old, new, found)

    def _content(self, old: Path, new: Path, size: int) -> None:
        reading = os.open(old, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            writing = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(writing, size)
                position = 0
                while (position := _data(reading, position)) < size:
                    end = min(os.lseek(reading, position, os.SEEK_HOLE), size)
                    while position < end:
                        self._check()
                        position += _copy_range(reading, writing, position, min(end - position, _CHUNK))
            finally:
                os.close(writing)
        finally:
            os.close(reading)


def _data(descriptor: int, position: int) -> int:
    """Return where the next bytes are that are no hole; past any file's end if there are none."""
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return 1 << 63


def _copy_range(reading: int, writing: int, position: int, length: int) -> int:
    try:
        copied = os.copy_file_range(reading, writing, length, position, position)
    except OSError as error:
        if error.errno not in _FALLBACK:
            raise
        copied = os.pwrite(writing, os.pread(reading, min(length, 1 << 20), position), position)
    if not copied:
        raise OSError(errno.EIO, "a file became shorter while it was copied")
    return copied


def _attributes(old: Path, new: Path, found: os.stat_result) -> None:
    os.chown(new, found.st_uid, found.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        new.chmod(stat.S_IMODE(found.st_mode))
    names = os.listxattr(old, follow_symlinks=False)
    for name in names:
        if _METACOPY in names and name.startswith(_OVERLAY):
            continue  # It says where the content is, which is in the copy.
        if not name.startswith(_OVERLAY) or name[len(_OVERLAY) :] in _MEANT or name.startswith(_OVERLAY + "overlay."):
            os.setxattr(new, name, os.getxattr(old, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)
