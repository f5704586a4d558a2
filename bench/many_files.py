"""An image of very many small files, made straight from the formats.

A directory of that many files would take longer to make than to measure.
"""

import stat
import subprocess
import sys
from pathlib import Path

from bench.harness import ROOT, Product
from imagefs.convert.builder import ContentBuilder
from imagefs.convert.known import KnownPacks
from imagefs.format.erofs_writer import write_tree
from imagefs.format.manifest import BlobName, Manifest, Platform
from imagefs.format.objectmap import build_object_map
from imagefs.format.tree import Inode
from imagefs.store.images import put_blob, put_manifest
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from imagefs.store.refs import publish as publish_ref

_PER_DIRECTORY = 100


def publish(product: Product, count: int) -> None:
    """Publish ``many:1``, an image of ``count`` files of 100 to 300 bytes, each with content of its own.

    In a process of its own, whose memory goes with it.
    """
    subprocess.run([sys.executable, "-m", "bench.many_files", product.store, str(count)], check=True, cwd=ROOT, env=product.env)


def _publish(directory: Path, count: int) -> None:
    store = open_store(str(directory), create=True)
    root = Inode(stat.S_IFDIR | 0o755, children={})
    assert root.children is not None
    with ContentBuilder(store, KnownPacks(store), jobs=2, level=1) as builder:
        wanted = []
        size = 0
        for first in range(0, count, _PER_DIRECTORY):
            folder = Inode(stat.S_IFDIR | 0o755, children={})
            assert folder.children is not None
            group = root.children.setdefault(b"group%03d" % (first // _PER_DIRECTORY // 100), Inode(stat.S_IFDIR | 0o755, children={}))
            assert group.children is not None
            group.children[b"package%05d" % first] = folder
            for number in range(first, min(first + _PER_DIRECTORY, count)):
                data = (b"value_%d = %d\n" % (number, number)) * (8 + number % 8)
                content = builder.add(len(data), [data])
                assert content.object is not None
                wanted.append(content.object)
                size += len(data)
                folder.children[b"module_%d.py" % number] = Inode(stat.S_IFREG | 0o644, size=len(data), object=content.object)
        builder.flush()
        built = builder.built(wanted)
    tree, objects = write_tree(root), build_object_map(built.objects, built.packs)
    manifest = Manifest(
        tree=BlobName(put_blob(store, tree)[0], len(tree)),
        objects=BlobName(put_blob(store, objects)[0], len(objects)),
        platform=Platform("linux", "amd64"),
        config={},
        annotations={},
        layers=[],
        files=count,
        bytes=size,
        frame_size=256 * 1024,
    )
    publish_ref(store, Ref("many", "1"), put_manifest(store, manifest)[0])
    store.close()


if __name__ == "__main__":
    _publish(Path(sys.argv[1]), int(sys.argv[2]))
