"""Which manifest a ref named when it was last resolved on this host, for when the store cannot be asked.

Kept by diskcache with its JSON disk (its default would unpickle what it finds) in a directory of this user's alone. A damaged one is
emptied: it holds nothing that the store does not know better.
"""

import contextlib
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Final

from diskcache import Cache, JSONDisk

from imagefs.digest import is_hex_digest

KEEP_SECONDS: Final = 90 * 86400
_BYTES_MAX: Final = 16 << 20


class ResolvedNames:
    """Names with what they stood for, by store. Blocks: use it in threads."""

    def __init__(self, folder: Path) -> None:
        """Open or make the cache in ``folder``."""
        self._folder = folder
        self._cache = self._open()

    def _open(self) -> Cache:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Cache(str(self._folder), disk=JSONDisk, size_limit=_BYTES_MAX)
        except sqlite3.DatabaseError:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Cache(str(self._folder), disk=JSONDisk, size_limit=_BYTES_MAX)

    def put(self, store: str, ref: str, manifest: str) -> None:
        """Remember what ``ref`` stands for in the store with this URL."""
        # A full disk costs the memory of a name, not a mount.
        with contextlib.suppress(OSError, sqlite3.Error):
            self._cache.set([store, ref], [manifest, time.time()], expire=KEEP_SECONDS)

    def get(self, store: str, ref: str) -> tuple[str, float] | None:
        """Return the manifest and when that was so, in seconds since the epoch; None if nothing is known."""
        with contextlib.suppress(OSError, sqlite3.Error, ValueError):
            found = self._cache.get([store, ref])
            if isinstance(found, list) and len(found) == 2 and isinstance(found[0], str) and is_hex_digest(found[0]):
                return found[0], float(found[1])
        return None

    def forget(self, store: str, ref: str) -> None:
        """Forget a ref that the store says it does not have."""
        with contextlib.suppress(OSError, sqlite3.Error):
            self._cache.delete([store, ref])

    def close(self) -> None:
        """Close the cache."""
        self._cache.close()
