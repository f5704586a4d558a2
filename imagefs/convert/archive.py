"""Files of an image source, by name: those of a directory, or those inside a tar archive, which is indexed and never unpacked.

Invariants: a name is looked up, never followed: no symbolic link leads out of the directory, and a link inside an archive leads to another
member of it only. What is opened has a known size, and reads past the archive's end are an error and not an empty result.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Protocol

from imagefs.convert.pax import decimal, parse_records
from imagefs.convert.stream import Blob
from imagefs.convert.tar_header import BLOCK, HEADER, ZERO_BLOCK, checksum_fits, number, prefix_of, text
from imagefs.errors import AccessError, LimitError, SourceError, UnsupportedError

_MEMBERS_MAX: Final = 100_000
_LINKS_MAX: Final = 8

_NAME_MAX: Final = 1024
"""Longest name that is kept, in bytes. Nothing in an image archive has a longer one, so such a member is not missed."""

_EXTENSION_MAX: Final = 1 << 20
_EXTENSIONS_MAX: Final = 64 << 20
_FILE: Final = (b"0", b"\0", b"7")
_HARDLINK: Final = b"1"
_SYMLINK: Final = b"2"
_LONG_NAME: Final = b"L"
_LONG_LINK: Final = b"K"
_PAX: Final = b"x"
_PAX_GLOBAL: Final = b"g"
_SPARSE: Final = b"S"


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
            status = (self._root / name).lstat()
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


@dataclass(frozen=True, slots=True)
class _Member:
    """``[offset, offset + size)`` of the archive; or a link to the member that ``link`` names."""

    offset: int
    size: int
    link: str | None = None


class ArchiveFiles:
    """The members of a tar archive. ``SourceError`` for what is no whole tar file, ``LimitError`` for too many members."""

    def __init__(self, path: Path) -> None:
        """Index the archive: headers are read, contents are skipped."""
        self._path = path
        try:
            # Non-blocking, so that a FIFO is refused and not waited for.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError:
            raise AccessError(f"this user may not read {path}") from None
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        try:
            self._members = _Scan(self._descriptor, path).members()
        except OSError as error:
            os.close(self._descriptor)
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        except BaseException:
            os.close(self._descriptor)
            raise

    def _find(self, name: str) -> _Member | None:
        at: str | None = _clean(name)
        for _ in range(_LINKS_MAX):
            member = None if at is None else self._members.get(at)
            if member is None or member.link is None:
                return member
            at = _clean(member.link)
        return None

    def size(self, name: str) -> int | None:
        """See :class:`Files`."""
        found = self._find(name)
        return None if found is None else found.size

    def open(self, name: str) -> Blob:
        """See :class:`Files`."""
        found = self._find(name)
        if found is None:
            raise SourceError(f"the archive has no {name}")
        return _Slice(self._descriptor, found.offset, found.offset + found.size, name)

    def close(self) -> None:
        """Close the archive."""
        os.close(self._descriptor)


def _clean(name: str) -> str | None:
    """Return a name with ``.`` and ``..`` parts resolved; None if it leads out of the archive."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


class _Scan:
    """One pass over the headers of an archive. ``tarfile`` reads extended headers whole, whatever size they claim."""

    def __init__(self, fd: int, path: Path) -> None:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(f"{path} is not a regular file")
        self._fd = fd
        self._end = found.st_size
        self._path = path
        self._at = 0
        self._extended = 0

    def members(self) -> dict[str, _Member]:
        """Return all files and links."""
        found: dict[str, _Member] = {}
        count = 0
        long: dict[bytes, bytes] = {}
        while (block := self._header()) is not None:
            name, _, _, _, size_field, _, stored, kind, link, magic, _, _, prefix, trailer = HEADER.unpack(block)
            if not checksum_fits(block, stored):
                self._refuse(block)
            size = self._sized(number(size_field))
            if kind in (_LONG_NAME, _LONG_LINK):
                long[b"path" if kind == _LONG_NAME else b"linkpath"] = text(self._extension(size))
                continue
            if kind == _PAX:
                long |= parse_records(self._extension(size))
                continue
            if kind == _PAX_GLOBAL:
                self._extension(size)
                continue
            if kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in long):
                raise UnsupportedError(f"{self._path} has sparse members", hint="pack it again without `tar --sparse`")
            count += 1
            if count > _MEMBERS_MAX:
                raise LimitError(f"{self._path} has more than {_MEMBERS_MAX} members", hint="is it an image, or a tar of a file system?")
            before = prefix_of(magic, prefix, trailer)
            path = long.get(b"path") or (before + b"/" + text(name) if before else text(name))
            target = long.get(b"linkpath") or text(link)
            if b"size" in long:
                size = self._sized(decimal(long[b"size"], "size"))
            long = {}
            self._keep(found, path, kind, size, target)
            if kind in _FILE:
                self._at += -(-size // BLOCK) * BLOCK
        return found

    def _keep(self, found: dict[str, _Member], path: bytes, kind: bytes, size: int, target: bytes) -> None:
        key = _clean(path.decode("utf-8", "surrogateescape"))
        if not key or len(path) > _NAME_MAX or len(target) > _NAME_MAX:
            return
        if kind in _FILE:
            found[key] = _Member(self._at, size)
        elif kind in (_SYMLINK, _HARDLINK):
            link = target.decode("utf-8", "surrogateescape")
            if kind == _SYMLINK and not link.startswith("/"):
                link = f"{key.rpartition('/')[0]}/{link}"
            found[key] = _Member(0, 0, link)

    def _header(self) -> bytes | None:
        """Return the next header, None at the end. An archive without its closing zeros ends at its last whole member."""
        block = os.pread(self._fd, BLOCK, self._at)
        if block == ZERO_BLOCK or (not block and self._at):
            return None
        if len(block) < BLOCK:
            self._refuse(block)
        self._at += BLOCK
        return block

    def _sized(self, size: int) -> int:
        if size < 0 or size > self._end - self._at:
            raise SourceError(f"{self._path} ends in the middle of a member", hint="the archive is truncated or damaged; fetch it again")
        return size

    def _extension(self, size: int) -> bytes:
        self._extended += size
        if size > _EXTENSION_MAX or self._extended > _EXTENSIONS_MAX:
            raise LimitError(f"{self._path} has an extended header of {size} bytes")
        data = os.pread(self._fd, size, self._at)
        self._at += -(-size // BLOCK) * BLOCK
        return data

    def _refuse(self, block: bytes) -> NoReturn:
        if self._at <= BLOCK:
            raise SourceError(f"{self._path} is not a tar archive", hint=_compressed_hint(block))
        raise SourceError(f"{self._path} is a damaged tar archive: no header at byte {self._at - BLOCK}", hint="make or fetch it again")


def _compressed_hint(head: bytes) -> str | None:
    for magic, tool in ((b"\x1f\x8b", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"\xfd7zXZ", "unxz"), (b"BZh", "bunzip2")):
        if head.startswith(magic):
            return f"the archive itself is compressed: {tool} it first (its layers may be compressed as they are)"
    return None
