"""The ``ObjectStore`` protocol and the store's key layout.

An interface comment here is a contract; ``tests/store/conformance.py`` holds every implementation to it.

Guarantees that every implementation gives:

- all methods are plain blocking functions, safe from many threads at once;
- ``put_if_absent`` and ``replace`` are atomic: a reader sees all of the bytes or no key, also after a crash at any point;
- when ``replace`` returns, it is durable, and so is everything whose ``put_if_absent`` returned before it was called;
- ``get`` returns exactly the bytes asked for, or raises; it does *not* verify digests: its callers do;
- errors are ``NotFoundError``, ``ConflictError``, ``StoreFullError``, ``AccessError``, ``DeadlineError`` and ``StoreError``, nothing else.

Keys are ``/``-separated relative paths of ``[A-Za-z0-9._-]`` parts; anything else is refused before I/O.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, overload, runtime_checkable

from imagefs.digest import Buffer

STORE_FORMAT: Final = 1
"""Version of the layout below. A store that says another one is refused."""

MARKER_KEY: Final = "imagefs-store.json"
"""``{"format": 1}``: says that this directory or prefix is a store, and of which version."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A run of bytes of one stored blob: ``start`` inclusive, ``end`` exclusive, ``0 <= start < end``."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key as a listing or ``head`` shows it: ``size`` in bytes, ``mtime`` in seconds since the epoch."""

    key: str
    size: int
    mtime: float


class Start(NamedTuple):
    """How a blob begins: the first bytes of it, or all; its ``size``; and where these are all, its version for ``replace``."""

    data: bytes
    size: int
    version: str

    @property
    def is_all(self) -> bool:
        """Whether there are no more bytes."""
        return len(self.data) == self.size


class BlobSource(Protocol):
    """What reading takes of an :class:`ObjectStore`."""

    @overload
    def get(self, key: str) -> bytes: ...

    @overload
    def get(self, key: str, byte_range: ByteRange | None = ...) -> Buffer: ...

    def get(self, key: str, byte_range: ByteRange | None = None) -> Buffer:
        """See :class:`ObjectStore`."""

    def start(self, key: str, most: int) -> Start:
        """See :class:`ObjectStore`."""

    def head(self, key: str) -> KeyInfo:
        """See :class:`ObjectStore`."""


class Moment:
    """When something happened, in seconds of ``time.monotonic``: noted by the thread where it does, for who waits for that thread."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        """It has not."""
        self.at: float | None = None

    def note(self) -> None:
        """It happens now."""
        self.at = time.monotonic()


@runtime_checkable
class FirstBytes(Protocol):
    """What a store may give besides: when an answer began, which tells latency from bandwidth."""

    def get_noting(self, key: str, byte_range: ByteRange, first: Moment) -> Buffer:
        """Return what ``get`` returns, and note when the first of it was there, where that is known and worth knowing."""


class ObjectStore(Protocol):
    """A flat namespace of immutable blobs, and of a few refs and leases that change by compare-and-swap."""

    @property
    def url(self) -> str:
        """The URL that opens this store again, without credentials."""

    @overload
    def get(self, key: str) -> bytes: ...

    @overload
    def get(self, key: str, byte_range: ByteRange | None = ...) -> Buffer: ...

    def get(self, key: str, byte_range: ByteRange | None = None) -> Buffer:
        """Return the blob, or exactly the bytes of ``byte_range``, which may be any buffer: packs are read so, and not copied.

        ``NotFoundError`` if there is no such key; ``IntegrityError`` if the blob ends before ``byte_range.end``.
        """

    def start(self, key: str, most: int) -> Start:
        """Return the first ``most`` bytes of a blob, or all where it has no more, by one request. ``NotFoundError`` if absent.

        For what has a bound on its size, or a size that is not known.
        """

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """Return the blob and an opaque version token for ``replace``. ``NotFoundError`` if absent."""

    def head(self, key: str) -> KeyInfo:
        """Return size and time of one key. ``NotFoundError`` if absent."""

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        """Store ``data`` (one buffer, or several to be written back to back) unless the key exists.

        Returns True if this call wrote it, False if the key was there already (its bytes are left alone).
        """

    def replace(self, key: str, data: Buffer, *, version: str | None) -> str:
        """Write a mutable key if it still has ``version`` (None: if it is absent); return the new version.

        ``ConflictError`` if another writer was faster.
        """

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        """Yield every key that starts with ``prefix`` in bytewise order. Keys written or deleted meanwhile may or may not show."""

    def delete(self, key: str) -> bool:
        """Delete a key; True if it was there. Deleting twice is not an error."""

    def close(self) -> None:
        """Release sockets and descriptors. The store is not used afterwards."""


def manifest_key(hex_digest: str) -> str:
    """Key of a manifest."""
    return f"manifests/{hex_digest}"


def blob_key(hex_digest: str) -> str:
    """Key of a tree, object map or profile: named by the BLAKE3 of its *uncompressed* bytes, stored zstd-compressed."""
    return f"blobs/{hex_digest}"


def pack_key(hex_digest: str) -> str:
    """Key of a pack: named by the BLAKE3 of its bytes as stored."""
    return f"packs/{hex_digest}"


def profile_key(manifest_hex: str, name: str) -> str:
    """Key of a pointer to a profile of an image; with an empty name, what the keys of all of them begin with."""
    return f"profiles/{manifest_hex}/{name}"


def ref_key(name: str, tag: str) -> str:
    """Key of a ref."""
    return f"refs/{name}/{tag}"
