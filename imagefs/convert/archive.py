"""Files of an image source, by name: those of a directory, or those inside a tar archive, which is indexed and never unpacked.

Invariants: a name is looked up, never followed: no symbolic link leads out of the directory, and a link inside an archive leads to another
member of it only. What is opened has a known size, and reads past the archive's end are an error and not an empty result.
"""

import os
import posixpath
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from imagefs.convert.stream import Blob
from imagefs.errors import AccessError, LimitError, SourceError

_MEMBERS_MAX: Final = 100_000
_LINKS_MAX: Final = 8


class Files(Protocol):
    """A source's files."""

    def size(self, name: str) -> int | None:
        """Return a regular file's size in bytes, or None if there is none of that name."""

    def open(self, name: str) -> Blob:
        """Open a regular file. ``SourceError`` if there is none."""

    def close(self) -> None:
        """Release descriptors."""


class DirectoryFiles:
    """The files below a directory."""

    def __init__(self, root: Path) -> None:
        """``root`` is an OCI layout."""
        self._root = root

    def size(self, name: str) -> int | None:
        """See :class:`Files`."""
        try:
            status = os.stat(self._root / name, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise AccessError(f"this user may not read {self._root / name}") from None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, name: str) -> Blob:
        """See :class:`Files`."""
        try:
            return os.fdopen(os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
        except PermissionError:
            raise AccessError(f"this user may not read {self._root / name}") from None
        except OSError as error:
            raise SourceError(f"{self._root / name} cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(slots=True)
class _Slice:
    """A run of bytes of an open file, read with ``pread``: many may be open at once."""

    descriptor: int
    position: int
    end: int
    name: str

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; an archive that ends within the run is an error."""
        size = min(size, self.end - self.position)
        data = os.pread(self.descriptor, size, self.position) if size > 0 else b""
        if size > 0 and not data:
            raise SourceError(f"the archive ends within {self.name}", hint="it is cut off: make or fetch it again")
        self.position += len(data)
        return data

    def close(self) -> None:
        """The archive stays open for the others."""


class ArchiveFiles:
    """The members of a tar archive."""

    def __init__(self, path: Path) -> None:
        """Index the archive: headers are read, contents are skipped."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            raise AccessError(f"this user may not read {path}") from None
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        self._members: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            self._index(path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _index(self, path: Path) -> None:
        length = os.fstat(self._descriptor).st_size
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file, tarfile.open(fileobj=file, mode="r:", errorlevel=2) as archive:
                for count, member in enumerate(archive):
                    if count >= _MEMBERS_MAX:
                        raise LimitError(f"{path} has more than {_MEMBERS_MAX} members: no image archive has that many")
                    name = posixpath.normpath(member.name.lstrip("/"))
                    if member.isreg():
                        if member.offset_data + member.size > length or member.sparse is not None:
                            raise SourceError(f"{path} ends within {name}", hint="it is cut off: make or fetch it again")
                        self._members[name] = (member.offset_data, member.size)
                    elif member.issym():
                        self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                    elif member.islnk():
                        self._links[name] = posixpath.normpath(member.linkname.lstrip("/"))
        except tarfile.TarError as error:
            raise SourceError(f"{path} is not a whole tar archive: {error}", hint=_compressed_hint(self._descriptor)) from error
        except (ValueError, OverflowError, OSError, EOFError, RecursionError) as error:
            raise SourceError(f"{path} is a damaged tar archive: {error}") from error

    def _find(self, name: str) -> tuple[int, int] | None:
        for _ in range(_LINKS_MAX):
            if name in self._members:
                return self._members[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None

    def size(self, name: str) -> int | None:
        """See :class:`Files`."""
        found = self._find(name)
        return found and found[1]

    def open(self, name: str) -> Blob:
        """See :class:`Files`."""
        found = self._find(name)
        if found is None:
            raise SourceError(f"the archive has no {name}")
        return _Slice(self._descriptor, found[0], found[0] + found[1], name)

    def close(self) -> None:
        """Close the archive."""
        os.close(self._descriptor)


def _compressed_hint(descriptor: int) -> str | None:
    head = os.pread(descriptor, 6, 0)
    for magic, tool in ((b"\x1f\x8b", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"\xfd7zXZ", "unxz"), (b"BZh", "bunzip2")):
        if head.startswith(magic):
            return f"the archive itself is compressed: {tool} it first (its layers may be compressed as they are)"
    return None
