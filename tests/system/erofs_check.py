"""The two other readers of a tree: ``fsck.erofs``, and the kernel's own EROFS driver on a plain file."""

import ctypes
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from tests.system.compare import Snapshot, differences, snapshot
from tests.system.world import World, detach, require, tool

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY = 1
_OVERLAY = re.compile(rb"trusted\.overlay\.(metacopy|redirect)")


def tree_file(world: World, manifest: str, target: Path) -> Path:
    """Write the tree that a manifest names, read from the store without any of the project's code; return its path."""
    document = json.loads((world.store / "manifests" / manifest).read_bytes())
    stored = (world.store / "blobs" / document["tree"]["digest"]).read_bytes()
    target.write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(stored))
    return target


@contextmanager
def kernel_mount(tree: Path, point: Path) -> Iterator[Path]:
    """Mount with ``mount(2)``: ``mount(8)`` would put a loop device between."""
    point.mkdir(exist_ok=True)
    if _LIBC.mount(os.fsencode(tree), os.fsencode(point), b"erofs", _MS_RDONLY, None):
        number = ctypes.get_errno()
        pytest.fail(f"the kernel refuses the tree: {os.strerror(number)}")
    try:
        yield point
    finally:
        detach(point)


def check_tree(world: World, manifest: str, expected: Snapshot, scratch: Path) -> None:
    """Check that ``fsck.erofs`` and the kernel accept a tree, and that the kernel sees what ``expected`` says but for content."""
    require("fsck.erofs")
    tree = tree_file(world, manifest, scratch / f"{manifest[:16]}.erofs")
    tool("fsck.erofs", tree)
    require("root")
    require("erofs")
    with kernel_mount(tree, scratch / f"{manifest[:16]}.kernel") as point:
        seen = _as_source(snapshot(point, content=False))
    assert differences(expected, seen, ignore={"content"}) == []


def _as_source(seen: Snapshot) -> Snapshot:
    """Undo what a tree adds for overlayfs: its own xattrs, and the escape of the image's."""
    from dataclasses import replace  # noqa: PLC0415 # beside its only use

    clean: Snapshot = {}
    for path, node in seen.items():
        xattrs = [
            (name.replace(b"trusted.overlay.overlay.", b"trusted.overlay.", 1), value)
            for name, value in node.xattrs
            if not _OVERLAY.fullmatch(name)
        ]
        clean[path] = replace(node, xattrs=tuple(sorted(xattrs)))
    return clean
