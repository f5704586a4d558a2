"""From a URL to a store: which implementation it is, and whether what lies there is a store that this version knows."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from imagefs.errors import AccessError, ConflictError, NotFoundError, StoreError, UnsupportedError, UsageError
from imagefs.store.base import MARKER_KEY, STORE_FORMAT, ObjectStore
from imagefs.store.local import LocalStore
from imagefs.store.s3_url import S3Place, is_s3_url, parse_s3_url

_MARKER_MAX: Final = 4096


class _Marker(msgspec.Struct):
    format: int


def open_store(url: str, *, create: bool = False) -> ObjectStore:
    """Open the store at ``url``: ``file:///dir``, a path, or ``s3://bucket/prefix``.

    With ``create`` a directory, bucket or prefix that is missing or empty becomes a store. ``StoreError`` if it is none, ``AccessError`` if
    this user may not use it, ``UnsupportedError`` if it is of another version, ``UsageError`` if the URL is wrong.
    """
    return _open_s3(parse_s3_url(url), create=create) if is_s3_url(url) else _open_directory(_directory_of(url), create=create)


def load_code(url: str) -> None:
    """Load all that :func:`open_store` and what it returns would load later, and ask nobody anything: for who is going to fork."""
    if is_s3_url(url):
        from imagefs.store.s3_session import prepare  # noqa: PLC0415 # as below

        prepare()


def _open_directory(root: Path, *, create: bool) -> LocalStore:
    try:
        names = os.listdir(root)  # noqa: PTH208
    except FileNotFoundError:
        names = []
        if not create:
            raise StoreError(f"there is no store at {root}", hint="`imagefs convert` makes one; check --store and IMAGEFS_STORE") from None
    except NotADirectoryError:
        raise StoreError(f"{root} is a file, not a store", hint="a store is a directory or an S3 prefix") from None
    except PermissionError:
        raise AccessError(f"this user may not read the store at {root}") from None
    if MARKER_KEY not in names:
        if set(names) - {"tmp", "lost+found"}:
            raise StoreError(f"{root} is not a store: it has no {MARKER_KEY}", hint="a new store wants an empty directory")
        if not create:
            raise StoreError(f"{root} is empty, not a store", hint="`imagefs convert` makes one of it; check --store and IMAGEFS_STORE")
        _create(root)
    store = LocalStore(root)
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


def _create(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        store = LocalStore(root)
    except PermissionError:
        raise AccessError(f"this user may not make a store at {root}") from None
    except OSError as error:
        raise StoreError(f"cannot make a store at {root}: {error.strerror}") from error
    try:
        _mark(store)
    finally:
        store.close()


def _open_s3(place: S3Place, *, create: bool) -> ObjectStore:
    # Imported here: who uses a directory does not wait for boto3.
    from imagefs.store.s3 import S3Store  # noqa: PLC0415

    store = S3Store(place)
    try:
        if not _is_marked(store):
            occupied = store.holds_something(make_bucket=create)
            # What lies there may be a store that another has made since we looked.
            if not (occupied and _is_marked(store)):
                _refuse_or_make(store, occupied=occupied, create=create)
        _check(store, store.url)
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


def _is_marked(store: ObjectStore) -> bool:
    try:
        store.head(MARKER_KEY)
    except NotFoundError:
        return False
    return True


def _mark(store: ObjectStore) -> None:
    # Another writer may make it at the same moment.
    with suppress(ConflictError):
        store.replace(MARKER_KEY, msgspec.json.encode({"format": STORE_FORMAT}) + b"\n", version=None)


def _check(store: ObjectStore, root: str) -> None:
    try:
        if store.head(MARKER_KEY).size > _MARKER_MAX:
            raise StoreError(f"{root} is not a store: its {MARKER_KEY} is too long")
        marker = msgspec.json.decode(store.get(MARKER_KEY), type=_Marker)
    except (msgspec.MsgspecError, NotFoundError) as error:
        raise StoreError(f"{root} is not a store: its {MARKER_KEY} cannot be read: {error}") from error
    if marker.format != STORE_FORMAT:
        raise UnsupportedError(
            f"the store at {root} has format {marker.format}: this version reads format {STORE_FORMAT}", hint="update imagefs"
        )
