"""Directories such as engines leave them, made up; and what a store has of a snapshot, read back without the daemon."""

import os
import random
import stat
from pathlib import Path
from typing import Any

import zstandard

from imagefs.digest import digest_of
from imagefs.format.manifest import Manifest
from imagefs.format.objectmap import HOLE, ObjectMap
from imagefs.format.pack import decode_frame
from imagefs.store.base import ByteRange, ObjectStore, pack_key
from imagefs.store.images import get_blob, get_manifest
from snapshotstore.fingerprints import PAGE
from snapshotstore.manifest import Cpu, Oci, Record, Runtime
from tests.fuse.images import noise


def record(lineage: str = "service", **changes: Any) -> Record:
    """Return a record of nothing in particular."""
    fields: dict[str, Any] = {
        "runtime": Runtime(engine="criu", version="4.1.1", format="criu-4"),
        "cpu": Cpu(arch="x86_64"),
        "kernel": "6.18.1",
        "oci": Oci(image="a" * 64, spec="b" * 64),
        "lineage": lineage,
        "key": "c" * 64,
        "created": 1_800_000_000.0,
    }
    return Record(**(fields | changes))


def memory(pages: int, *, seed: int = 0, zero: float = 0.0) -> bytes:
    """Return pages that all differ, a share of them zero, in runs and alone."""
    chance = random.Random(seed)
    data = bytearray(noise(pages * PAGE, seed))
    for _ in range(int(pages * zero)):
        at = chance.randrange(pages) * PAGE
        data[at : at + PAGE] = bytes(PAGE)
    return bytes(data)


def changed(data: bytes, share: float, *, seed: int) -> bytes:
    """Return memory of which a share of the pages was written to since."""
    chance = random.Random(seed)
    pages = len(data) // PAGE
    found = bytearray(data)
    for number in chance.sample(range(pages), max(1, int(pages * share))):
        found[number * PAGE : (number + 1) * PAGE] = noise(PAGE, chance.randrange(1 << 40))
    return bytes(found)


def checkpoint(folder: Path, data: bytes, *, root: bool = False) -> Path:
    """Make what CRIU leaves of a program with this memory. With ``root`` the layer has what only root can make."""
    engine, layer, source = (folder / name for name in ("engine", "layer/usr/lib", "source"))
    for path in (engine, layer, source):
        path.mkdir(parents=True)
    (engine / "pages-1.img").write_bytes(data)
    (engine / "pagemap-1.img").write_bytes(noise(700, 1))
    (engine / "core-1.img").write_bytes(noise(3000, 2))
    (engine / "empty.img").write_bytes(b"")
    (layer / "compiled.so").write_bytes(noise(1_500_000, 3))
    (layer / "compiled.so.1").hardlink_to(layer / "compiled.so")
    (layer / "link").symlink_to("/elsewhere")
    (layer / "compiled.so").chmod(0o755)
    (source / "app.py").write_text("print('answer')\n" * 20)
    os.mkfifo(layer / "pipe", 0o600)
    if root:
        os.mknod(folder / "layer/gone", stat.S_IFCHR | 0o000, os.makedev(0, 0))
        os.chown(layer / "link", 1000, 1001, follow_symlinks=False)
        os.setxattr(layer, "trusted.overlay.opaque", b"y")
        os.setxattr(layer / "compiled.so", "user.note", b"\0\xff")
        os.setxattr(layer / "compiled.so", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    return folder


def objects_of(store: ObjectStore, name: str) -> dict[bytes, bytes]:
    """Return each object of a snapshot by its digest, read from packs; each has that digest, and the map is sound."""
    found = get_manifest(store, name)
    objects = map_of(store, found)
    objects.validate()
    frames: dict[int, bytes] = {}
    decompressor = zstandard.ZstdDecompressor()
    contents: dict[bytes, bytes] = {}
    for row in objects:
        content = bytearray()
        for extent in objects.extents(row, 0, row.size):
            if extent.frame == HOLE:
                content += bytes(extent.length)
                continue
            if extent.frame not in frames:
                frame = objects.frame(extent.frame)
                place = ByteRange(frame.offset, frame.offset + frame.stored)
                stored = store.get(pack_key(objects.pack(frame.pack).digest.hex()), place)
                frames[extent.frame] = decode_frame(stored, frame.codec, frame.length, frame.digest, decompressor)
            content += frames[extent.frame][extent.frame_offset : extent.frame_offset + extent.length]
        assert digest_of(content) == row.digest
        contents[row.digest] = bytes(content)
    return contents


def map_of(store: ObjectStore, found: Manifest) -> ObjectMap:
    """Return the object map of a manifest."""
    return ObjectMap(get_blob(store, found.objects.digest, found.objects.size))


def stored(store: ObjectStore) -> dict[str, int]:
    """Return all keys of a store with the bytes that they take."""
    return {info.key: info.size for info in store.list("")}
