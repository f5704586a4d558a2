"""Which layers of sources the store knows: pointers from a layer's digest to a listing of its entries.

A listing is derived data: no image names one, and an image converted with its help is the same as one converted without. So whatever is
wrong with a pointer or a listing costs what it would have saved, and nothing else.

Invariants: what is read is checked before it is believed (size, fields, digests), and a pointer is written after its listing and never
overwritten: a listing is a pure function of the layer, so there is nothing better to write. What does not live here: what is in a listing
(``imagefs.format.listing``), and whether it helps (``imagefs.convert.listed``).
"""

from pathlib import Path
from typing import Final

import msgspec

from imagefs.digest import Buffer
from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format.listing import MAX_LISTING
from imagefs.format.manifest import BlobName, Count, SourceDigest
from imagefs.store.base import BlobSource, ObjectStore
from imagefs.store.images import fetch_blob_to, put_blob

POINTER_FORMAT: Final = 1
_POINTER_MAX: Final = 4096


class LayerPointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a layer was found to be when it was read whole and both digests were right.

    ``layer`` is the blob's digest and ``diff_id`` that of what it unpacks to, both ``algorithm:hex``; ``size`` and ``unpacked`` are the
    bytes of the two; ``listing`` is a blob of this store.
    """

    layer: SourceDigest
    diff_id: SourceDigest
    size: Count
    unpacked: Count
    listing: BlobName
    format: int = POINTER_FORMAT


class _Head(msgspec.Struct):
    format: int


def layer_key(digest: str) -> str:
    """Key of the pointer for a layer blob, given as ``algorithm:hex``."""
    return f"layers/{digest.replace(':', '-')}"


def put_listing(store: ObjectStore, layer: str, diff_id: str, sizes: tuple[int, int], listing: Buffer) -> int:
    """Store what a layer holds; return the bytes that the listing added to the store.

    ``sizes`` are those of the blob and of what it unpacks to. Raises the store's errors.
    """
    name, added = put_blob(store, listing)
    pointer = LayerPointer(layer, diff_id, *sizes, BlobName(name, len(listing)))
    store.put_if_absent(layer_key(layer), msgspec.json.encode(pointer, order="sorted") + b"\n")
    return added


def get_pointer(store: BlobSource, layer: str) -> LayerPointer:
    """Return the pointer for a layer blob.

    ``NotFoundError`` if the store has none, ``UnsupportedError`` for another format, ``IntegrityError`` for what is no pointer for this
    layer; and the store's errors.
    """
    key = layer_key(layer)
    data, size, _ = store.start(key, _POINTER_MAX)
    if size > _POINTER_MAX:
        raise IntegrityError(f"{key} is longer than {_POINTER_MAX} bytes")
    try:
        if (found := msgspec.json.decode(data, type=_Head).format) != POINTER_FORMAT:
            raise UnsupportedError(f"{key} has format {found}: this version reads {POINTER_FORMAT}")
        pointer = msgspec.json.decode(data, type=LayerPointer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"{key} is damaged: {error}") from None
    if pointer.layer != layer or pointer.listing.size > MAX_LISTING:
        raise IntegrityError(f"{key} does not hold together")
    return pointer


def fetch_listing_to(store: BlobSource, pointer: LayerPointer, path: Path) -> None:
    """Bring a listing to the file ``path``, verified. ``NotFoundError``, ``IntegrityError``, and the store's errors."""
    fetch_blob_to(store, pointer.listing.digest, pointer.listing.size, path)
