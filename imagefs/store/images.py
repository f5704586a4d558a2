"""Blobs and manifests: put and fetched by digest, and verified. Nothing that comes out of here is unverified.

A blob (a tree, an object map, a profile) is named by the digest of its uncompressed bytes and stored as one zstd frame.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zstandard

from imagefs.digest import Buffer, Hasher, digest_of
from imagefs.errors import IntegrityError, NotFoundError, StoreFullError
from imagefs.format.manifest import MAX_MANIFEST, Manifest, decode, encode
from imagefs.store.base import BlobSource, ByteRange, ObjectStore, Start, blob_key, manifest_key

BLOB_LEVEL: Final = 3
_STEP: Final = 4 * 1024 * 1024
_BITE: Final = 4096
_HEADER_MAX: Final = 18
"""Bytes of a zstd frame that say how long its content is, at most (RFC 8878, 3.1.1.1)."""


def put_blob(store: ObjectStore, raw: Buffer) -> tuple[str, int]:
    """Store a blob unless the store has it; return its hex digest and how many bytes were added to the store."""
    name = digest_of(raw).hex()
    try:
        store.head(blob_key(name))
    except NotFoundError:
        packed = zstandard.ZstdCompressor(level=BLOB_LEVEL, write_content_size=True).compress(raw)
        return name, len(packed) if store.put_if_absent(blob_key(name), packed) else 0
    return name, 0


def get_blob(store: BlobSource, name: str, size: int) -> bytes:
    """Return a blob of ``size`` bytes. ``IntegrityError`` if it is not what its name says."""
    return b"".join(_blob_chunks(store, name, size, store.start(blob_key(name), _STEP)))


def check_blob(store: BlobSource, name: str) -> None:
    """Read all of a blob, whatever its size, in bounded memory. ``IntegrityError`` if it is not what its name says."""
    start = store.start(blob_key(name), _STEP)
    try:
        size = zstandard.frame_content_size(start.data[:_HEADER_MAX])
    except zstandard.ZstdError as error:
        raise IntegrityError(f"blob {name} is damaged: {error}") from error
    for _ in _blob_chunks(store, name, size, start):
        pass


def fetch_blob_to(store: BlobSource, name: str, size: int, path: Path) -> int:
    """Bring a blob of ``size`` bytes to the file ``path``, which appears verified and whole or not at all; return the bytes moved.

    Memory is bounded whatever the size.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    start = store.start(blob_key(name), _STEP)
    try:
        with temporary.open("xb", buffering=0) as file:
            for chunk in _blob_chunks(store, name, size, start):
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
        temporary.chmod(0o444)
        temporary.rename(path)
    except OSError as error:
        raise StoreFullError(
            f"cannot keep {path}: {os.strerror(error.errno or 0)}",
            hint="a host keeps the index of what it mounts: free some space there, or use another --cache",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return start.size


def _blob_chunks(store: BlobSource, name: str, size: int, start: Start) -> Iterator[bytes]:
    """Yield a blob's bytes in pieces; it starts so as it is stored. The last comes only after the whole was verified."""
    key = blob_key(name)
    hasher = Hasher()
    seen = 0
    held = b""
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    try:
        for piece in _as_stored(store, key, start):
            # Small bites bound what one call may inflate to, whatever the bytes are: zstd makes 128 KiB of four bytes.
            if decompressor.eof:
                raise IntegrityError(f"blob {name} is damaged: it has something behind its end")
            for at in range(0, len(piece), _BITE):
                data = decompressor.decompress(piece[at : at + _BITE])
                seen += len(data)
                if seen > size:
                    raise IntegrityError(f"blob {name} is longer than the {size} bytes that its manifest says")
                hasher.update(data)
                if data:
                    yield held
                    held = data
    except zstandard.ZstdError as error:
        raise IntegrityError(f"blob {name} is damaged: {error}") from error
    if not decompressor.eof or decompressor.unused_data:
        raise IntegrityError(f"blob {name} is damaged: it is cut off, or has something behind its end")
    if seen != size or hasher.digest().hex() != name:
        raise IntegrityError(f"blob {name} is damaged: its bytes do not have that digest")
    yield held


def _as_stored(store: BlobSource, key: str, start: Start) -> Iterator[memoryview]:
    """Yield a blob as it is stored, in pieces."""
    yield memoryview(start.data)
    for at in range(len(start.data), start.size, _STEP):
        yield memoryview(store.get(key, ByteRange(at, min(at + _STEP, start.size))))


def put_manifest(store: ObjectStore, manifest: Manifest) -> tuple[str, int]:
    """Store a manifest, which everything it names must be in the store for; return its hex digest and the bytes added."""
    data = encode(manifest)
    name = digest_of(data).hex()
    return name, len(data) if store.put_if_absent(manifest_key(name), data) else 0


def get_manifest(store: BlobSource, name: str) -> Manifest:
    """Return a manifest, verified."""
    key = manifest_key(name)
    try:
        data, size, _ = store.start(key, MAX_MANIFEST)
    except NotFoundError as error:
        raise NotFoundError(f"the store has no manifest {name}", hint="its ref points at nothing: convert the image again") from error
    if size > MAX_MANIFEST:
        raise IntegrityError(f"manifest {name} is longer than {MAX_MANIFEST} bytes")
    if digest_of(data).hex() != name:
        raise IntegrityError(f"manifest {name} is damaged: its bytes do not have that digest", hint="convert the image again")
    return decode(data)
