"""The store in a directory.

Guarantees: those of :class:`~imagefs.store.base.ObjectStore`, for several writers on one host. A blob is written under ``tmp/``, made
durable, and only then given its name with ``link(2)``, which fails if the name exists; so a key is whole or absent, whatever dies when.
Writers that arrive together share one ``syncfs(2)``: a few syncs for a conversion's thousand packs. It also waits for what others have
left to be written on that file system.
Refs change under an ``flock``, with a rename.

Assumes a local file system with hard links and ``flock``. What does not live here: which keys there are, and what is in the blobs.
"""

import errno
import fcntl
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from imagefs.digest import Buffer, digest_of
from imagefs.errors import AccessError, ConflictError, ImageFSError, IntegrityError, NotFoundError, StoreError, StoreFullError, UsageError
from imagefs.store.base import ByteRange, KeyInfo, Start
from imagefs.syscalls import syncfs

_KEY: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*")
_TMP: Final = "tmp"
_TRIES: Final = 3


class _GroupSync:
    """Makes files durable in groups: whoever comes while a ``syncfs`` runs waits for the next one, which serves all who wait."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._condition = threading.Condition()
        self._running = False
        self._started = 0
        self._finished = 0
        self._failed: dict[int, int] = {}

    def sync(self) -> None:
        """Return when everything written before this call is on the disk."""
        with self._condition:
            # A sync that has begun may have passed our file already: only one that begins from now on counts.
            ticket = self._started + 1
            while self._finished < ticket and self._running:
                self._condition.wait(60)
            if self._finished >= ticket:
                # The sync that served us may not be the last any more: its outcome counts, not that of a later one.
                self._raise(ticket)
                return
            self._running = True
            self._started = ticket
        error = 0
        try:
            syncfs(self._descriptor)
        except OSError as refusal:
            error = refusal.errno or errno.EIO
        with self._condition:
            self._running = False
            self._finished = ticket
            if error:
                self._failed[ticket] = error
            self._condition.notify_all()
            self._raise(ticket)

    def _raise(self, ticket: int) -> None:
        if error := self._failed.get(ticket):
            raise OSError(error, os.strerror(error))


def _read(descriptor: int, key: str, start: int, end: int) -> bytes:
    """Return bytes ``start`` to ``end`` of a key's file. ``IntegrityError`` if it ends before."""
    data = os.pread(descriptor, end - start, start)
    while len(data) < end - start:
        more = os.pread(descriptor, end - start - len(data), start + len(data))
        if not more:
            raise IntegrityError(f"{key} ends at byte {start + len(data)}: {end} were to be read")
        data += more
    return data


