"""From a URL to a store: which implementation it is, and whether what lies there is a store that this version knows."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from imagefs.errors import AccessError, ConflictError, NotFoundError, StoreError, UnsupportedError, UsageError
from imagefs.store.base import MARKER_KEY, STORE_FORMAT, ObjectStore, Start
from imagefs.store.local import LocalStore, refusal
from imagefs.store.s3_url import S3Place, is_s3_url, parse_s3_url

if TYPE_CHECKING:
    from imagefs.store.s3_session import Prepared

_MARKER_MAX: Final = 4096
_REFUSALS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_NO_MARKER: Final = "check --store and IMAGEFS_STORE; any other store of this version has the same file"


class _Marker(msgspec.Struct):
    format: int


def open_store(url: str, *, create: bool = False, private: bool = False) -> ObjectStore:
    """Open the store at ``url``: ``file:///dir``, a path, or ``s3://bucket/prefix``.

    With ``create`` a directory, bucket or prefix that is missing or empty becomes a store; with ``private`` what is written to a directory
    is for its owner alone, whatever the umask. ``StoreError`` if it is none, ``AccessError`` if this user may not use it,
    ``UnsupportedError`` if it is of another version, ``UsageError`` if the URL is wrong.
    """
    if is_s3_url(url):
        return _open_s3(parse_s3_url(url), create=create)
    return _open_directory(_directory_of(url), create=create, private=private)


def prepared(url: str) -> Callable[[str], ObjectStore]:
    """Do as much of :func:`open_store` as can be done before a fork: all code is loaded, and nobody is asked anything.

    Returns what opens the store, whatever it is called with: the first time faster than :func:`open_store`.
    """
    if not is_s3_url(url):
        return open_store
    # Imported here as below.
    from imagefs.store import s3, s3_session  # noqa: F401, PLC0415

    place, made = parse_s3_url(url), [s3_session.prepared()]
    return lambda _: _open_s3(place, create=False, made=made.pop() if made else None)


def _open_directory(root: Path, *, create: bool, private: bool) -> LocalStore:
    try:
        names = os.listdir(root)  # noqa: PTH208
    except FileNotFoundError:
        names = []
        if not create:
            raise StoreError(f"there is no store at {root}", hint="`imagefs convert` makes one; check --store and IMAGEFS_STORE") from None
    except NotADirectoryError:
        raise StoreError(f"{root} is a file, not a store", hint="a store is a directory or an S3 prefix") from None
    except PermissionError:
        raise AccessError(f"this user may not read the store at {root}", hint="run as its owner, or use another --store") from None
    except OSError as error:
        raise StoreError(f"the store at {root} cannot be read: {error.strerror}", hint="check --store and IMAGEFS_STORE") from error
    if MARKER_KEY not in names:
        if set(names) - {"tmp", "lost+found"}:
            raise StoreError(f"{root} is not a store: it has no {MARKER_KEY}", hint="a new store wants an empty directory")
        if not create:
            raise StoreError(f"{root} is empty, not a store", hint="`imagefs convert` makes one of it; check --store and IMAGEFS_STORE")
        _create(root, private=private)
    store = LocalStore(root, private=private)
    _check(store, str(root))
    if create:
        store.sweep()
    return store


def _directory_of(url: str) -> Path:
    if not url:
        raise UsageError("the store's URL is empty", hint="--store file:///DIR")
    if "://" not in url:
        return Path(url).absolute()
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UsageError(f"{url}: a file URL has three slashes and an absolute path", hint="file:///var/lib/imagefs/store")
        return Path(os.fsdecode(unquote_to_bytes(parts.path)))
    raise UsageError(f"{url}: no store has the scheme {parts.scheme!r}", hint="use file:///DIR or s3://BUCKET/PREFIX")


def _create(root: Path, *, private: bool) -> None:
    try:
        root.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)
        store = LocalStore(root, private=private)
    except PermissionError:
        raise AccessError(f"this user may not make a store at {root}", hint="use another --store") from None
    except OSError as error:
        if error.errno in _REFUSALS:
            raise refusal(error, str(root)) from error
        raise StoreError(f"cannot make a store at {root}: {error.strerror}", hint="check --store and IMAGEFS_STORE") from error
    try:
        _mark(store)
    finally:
        store.close()


def _open_s3(place: S3Place, *, create: bool, made: "Prepared | None" = None) -> ObjectStore:
    # Imported here: who uses a directory does not wait for boto3.
    from imagefs.store.s3 import S3Store  # noqa: PLC0415

    store = S3Store(place, made)
    try:
        marker = store.marker(_MARKER_MAX)
        if marker is None:
            occupied = store.holds_something(make_bucket=create)
            # What lies there may be a store that another has made since we looked.
            if not (occupied and store.marker(_MARKER_MAX)):
                _refuse_or_make(store, occupied=occupied, create=create)
        _check(store, store.url, marker)
        store.settle()
        if create:
            store.has_conditional_writes()
    except BaseException:
        store.close()
        raise
    return store


def _refuse_or_make(store: ObjectStore, *, occupied: bool, create: bool) -> None:
    if occupied:
        raise StoreError(
            f"{store.url} is not a store: it has no {MARKER_KEY}", hint="a new store wants an empty prefix: s3://BUCKET/PREFIX"
        )
    if not create:
        raise StoreError(f"{store.url} is empty, not a store", hint="`imagefs convert` makes one of it; check --store and IMAGEFS_STORE")
    _mark(store)


def _mark(store: ObjectStore) -> None:
    # Another writer may make it at the same moment.
    with suppress(ConflictError):
        store.replace(MARKER_KEY, msgspec.json.encode({"format": STORE_FORMAT}) + b"\n", version=None)


def _check(store: ObjectStore, root: str, marker: Start | None = None) -> None:
    try:
        marker = marker or store.start(MARKER_KEY, _MARKER_MAX)
        if not marker.is_all:
            raise StoreError(f"{root} is not a store: its {MARKER_KEY} is too long", hint=_NO_MARKER)
        found = msgspec.json.decode(marker.data, type=_Marker)
    except (msgspec.MsgspecError, NotFoundError) as error:
        raise StoreError(f"{root} is not a store: its {MARKER_KEY} cannot be read: {error}", hint=_NO_MARKER) from error
    if found.format != STORE_FORMAT:
        raise UnsupportedError(
            f"the store at {root} has format {found.format}: this version reads format {STORE_FORMAT}", hint="update imagefs"
        )
