"""Which directories an image has, in the order in which they are to be watched: first those in which starts have opened something.

To find them the tree has to be walked, so what was found is kept, in ``<cache>/starts/<manifest>.folders``: a number, that of the first
kind, and the paths, with a zero byte behind each, compressed. Of very many only the first ``FOLDERS_MAX`` count: what is opened in others
is seen as far as the daemon serves it. A file that is damaged is none.

Blocking functions, for threads.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import zstandard

from imagefs.daemon.start_files import FOLDER, walk
from imagefs.format.erofs_reader import Tree

FOLDERS_MAX: Final = 16384
"""Directories that are watched of an image, at most: 0.2 s of system time, and some 20 MiB of the kernel's memory while the start lasts."""

_BYTES_MAX: Final = 64 << 20
_FILES_MAX: Final = 64
_SUFFIX: Final = ".folders"


class KnownFolders:
    """Those of the images of one cache."""

    def __init__(self, cache: Path) -> None:
        """Cheap: nothing is made yet."""
        self._folder = cache / FOLDER

    def read(self, manifest: str) -> tuple[list[bytes], list[bytes]] | None:
        """Return the directories in which something was opened, and the others; None if they are not known yet."""
        try:
            data = (self._folder / f"{manifest}{_SUFFIX}").read_bytes()
            used, *paths = zstandard.ZstdDecompressor().decompress(data, max_output_size=_BYTES_MAX).split(b"\0")
            count = int(used)
        except (OSError, ValueError, zstandard.ZstdError):
            return None
        return paths[:count], paths[count:-1]

    def note(self, manifest: str, tree: Tree, used: Iterable[bytes]) -> None:
        """Note that something was opened in these directories. ``OSError``."""
        known = self.read(manifest)
        before, others = known if known is not None else ([], list(islice(folders(tree), FOLDERS_MAX)))
        first = list(dict.fromkeys([*used, *before]))[:FOLDERS_MAX]
        if known is not None and len(first) == len(before):
            return
        taken = set(first)
        rest = [path for path in (*before, *others) if path not in taken][: FOLDERS_MAX - len(first)]
        self._write(manifest, b"".join(b"%s\0" % part for part in (b"%d" % len(first), *first, *rest)))

    def _write(self, manifest: str, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        new = self._folder / f".{secrets.token_hex(8)}"
        try:
            new.write_bytes(zstandard.ZstdCompressor(level=3).compress(data))
            new.replace(self._folder / f"{manifest}{_SUFFIX}")
        finally:
            new.unlink(missing_ok=True)
        by_age = sorted(self._folder.glob(f"*{_SUFFIX}"), key=_age, reverse=True)
        for old in by_age[_FILES_MAX:]:
            old.unlink(missing_ok=True)


def folders(tree: Tree) -> Iterator[bytes]:
    """Yield the paths of a tree's directories below the root, those above before those below."""
    return (path for path, _, is_directory in walk(tree) if is_directory)


def _age(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0
