"""Reading from a store that stumbles: tries again what may be tried again, within a deadline.

For what is read a few times a mount (refs, manifests, indexes). Packs come through ``imagefs.cache.link``, which knows more.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar, overload

from imagefs.digest import Buffer
from imagefs.errors import DeadlineError, ImageFSError, StoreError
from imagefs.store.base import ByteRange, KeyInfo, ObjectStore, Start

_FIRST: Final = 0.1
_LONGEST: Final = 3.0
_T = TypeVar("_T")


class PatientReads:
    """The reading half of an ``ObjectStore``. Each call begins its last try before ``deadline`` seconds are over. Blocks."""

    def __init__(self, store: ObjectStore, deadline: float) -> None:
        """``store`` is asked; it may be used by others as well."""
        self._store = store
        self._until = time.monotonic() + deadline

    @overload
    def get(self, key: str) -> bytes: ...

    @overload
    def get(self, key: str, byte_range: ByteRange | None = ...) -> Buffer: ...

    def get(self, key: str, byte_range: ByteRange | None = None) -> Buffer:
        """See the protocol."""
        return self._persist(lambda: self._store.get(key, byte_range))

    def start(self, key: str, most: int) -> Start:
        """See the protocol."""
        return self._persist(lambda: self._store.start(key, most))

    def head(self, key: str) -> KeyInfo:
        """See the protocol."""
        return self._persist(lambda: self._store.head(key))

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        """See the protocol. All of it is read before the first key is given: for what has a few hundred keys at most."""
        return iter(self._persist(lambda: [*self._store.list(prefix)]))

    def _persist(self, call: Callable[[], _T]) -> _T:
        backoff = _FIRST
        while True:
            try:
                return call()
            except ImageFSError as error:
                asked = error.retry_after or 0.0 if isinstance(error, StoreError) else 0.0
                pause = asked + random.uniform(0, backoff)  # noqa: S311 # jitter
                if not error.retryable or time.monotonic() + pause >= self._until:
                    raise
                if isinstance(error, DeadlineError):
                    # It has waited long enough already.
                    pause = 0.0
            time.sleep(pause)
            backoff = min(2 * backoff, _LONGEST)