class LocalStore:
    """A store in the directory ``root``, which must be one (:func:`~imagefs.store.opening.open_store` checks and creates)."""

    def __init__(self, root: Path, *, private: bool = False) -> None:
        """Open the directory; ``close`` releases it. With ``private`` what is written from now on is for its owner alone (0700, 0600)."""
        self._root = root
        self._folder_mode, self._file_mode = (0o700, 0o600) if private else (0o777, 0o644)
        with _errors(str(root)):
            self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._group = _GroupSync(self._descriptor)
        self._directories: set[str] = set()

    @property
    def url(self) -> str:
        """``file://`` and the absolute path."""
        return self._root.absolute().as_uri()

    def close(self) -> None:
        """Close the directory."""
        os.close(self._descriptor)

    # -- reading --------------------------------------------------------------------------------------------------------------------

    def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        """See :meth:`ObjectStore.get <imagefs.store.base.ObjectStore.get>`."""
        with self._opened(key) as (descriptor, size):
            start, end = (0, size) if byte_range is None else (byte_range.start, byte_range.end)
            return _read(descriptor, key, start, end)

    def start(self, key: str, most: int) -> Start:
        """See the protocol."""
        with self._opened(key) as (descriptor, size):
            data = _read(descriptor, key, 0, min(size, most))
        return Start(data, size, digest_of(data).hex() if len(data) == size else "")

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open a key's file; give the descriptor and the size."""
        with _errors(key):
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                yield descriptor, os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See the protocol; a version is the digest of the bytes."""
        data = self.get(key)
        return data, digest_of(data).hex()

    def head(self, key: str) -> KeyInfo:
        """See the protocol."""
        with _errors(key):
            status = self._path(key).lstat()
        if not stat.S_ISREG(status.st_mode):
            raise NotFoundError(f"the store has no {key}")
        return KeyInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        """See the protocol. Reads one directory at a time."""
        folder, _, start = prefix.rpartition("/")
        yield from self._list(folder, start)

    def _list(self, folder: str, start: str) -> Iterator[KeyInfo]:
        with _errors(folder):
            try:
                with os.scandir(self._root / folder) as entries:
                    # As keys sort: "a/b" after "a-b", so a directory sorts with its slash.
                    names = sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries)
            except (FileNotFoundError, NotADirectoryError):
                return
        for name in names:
            key = f"{folder}/{name}" if folder else name
            if not name.startswith(start) or (not folder and name == f"{_TMP}/"):
                continue
            if name.endswith("/"):
                yield from self._list(key[:-1], "")
            else:
                try:
                    yield self.head(key)
                except (NotFoundError, UsageError):
                    continue

    # -- writing --------------------------------------------------------------------------------------------------------------------

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        """See the protocol."""
        path = self._path(key)
        with _errors(key), _in_the_way(key):
            if os.path.lexists(path):
                return _is_key(path)
            self._make_parent(path)
            with self._temporary(data, key) as temporary:
                self._group.sync()
                try:
                    self._place(os.link, temporary, path)
                except FileExistsError:
                    return _is_key(path)
        return True

    def replace(self, key: str, data: Buffer, *, version: str | None) -> str:
        """See the protocol."""
        path = self._path(key)
        with _errors(key), _in_the_way(key), self._lock():
            try:
                current: str | None = digest_of(path.read_bytes()).hex()
            except FileNotFoundError:
                current = None
            if current != version:
                raise ConflictError(f"{key} was changed by another writer", hint="try again")
            self._make_parent(path)
            with self._temporary(data, key) as temporary:
                self._group.sync()
                self._place(os.rename, temporary, path)
                _sync_directory(path.parent)
        return digest_of(data).hex()

    def delete(self, key: str) -> bool:
        """See the protocol. Directories that become empty go too, so that a ref's name can become another's prefix."""
        path = self._path(key)
        # Under the lock: a delete between the comparison and the swap of ``replace`` would be lost.
        with _errors(key), self._lock():
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return False
            _sync_directory(path.parent)
            top = key.partition("/")[0]
            parent = path.parent
            while parent != self._root / top and parent != self._root:
                try:
                    parent.rmdir()
                except OSError:
                    break
                parent = parent.parent
        return True

    # -- inside ---------------------------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key) or key.split("/", 1)[0] == _TMP:
            raise UsageError(f"not a key of a store: {key[:120]!r}")
        return self._root / key

    def _make_parent(self, path: Path) -> None:
        parent = str(path.parent)
        if parent in self._directories and os.path.isdir(parent):  # noqa: PTH112
            return
        if not os.path.isdir(self._root):  # noqa: PTH112
            raise StoreError(f"the store at {self._root} is gone", hint="is its file system still mounted?")
        self._make_folders(path.parent)
        _sync_directory(self._root)
        self._directories.add(parent)

    def _make_folders(self, folder: Path) -> None:
        # One by one: with ``parents`` the last one alone would be given the mode.
        try:
            folder.mkdir(self._folder_mode, exist_ok=True)
        except FileNotFoundError:
            self._make_folders(folder.parent)
            folder.mkdir(self._folder_mode, exist_ok=True)

    def _place(self, move: Callable[[str, Path], None], temporary: str, path: Path) -> None:
        """Give a temporary file its name; once more if a ``delete`` has just pruned the directory."""
        for _ in range(_TRIES):
            try:
                move(temporary, path)
            except FileNotFoundError:
                self._make_parent(path)
                self._group.sync()
            else:
                return
        move(temporary, path)

    @contextmanager
    def _temporary(self, data: Buffer | Sequence[Buffer], key: str) -> Iterator[str]:
        """Write ``data`` to a file under ``tmp/`` and remove that name again. The flock tells a living writer's file from a dead one's."""
        descriptor, path = self._claim(key)
        try:
            _write_all(descriptor, [data] if isinstance(data, bytes | bytearray | memoryview) else data)
            yield path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
            os.close(descriptor)

    def _claim(self, key: str) -> tuple[int, str]:
        """Open a new locked file under ``tmp/``."""
        folder = self._root / _TMP
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            path = str(folder / f"{os.urandom(8).hex()}.{key.rpartition('/')[2][:32]}")
            try:
                descriptor = os.open(path, flags, self._file_mode)
            except FileNotFoundError:
                folder.mkdir(self._folder_mode, exist_ok=True)
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_nlink:
                    return descriptor, path
            except OSError:
                os.close(descriptor)
                raise
            # A sweep came between the two calls and took the file for an abandoned one: make another.
            os.close(descriptor)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        (self._root / _TMP).mkdir(self._folder_mode, exist_ok=True)
        descriptor = os.open(self._root / _TMP / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove what writers that were killed left under ``tmp/``."""
        with suppress(OSError), os.scandir(self._root / _TMP) as entries:
            for entry in entries:
                if entry.name != "lock":
                    # Another living writer's file, or one that somebody else has just removed, is not ours to clean.
                    with suppress(OSError):
                        _remove_abandoned(entry.path)


def _remove_abandoned(path: str) -> None:
    """Remove a file that no living writer has locked; ``OSError`` if one has."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # noqa: PTH108
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, parts: Sequence[Buffer]) -> None:
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    while views:
        written = os.writev(descriptor, views[:512])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


def _is_key(path: Path) -> bool:
    """Return False, as a put does for a key that is there; ``IsADirectoryError`` if it is only the beginning of other keys."""
    if stat.S_ISDIR(path.lstat().st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return False


@contextmanager
def _in_the_way(key: str) -> Iterator[None]:
    """Say what is wrong when a key is to be written whose beginning is a key, or that is the beginning of one."""
    try:
        yield
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise ConflictError(
            f"{key} cannot be kept beside a key that it begins with or is the beginning of", hint="use another name or tag"
        ) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn what the operating system says into the error tree."""
    try:
        yield
    except ImageFSError:
        raise
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}:
            raise NotFoundError(f"the store has no {what}") from error
        raise refusal(error, what) from error


def refusal(error: OSError, what: str) -> ImageFSError:
    """Return the error of ours for what the file system of a store says about ``what``."""
    code = error.errno
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFullError(f"the store has no room for {what}", hint="free some space; what was written is used by the next try")
    if code == errno.EROFS:
        return AccessError(
            f"the store's file system is read-only: {what} cannot be changed",
            hint="images can be mounted from it; to change it mount that file system read-write, or use another --store",
        )
    if code in {errno.EACCES, errno.EPERM}:
        return AccessError(
            f"the store does not let this user write or read {what}: {os.strerror(code)}", hint="run as its owner, or use another --store"
        )
    return StoreError(f"{what}: {error.strerror or error}")
