"""Which manifest a ref named when it was last resolved on this host, for when the store cannot be asked.

Kept by diskcache with its JSON disk (its default would unpickle what it finds) in a directory of this user's alone. A damaged one is
emptied: it holds nothing that the store does not know better.

It is opened when it is first needed: that takes longer than all else that a worker opens, and readers wait for one that takes over.
"""

import contextlib
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from diskcache import Cache, JSONDisk

from imagefs.digest import is_hex_digest

KEEP_SECONDS: Final = 90 * 86400
FORMER_MAX: Final = 4
"""Manifests of one name, whatever the tag, that are remembered as what it stood for."""

_BYTES_MAX: Final = 16 << 20
_PUT_MAX: Final = 1024
_AGAIN_SECONDS: Final = 60.0
"""How long what was written is not written again: that is a transaction on the disk, and many mounts of one image would wait in line."""


class ResolvedNames:
    """Names with what they stood for, by store. Blocks: use it in threads."""

    def __init__(self, folder: Path, unusable: Callable[[Exception], None]) -> None:
        """Keep the cache in ``folder``. ``unusable`` is told once if that cannot be; then nothing is known."""
        self._folder = folder
        self._unusable = unusable
        self._lock = threading.Lock()
        self._is_opened = False
        self._cache: Cache | None = None
        self._put: dict[tuple[str, str], tuple[str, float]] = {}  # what was written of late, and when

    def _opened(self) -> Cache | None:
        with self._lock:
            if not self._is_opened:
                self._is_opened = True
                try:
                    self._cache = self._open()
                except (OSError, sqlite3.Error) as error:
                    self._unusable(error)
            return self._cache

    def _open(self) -> Cache:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._cache_there()
        except sqlite3.DatabaseError:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._cache_there()

    def _cache_there(self) -> Cache:
        # Nothing of it is mapped: on a disk that is full, a mapped page that cannot be had ends the process (SIGBUS).
        return Cache(str(self._folder), disk=JSONDisk, size_limit=_BYTES_MAX, sqlite_journal_mode="truncate", sqlite_mmap_size=0)

    def put(self, store: str, ref: str, manifest: str) -> None:
        """Remember what ``ref`` stands for in the store with this URL."""
        now = time.monotonic()
        known, since = self._put.get((store, ref), ("", 0.0))
        if known == manifest and now - since < _AGAIN_SECONDS:
            return
        # A full disk costs the memory of a name, not a mount.
        if (cache := self._opened()) is not None:
            with contextlib.suppress(OSError, sqlite3.Error):
                cache.set([store, ref], [manifest, time.time()], expire=KEEP_SECONDS)
                if len(self._put) > _PUT_MAX:
                    self._put.clear()
                self._put[store, ref] = manifest, now

    def passed(self, store: str, name: str, manifest: str) -> None:
        """Remember that a name, whatever its tag, stands for ``manifest`` now, and stood for others before."""
        if (cache := self._opened()) is not None:
            with contextlib.suppress(OSError, sqlite3.Error):
                known = self.former(store, name)
                if known[:1] != [manifest]:
                    known = [manifest, *(other for other in known if other != manifest)][:FORMER_MAX]
                    cache.set(["former", store, name], known, expire=KEEP_SECONDS)

    def former(self, store: str, name: str) -> list[str]:
        """Return which manifests a name stood for on this host, under any tag, the last first."""
        if (cache := self._opened()) is not None:
            with contextlib.suppress(OSError, sqlite3.Error, ValueError):
                found = cache.get(["former", store, name])
                if isinstance(found, list):
                    return [other for other in found if isinstance(other, str) and is_hex_digest(other)]
        return []

    def get(self, store: str, ref: str) -> tuple[str, float] | None:
        """Return the manifest and when that was so, in seconds since the epoch; None if nothing is known."""
        if (cache := self._opened()) is not None:
            with contextlib.suppress(OSError, sqlite3.Error, ValueError):
                found = cache.get([store, ref])
                if isinstance(found, list) and len(found) == 2 and isinstance(found[0], str) and is_hex_digest(found[0]):
                    return found[0], float(found[1])
        return None

    def forget(self, store: str, ref: str) -> None:
        """Forget a ref that the store says it does not have."""
        self._put.pop((store, ref), None)
        if (cache := self._opened()) is not None:
            with contextlib.suppress(OSError, sqlite3.Error):
                cache.delete([store, ref])

    def close(self) -> None:
        """Close the cache, if it was opened."""
        with self._lock:
            if self._cache is not None:
                self._cache.close()
