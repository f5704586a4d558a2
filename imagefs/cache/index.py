"""The index of an image on this host: manifest, tree and object map as files ``<cache>/index/<hex>``.

Invariants:

- a file is there whole or not at all (written under another name, then renamed), and is verified against its name every time it is
  taken into use: so nothing here needs to be durable, and a disk that lies is noticed (BLAKE3 reads 100 MB in about 20 ms);
- a file that fails is replaced from the store once; memory is bounded whatever the sizes.

Several daemons may share a cache directory. What does not live here: what is in the files.
"""

import contextlib
import mmap
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imagefs.digest import Hasher, digest_of
from imagefs.errors import AccessError, ImageFSError, StoreFullError
from imagefs.format.manifest import MAX_MANIFEST, BlobName, Manifest, decode, encode
from imagefs.store.base import BlobSource
from imagefs.store.images import fetch_blob_to, get_manifest

INDEX: Final = "index"
"""The folder, in the cache directory."""

_STEP: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Index:
    """An image's index, mapped into memory, and ``moved``: the bytes that had to come from the store for it."""

    manifest: Manifest
    tree: mmap.mmap
    objects: mmap.mmap
    moved: int


def bring_index(store: BlobSource, cache: Path, manifest_hex: str) -> Index:
    """Bring an image's index to this host and map it. Blocks: run it in a thread.

    ``NotFoundError``, ``IntegrityError``, ``StoreError`` as the store gives them; ``StoreFullError`` if the cache has no room.
    """
    folder = cache / INDEX
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AccessError(f"cannot use the cache directory {cache}: {error.strerror}", hint="check --cache and IMAGEFS_CACHE") from error
    manifest, moved = _manifest(store, folder, manifest_hex)
    blobs = (manifest.tree, manifest.objects)
    with ThreadPoolExecutor(len(blobs), thread_name_prefix="index") as pool:
        brought = list(pool.map(lambda blob: _bring(store, folder, blob), blobs))
    tree, objects = (_map(folder / blob.digest) for blob in blobs)
    return Index(manifest, tree, objects, moved + sum(brought))


def is_local(cache: Path, manifest_hex: str) -> bool:
    """Say whether the whole index of an image seems to be on this host. Blocks."""
    folder = cache / INDEX
    try:
        manifest = decode((folder / manifest_hex).read_bytes())
    except (OSError, ImageFSError):
        return False
    return all((folder / blob.digest).is_file() for blob in (manifest.tree, manifest.objects))


def _manifest(store: BlobSource, folder: Path, name: str) -> tuple[Manifest, int]:
    path = folder / name
    with contextlib.suppress(OSError, ImageFSError):
        if path.stat().st_size <= MAX_MANIFEST:
            data = path.read_bytes()
            if digest_of(data).hex() == name:
                return decode(data), 0
    manifest = get_manifest(store, name)
    data = encode(manifest)
    temporary = folder / f".{name}.{secrets.token_hex(4)}"
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise StoreFullError(f"cannot keep {path}: {error.strerror}", hint="the cache directory has no room") from error
    finally:
        temporary.unlink(missing_ok=True)
    return manifest, len(data)


def _bring(store: BlobSource, folder: Path, blob: BlobName) -> int:
    """Make sure that a verified file is there; return the bytes that moved."""
    path = folder / blob.digest
    if _is_sound(path, blob):
        return 0
    return fetch_blob_to(store, blob.digest, blob.size, path)


def _is_sound(path: Path, blob: BlobName) -> bool:
    # Read, not mapped: pages of a mapping would count as the daemon's memory.
    hasher = Hasher()
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != blob.size:
                return False
            buffer = bytearray(min(_STEP, blob.size))
            view = memoryview(buffer)
            while count := file.readinto(buffer):
                hasher.update(view[:count])
    except OSError:
        return False
    return hasher.digest().hex() == blob.digest


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    # Without this a touched page brings its 15 neighbours into the daemon's memory.
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped
