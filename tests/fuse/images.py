"""Small images made straight from the format writers, for tests that are not about conversion."""

import os
import random
import stat
from dataclasses import dataclass, field
from typing import Final

import zstandard

from imagefs.digest import digest_of
from imagefs.format.erofs_writer import write_tree
from imagefs.format.manifest import BlobName, Manifest, Platform
from imagefs.format.objectmap import HOLE, Extent, build_object_map
from imagefs.format.pack import FrameEntry, build_pack, compress_frame, pack_key_of
from imagefs.format.tree import INLINE_MAX, Inode
from imagefs.store import refs
from imagefs.store.base import ObjectStore, pack_key
from imagefs.store.images import put_blob, put_manifest

FRAME = 256 * 1024
MTIME = 1_600_000_000_123_456_789


@dataclass(slots=True)
class Row:
    """An object, as the object map takes it."""

    digest: bytes
    size: int
    extents: list[Extent]


@dataclass
class Maker:
    """Gathers files and writes an image. The objects of one call of ``shared`` share a frame; ``file`` gives one packs of its own."""

    store: ObjectStore
    frame: int = FRAME
    root: Inode = field(default_factory=lambda: Inode(stat.S_IFDIR | 0o755, children={}, mtime_ns=MTIME))
    rows: dict[bytes, Row] = field(default_factory=dict)
    packs: list[tuple[bytes, bytes, int, list[FrameEntry]]] = field(default_factory=list)
    frames: int = 0
    files: int = 0
    total: int = 0

    def put(self, path: str, inode: Inode) -> Inode:
        """Place an inode, with directories above it as needed."""
        *parents, name = os.fsencode(path).split(b"/")
        directory = self.root
        for parent in parents:
            assert directory.children is not None
            directory = directory.children.setdefault(parent, Inode(stat.S_IFDIR | 0o755, children={}, mtime_ns=MTIME))
        assert directory.children is not None
        directory.children[name] = inode
        return inode

    def file(self, path: str, data: bytes, *, mode: int = 0o644, hole: tuple[int, int] | None = None) -> Inode:
        """Place a regular file; ``hole`` (start, end, multiples of the frame size) must be zeros in ``data`` and is not stored."""
        self.files += 1
        self.total += len(data)
        if len(data) <= INLINE_MAX:
            return self.put(path, Inode(stat.S_IFREG | mode, inline=data, size=len(data), mtime_ns=MTIME))
        digest = digest_of(data)
        if digest not in self.rows:
            pieces: list[tuple[int, bytes]] = []
            extents: list[Extent] = []
            for at in range(0, len(data), self.frame):
                piece = data[at : at + self.frame]
                if hole and hole[0] <= at < hole[1]:
                    extents.append(Extent(at, len(piece), HOLE, 0))
                else:
                    extents.append(Extent(at, len(piece), self.frames + len(pieces), 0))
                    pieces.append((at, piece))
            self._pack([piece for _, piece in pieces])
            self.rows[digest] = Row(digest, len(data), extents)
        return self.put(path, Inode(stat.S_IFREG | mode, object=digest, size=len(data), mtime_ns=MTIME))

    def shared(self, files: dict[str, bytes]) -> None:
        """Place small files whose objects lie in one frame, one behind the other."""
        at = 0
        for path, data in files.items():
            self.files += 1
            self.total += len(data)
            digest = digest_of(data)
            self.rows[digest] = Row(digest, len(data), [Extent(0, len(data), self.frames, at)])
            self.put(path, Inode(stat.S_IFREG | 0o644, object=digest, size=len(data), mtime_ns=MTIME))
            at += len(data)
        self._pack([b"".join(files.values())])

    def _pack(self, pieces: list[bytes]) -> None:
        if not pieces:
            return
        compressor = zstandard.ZstdCompressor(write_checksum=False)
        stored = []
        for piece in pieces:
            codec, data = compress_frame(piece, compressor)
            stored.append((digest_of(piece), len(piece), codec, data))
        pack = build_pack(stored)
        self.store.put_if_absent(pack_key(pack.digest.hex()), pack.parts)
        self.packs.append((pack.digest, pack_key_of(entry[0] for entry in stored), pack.size, pack.entries))
        self.frames += len(pieces)

    def publish(self, ref: str = "test:latest") -> str:
        """Write tree, map, manifest and ref; return the manifest's hex digest."""
        tree = bytes(write_tree(self.root))
        objects = build_object_map([self.rows[digest] for digest in sorted(self.rows)], self.packs)
        names = [BlobName(put_blob(self.store, raw)[0], len(raw)) for raw in (tree, objects)]
        manifest = Manifest(
            tree=names[0],
            objects=names[1],
            platform=Platform("linux", "amd64"),
            config={},
            annotations={},
            layers=[],
            files=self.files,
            bytes=self.total,
            frame_size=self.frame,
        )
        name, _ = put_manifest(self.store, manifest)
        refs.publish(self.store, refs.Ref.parse(ref), name)
        return name


_SIX_BITS: Final = bytes(value & 0x3F for value in range(256))


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that compress to about three quarters, different for each seed, the same ones each time.

    Six bits of each byte are random: so a frame of them is stored as zstd, and not much smaller than its content.
    """
    return random.Random(seed).randbytes(size).translate(_SIX_BITS)
