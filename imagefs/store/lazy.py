"""A store that is opened when it is first needed, so that a daemon starts, and serves what is on its host, while the store is away.

A store that could not be opened is tried again by the next call, but not more often than every :data:`RETRY_SECONDS`: until then its error
is raised again. Safe from many threads; while one opens, the others wait for it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from imagefs.digest import Buffer
from imagefs.errors import ImageFSError
from imagefs.store.base import ByteRange, FirstBytes, Moment, ObjectStore
from imagefs.store.forwarding import ForwardingStore
from imagefs.store.opening import open_store

RETRY_SECONDS: Final = 1.0


class LazyStore(ForwardingStore):
    """An ``ObjectStore``."""

    def __init__(
        self, url: str, *, opening: Callable[[str], ObjectStore] = open_store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open nothing yet."""
        self._url = url
        self._opening = opening
        self._clock = clock
        self._lock = threading.Lock()
        self._store: ObjectStore | None = None
        self._failed: tuple[float, ImageFSError] | None = None

    @property
    def url(self) -> str:
        """The URL that it is opened by."""
        return self._url

    def _reached(self) -> ObjectStore:
        store = self._store
        if store is not None:
            return store
        with self._lock:
            if self._store is not None:
                return self._store
            if self._failed is not None and self._clock() < self._failed[0]:
                raise self._failed[1]
            try:
                self._store = self._opening(self._url)
            except ImageFSError as error:
                self._failed = (self._clock() + RETRY_SECONDS, error)
                raise
            return self._store

    def get_noting(self, key: str, byte_range: ByteRange, first: Moment) -> Buffer:
        """See :class:`~imagefs.store.base.FirstBytes`; of a store that does not know, nothing is noted."""
        store = self._reached()
        return store.get_noting(key, byte_range, first) if isinstance(store, FirstBytes) else store.get(key, byte_range)

    def close(self) -> None:
        """Close the store if it was opened."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None
