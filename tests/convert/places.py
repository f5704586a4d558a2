"""A store that images are converted into one after the other, layers for them, and what the same images are in a store of their own."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagefs.convert.convert import ConvertReport, convert
from imagefs.convert.stream import Limits
from imagefs.digest import digest_of
from imagefs.format.objectmap import ObjectMap
from imagefs.store.base import ObjectStore, pack_key
from imagefs.store.images import get_blob, get_manifest
from imagefs.store.listings import layer_key
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise, text
from tests.corpus.oci import Layer, sha256, simple

Layers = Sequence[Layer | bytes]


def files(folder: bytes, count: int, seed: bytes = b"", size: int = 3_000) -> list[bytes]:
    """Return small files of several sizes."""
    return [t.file(b"%s/%04d" % (folder, number), noise(size + number * 977 % 40_000, b"%s%d" % (seed, number))) for number in range(count)]


def made(*members: bytes) -> Layer:
    """Return a layer that is compressed once and not each time somebody asks."""
    tar = t.archive(*members)
    return Layer(tar, stored=Layer(tar).blob)


BASE = made(
    ROOT,
    t.file(b"etc/passwd", text(900)),
    t.file(b"etc/tiny", b"tiny"),
    *files(b"usr", 90),
    t.file(b"medium", noise(600_000, b"m")),
    t.file(b"large", noise(1_200_000, b"l")),
)
MIDDLE = made(t.file(b"etc/passwd", text(1_000)), *files(b"opt", 30, b"opt"), t.hardlink(b"also", b"large"), t.symlink(b"l", b"usr"))
TOP = made(t.file(b"new", noise(5_000, b"new")), t.whiteout(b"usr/0007"), t.hardlink(b"opt/link", b"usr/0008"))


@dataclass
class Place:
    """A store in a directory, and layouts beside it."""

    root: Path
    store: ObjectStore
    count: int = 0

    def source(self, *layers: Layer | bytes) -> str:
        self.count += 1
        return f"oci:{simple(self.root / f'layout{self.count}', *layers)}"

    def convert(
        self, *layers: Layer | bytes, store: ObjectStore | None = None, jobs: int = 2, limits: Limits | None = None
    ) -> ConvertReport:
        return convert(self.source(*layers), Ref("x", "y"), store or self.store, jobs=jobs, limits=limits)

    def alone(self, *layers: Layer | bytes) -> str:
        """Return the manifest's digest from a store that has nothing."""
        self.count += 1
        store = open_store(str(self.root / f"alone{self.count}"), create=True)
        try:
            return self.convert(*layers, store=store, jobs=1).manifest
        finally:
            store.close()

    def path(self, key: str) -> Path:
        return self.root / "store" / key

    def pointer(self, layer: Layer) -> Path:
        return self.path(layer_key(sha256(layer.blob)))

    def listing(self, layer: Layer) -> Path:
        return self.path(f"blobs/{json.loads(self.pointer(layer).read_bytes())['listing']['digest']}")

    def spoil(self, path: Path, change: Callable[[bytes], bytes]) -> None:
        path.chmod(0o644)
        path.write_bytes(change(path.read_bytes()))

    def check_whole(self, manifest: str) -> None:
        """Check that every pack that an image names is there."""
        named = get_manifest(self.store, manifest).objects
        objects = ObjectMap(get_blob(self.store, named.digest, named.size))
        for number in range(objects.pack_count):
            pack = objects.pack(number)
            assert digest_of(self.store.get(pack_key(pack.digest.hex()))) == pack.digest


def as_layer(layer: Layer | bytes) -> Layer:
    return layer if isinstance(layer, Layer) else Layer(layer)
