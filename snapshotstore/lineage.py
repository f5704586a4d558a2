"""Which pages the members of a lineage have: where page tables are found in a store, and the index that one push begins with.

``lineages/<digest of the lineage's name>/<manifest>`` names the page tables of that member: its own first, then those of older members
whose pages it has too, so that these stay known when their first owner is removed. It is written after the manifest and before the ref, is
immutable, and there is one a member: writers that come together lose nothing of each other. One that was never written, or is gone, costs
what its pages would have saved.

Invariant: what the index knows is in the store: each pack was there, with its size, a moment ago. A pack that goes afterwards takes the
snapshot with it that is being made; that is for leases to prevent, as for every other writer.

What does not live here: what a table is (``snapshotstore.fingerprints``), and pushing (``snapshotstore.repository``).
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, IntegrityError
from imagefs.format.manifest import BlobName
from imagefs.store.base import ObjectStore, manifest_key, pack_key
from imagefs.store.images import get_blob
from snapshotstore.fingerprints import (
    FINGERPRINT_SIZE,
    FRAMES_MAX,
    MAX_TABLE,
    PAGES_MAX,
    TABLES_MAX,
    PageIndex,
    PageTable,
    TablePack,
    decode,
    pages_in,
)

POINTER_FORMAT: Final = 1
_POINTER_MAX: Final = 256 * 1024
_AT_ONCE: Final = 8

_T = TypeVar("_T")
_R = TypeVar("_R")


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a pointer holds: the blobs of page tables."""

    pages: list[BlobName]
    format: int = POINTER_FORMAT


class Known:
    """What a lineage has: ``index`` knows its pages, by frames of ``packs``; ``tables`` has for each pack the table that it is of."""

    __slots__ = ("index", "packs", "slots", "tables")

    def __init__(self) -> None:
        """Know nothing. ``slots`` has for each frame of the index its pack, and which frame of that it is."""
        self.index = PageIndex()
        self.packs: list[TablePack] = []
        self.slots: list[tuple[int, int]] = []
        self.tables: list[BlobName] = []

    def add(self, table: PageTable, blob: BlobName, is_there: Callable[[TablePack], bool]) -> None:
        """Take in the packs of a table that are there, and are not known yet."""
        self.index.reserve(pages_in(table))
        known = {pack.digest for pack in self.packs}
        prints = iter(table.prints)
        for pack in table.packs:
            own = [next(prints) for _ in pack.frames]
            if pack.digest in known or not is_there(pack) or self.index.frames + len(own) > FRAMES_MAX // 2:
                continue
            for number, frame in enumerate(own):
                self.index.add_frame(frame)
                self.slots.append((len(self.packs), number))
            self.packs.append(pack)
            self.tables.append(blob)


def prefix(lineage: str) -> str:
    """Return what the keys of a lineage's pointers begin with. Any name will do: its digest is what is in a key."""
    return f"lineages/{digest_of(lineage.encode()).hex()}/"


def load(store: ObjectStore, lineage: str, *, weed: bool = False) -> Known:
    """Return what the newest members of a lineage have, within the bounds of an index. Raises what a store that is not well raises.

    ``weed``: a table of which a pack is not there is left out, and so is each pointer that names one: of what is damaged, where ``store``
    says that it is not there, the members to come are not to know either.
    """
    known = Known()
    found = sorted(store.list(prefix(lineage)), key=lambda info: (-info.mtime, info.key))
    newest = found[:TABLES_MAX]
    if not newest:
        return known
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lineage") as pool:

        def ask(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R | None]:
            return list(pool.map(lambda item: _asked(function, item), items))

        pointers = ask(lambda info: _pointer(store, info.key), newest)
        blobs = _fitting(dict.fromkeys(blob for found in pointers if found is not None for blob in found))
        tables = ask(lambda blob: decode(get_blob(store, blob.digest, blob.size)), blobs)
        packs = [pack for table in tables if table is not None for pack in table.packs]
        there = {pack.digest for pack, found in zip(packs, ask(lambda pack: _is_there(store, pack), packs), strict=True) if found}
    if weed:
        tables = [table if table is not None and all(pack.digest in there for pack in table.packs) else None for table in tables]
        if None in tables:
            whole = {blob for blob, table in zip(blobs, tables, strict=False) if table is not None}
            named = dict(zip((info.key for info in newest), pointers, strict=True))
            for info in found:
                # Also those that nobody looks at today: once others are gone, somebody may.
                if not whole.issuperset(named.get(info.key) or [None]):
                    store.delete(info.key)
    left = PAGES_MAX
    # The oldest first: what members have in common lies in the frames of the first of them, side by side.
    for blob, table in reversed([*zip(blobs, tables, strict=True)]):
        if table is not None and (left := left - pages_in(table)) >= 0:
            known.add(table, blob, lambda pack: pack.digest in there)
    return known


def announce(store: ObjectStore, lineage: str, manifest: str, pages: list[BlobName]) -> None:
    """Let the members to come know of the page tables of one that is in the store. Pointers that are too old to be read go."""
    if not pages:
        return
    data = msgspec.json.encode(Pointer(pages), order="sorted") + b"\n"
    store.put_if_absent(prefix(lineage) + manifest, data)
    oldest = sorted(store.list(prefix(lineage)), key=lambda info: (-info.mtime, info.key))[2 * TABLES_MAX :]
    for info in oldest:
        with suppress(ImageFSError):
            store.delete(info.key)


def forget(store: ObjectStore, lineage: str, manifest: str) -> bool:
    """Take away the pointer of a member that is removed; True if there was one."""
    return store.delete(prefix(lineage) + manifest)


def _asked(function: Callable[[_T], _R], item: _T) -> _R | None:
    """Call, and return None for what is damaged or missing; a store that is not well is an error."""
    try:
        return function(item)
    except ImageFSError as error:
        if error.retryable:
            raise
        return None


def _fitting(blobs: Iterable[BlobName]) -> list[BlobName]:
    """Return the first of these tables, as many as an index has room for, by their sizes."""
    fitting: list[BlobName] = []
    room = PAGES_MAX * FINGERPRINT_SIZE
    for blob in blobs:
        room -= blob.size
        if (room < 0 and fitting) or len(fitting) == TABLES_MAX:
            break
        if blob.size <= MAX_TABLE:
            fitting.append(blob)
    return fitting


def _pointer(store: ObjectStore, key: str) -> list[BlobName]:
    data, size, _ = store.start(key, _POINTER_MAX)
    if size > _POINTER_MAX:
        raise IntegrityError(f"{key} is longer than {_POINTER_MAX} bytes")
    try:
        pointer = msgspec.json.decode(data, type=Pointer)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{key} is damaged: {error}") from error
    if pointer.format != POINTER_FORMAT:
        raise IntegrityError(f"{key} has format {pointer.format}")
    # The member is what keeps its pages: once it was removed, they may go at any time.
    store.head(manifest_key(key.rpartition("/")[2]))
    return pointer.pages


def _is_there(store: ObjectStore, pack: TablePack) -> bool:
    return store.head(pack_key(pack.digest.hex())).size == pack.size
