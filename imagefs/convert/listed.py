"""Layers that the store has a listing of: their entries, without a look at the layer.

Invariants: a listing is used for a layer if digest, diff-id and size are those that it was made for, and its unpacked size is within
the limits that a reader would keep to; an entry that comes out of one is sound as if the tar reader had made it. What is wrong with a
listing costs its savings and nothing else. Listings lie in a scratch file each, unlinked at once, and are read in place.

:meth:`ListedLayers.load` asks for several at once; all else belongs to one thread. What does not live here: whether the store has the
content (:mod:`imagefs.convert.known`), and when a listing is written (:mod:`imagefs.convert.reading`).
"""

import mmap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from imagefs.convert.entry import Content, Entry, Kind
from imagefs.convert.stream import LayerBlob, Limits
from imagefs.convert.tar_header import TARGET_MAX, clean_path
from imagefs.errors import ImageFSError, IntegrityError, SourceError
from imagefs.format.listing import KINDS, Row, read_listing
from imagefs.format.tree import INLINE_MAX
from imagefs.store.base import ObjectStore
from imagefs.store.listings import fetch_listing_to, get_pointer

_AT_ONCE: Final = 8
_SECOND: Final = 1_000_000_000
_KINDS: Final = tuple(Kind(name) for name in KINDS)
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}


def rows_of(entries: Iterable[Entry], hidden: Mapping[int, Content]) -> Iterator[Row]:
    """Yield the rows for a layer's entries; ``hidden`` has the content of those that have none, by their place in the layer."""
    for place, entry in enumerate(entries):
        content = entry.content or hidden.get(place)
        name = b"" if content is None else content.object or content.inline or b""
        seconds, nanoseconds = divmod(entry.mtime_ns, _SECOND)
        yield Row(
            entry.path,
            _NUMBERS[entry.kind],
            entry.mode,
            entry.uid,
            entry.gid,
            seconds,
            nanoseconds,
            entry.size,
            name,
            entry.link,
            entry.rdev,
            entry.xattrs,
        )


class ListedLayer:
    """One layer that was read before."""

    def __init__(self, listing: mmap.mmap) -> None:
        """Read nothing yet."""
        self._listing = listing

    def entries(self) -> Iterator[tuple[Entry, Content | None]]:
        """Yield the layer's entries as a reader would, and beside each file its content, which the entry itself does not have.

        ``IntegrityError`` and ``UnsupportedError`` where something is wrong, so after sound entries.
        """
        for row in read_listing(self._listing):
            kind = _KINDS[row.kind]
            _check(row, kind)
            mtime_ns = row.seconds * _SECOND + row.nanoseconds
            entry = Entry(row.path, kind, row.mode, row.uid, row.gid, mtime_ns, row.size, row.rdev, row.link, row.xattrs)
            yield entry, _content(row) if kind is Kind.FILE else None


def _content(row: Row) -> Content:
    return Content(row.size, None, row.content) if row.size <= INLINE_MAX else Content(row.size, row.content, None)


def _check(row: Row, kind: Kind) -> None:
    """Raise ``IntegrityError`` for paths that no reader lets pass."""
    path, link = row.path, row.link
    try:
        is_sound = clean_path(path) == path and (bool(path) or kind in (Kind.DIR, Kind.OPAQUE))
        if kind is Kind.HARDLINK:
            is_sound = is_sound and clean_path(link) == link
        elif kind is Kind.SYMLINK:
            is_sound = is_sound and 0 < len(link) <= TARGET_MAX and b"\0" not in link
        else:
            is_sound = is_sound and not link
    except SourceError:
        is_sound = False
    if not is_sound:
        raise IntegrityError(f"listing of a layer: no {kind.value} has such a path or target")


class ListedLayers:
    """The layers of one source of which the store has listings, by their digests."""

    def __init__(self) -> None:
        """Know of none."""
        self._layers: dict[str, ListedLayer] = {}

    @classmethod
    def load(cls, store: ObjectStore, layers: Sequence[LayerBlob], limits: Limits, scratch: Path) -> "ListedLayers":
        """Bring what the store has of ``layers`` to ``scratch``, an existing private directory."""
        listed = cls()
        wanted = {layer.digest: layer for layer in layers if layer.digest and layer.diff_id}
        if wanted:
            bring = partial(_bring, store, limits, scratch, threading.Event())
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="listed") as pool:
                for digest, found in zip(wanted, pool.map(bring, wanted.values()), strict=True):
                    if found is not None:
                        listed._layers[digest] = found
        return listed

    def __bool__(self) -> bool:
        """Say whether there is a listing."""
        return bool(self._layers)

    def get(self, digest: str) -> ListedLayer | None:
        """Return a layer, None if there is no listing of it."""
        return self._layers.get(digest)


def _bring(store: ObjectStore, limits: Limits, scratch: Path, stumbled: threading.Event, layer: LayerBlob) -> ListedLayer | None:
    """Return the layer if the store has a listing that fits it.

    Once the store has ``stumbled`` it is not asked any more: what listings save is not worth the waits.
    """
    if stumbled.is_set():
        return None
    path = scratch / layer.digest.replace(":", "-")
    try:
        pointer = get_pointer(store, layer.digest)
        if (pointer.diff_id, pointer.size) != (layer.diff_id, layer.size) or pointer.unpacked > limits.max_layer_bytes:
            # The reader has the words for what is wrong.
            return None
        fetch_listing_to(store, pointer, path)
        with path.open("rb") as file:
            return ListedLayer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ImageFSError as error:
        if error.retryable:
            stumbled.set()
        return None
    except (OSError, ValueError):
        # An empty file cannot be mapped, and no listing is empty.
        return None
    finally:
        path.unlink(missing_ok=True)
