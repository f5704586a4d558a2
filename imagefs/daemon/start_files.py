"""The documents of Starts, in ``<cache>/starts/``: the last ones of each image, and who accessed what in them by its path.

A document appears whole, by a rename, under ``<manifest>-<began, in ms>.json.zst``. That it cannot be kept is no trouble of the mount's.
Blocking functions, for threads. What does not live here: what is in a document (``imagefs.cache.starts``).
"""

import os
import secrets
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import zstandard

from imagefs.cache.starts import Start
from imagefs.digest import is_hex_digest
from imagefs.errors import ImageFSError
from imagefs.format.erofs_reader import Tree

FOLDER: Final = "starts"
OF_IMAGE: Final = 4
"""Documents of an image that are kept."""

OF_ALL: Final = 64

_SUFFIX: Final = ".json.zst"
_DIRECTORY: Final = 4  # DT_DIR of readdir(3)
_STEP: Final = 64
_PAUSE: Final = 0.0005


class StartFiles:
    """Those of one cache."""

    def __init__(self, cache: Path) -> None:
        """Cheap: nothing is made yet."""
        self._folder = cache / FOLDER

    def keep(self, start: Start, document: dict[str, Any]) -> Path:
        """Write a document, in place of an earlier one of the same Start, and let go of the oldest. ``OSError``."""
        path = self._folder / f"{start.manifest}-{round(start.began * 1000)}{_SUFFIX}"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        new = path.with_name(f".{secrets.token_hex(8)}")
        try:
            new.write_bytes(zstandard.ZstdCompressor(level=3).compress(msgspec.json.encode(document)))
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        self._prune()
        return path

    def newest(self, manifest: str, since: float = 0.0) -> Path | None:
        """Return the last document of an image that began at ``since`` (seconds since the epoch) or later."""
        found = [(began, path) for began, name, path in self._all() if name == manifest and began >= since * 1000 - 1]
        return max(found)[1] if found else None

    def _all(self) -> Iterator[tuple[int, str, Path]]:
        """Yield when each began, its image, and where it is."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 # a name is all that is wanted
        except FileNotFoundError:
            return
        for name in names:
            manifest, _, began = name.removesuffix(_SUFFIX).partition("-")
            if name.endswith(_SUFFIX) and is_hex_digest(manifest) and began.isdecimal():
                yield int(began), manifest, self._folder / name

    def _prune(self) -> None:
        of_image: dict[str, int] = {}
        for number, (_, manifest, path) in enumerate(sorted(self._all(), reverse=True)):
            of_image[manifest] = of_image.get(manifest, 0) + 1
            if of_image[manifest] > OF_IMAGE or number >= OF_ALL:
                path.unlink(missing_ok=True)


def walk(tree: Tree) -> Iterator[tuple[bytes, int, bool]]:
    """Yield path, nid and whether it is a directory of all that is in a tree, a directory before what is in it. Others get their turn."""
    pending = deque([(b"", tree.root)])
    seen = {tree.root}
    count = 0
    while pending:
        above, folder = pending.popleft()
        try:
            for name, nid, kind, _ in tree.readdir(folder):
                count += 1
                if not count % _STEP:
                    time.sleep(_PAUSE)
                if name in {b".", b".."}:
                    continue
                path = above + b"/" + name if above else name
                if kind == _DIRECTORY and nid not in seen:
                    seen.add(nid)
                    pending.append((path, nid))
                yield path, nid, kind == _DIRECTORY
        except ImageFSError:
            # What is damaged has no name; who reads it is told.
            continue


def paths_of(tree: Tree, start: Start) -> dict[int, bytes]:
    """Return a path of each file of a Start, by its index there.

    A tree has no way from a file to its name: it is walked until all are found.
    """
    nids: dict[int, int] = {}
    objects: dict[bytes | None, int] = {}
    for index, (key, _, nid) in enumerate(start.files):
        if isinstance(key, int) or nid >= 0:
            nids[key if isinstance(key, int) else nid] = index
        else:
            objects[key] = index
    found: dict[int, bytes] = {}
    for path, nid, is_directory in walk(tree):
        if is_directory:
            continue
        if nid in nids:
            found[nids.pop(nid)] = path
        elif objects and (digest := _object_of(tree, nid)) in objects:
            found[objects.pop(digest)] = path
        if not nids and not objects:
            break
    return found


def _object_of(tree: Tree, nid: int) -> bytes | None:
    try:
        return tree.object_of(nid)
    except ImageFSError:
        # A link, a device: or damaged.
        return None
