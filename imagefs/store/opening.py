"""From a URL to a store: which implementation it is, and whether what lies there is a store that this version knows."""

import os
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from imagefs.errors import AccessError, ConflictError, NotFoundError, StoreError, UnsupportedError, UsageError
from imagefs.store.base import MARKER_KEY, STORE_FORMAT, ObjectStore
from imagefs.store.local import LocalStore

_MARKER_MAX: Final = 4096


class _Marker(msgspec.Struct):
    format: int


def open_store(url: str, *, create: bool = False) -> ObjectStore:
    """Open the store at ``url``: ``file:///dir`` or a path.

    With ``create`` a directory that is missing or empty becomes a store. ``StoreError`` if it is none, ``AccessError`` if this user may not
    use it, ``UnsupportedError`` if it is of another version, ``UsageError`` if the URL is wrong.
    """
    root = _directory_of(url)
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
    _check(store, root)
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
    if parts.scheme == "s3":
        raise UnsupportedError(f"{url}: S3 stores are not in this version", hint="use a directory store: file:///DIR")
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
        store.replace(MARKER_KEY, msgspec.json.encode({"format": STORE_FORMAT}) + b"\n", version=None)
    except ConflictError:
        pass  # Another writer made it at the same moment.
    finally:
        store.close()


def _check(store: LocalStore, root: Path) -> None:
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
