"""A store that is used in the background: each call waits while somebody is in need of the link.

For what is written and read because of profiles, once a start, in small requests: none of it is worth a moment of a reader's. It waits for
so long at most, all calls together, then it goes on all the same: who always reads would never publish. Blocks.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, overload

from imagefs.digest import Buffer
from imagefs.store.base import ByteRange, KeyInfo, ObjectStore

PATIENCE: Final = 300.0
"""Seconds that are waited, at most."""

_LOOK: Final = 0.05


class Courteous:
    """An ``ObjectStore`` around another one, for one piece of work."""

    def __init__(self, store: ObjectStore, busy: Callable[[], bool], patience: float = PATIENCE) -> None:
        """``busy`` says whether somebody is in need of the link, and is called from any thread."""
        self._store = store
        self._busy = busy
        self._until = time.monotonic() + patience

    def _turn(self) -> ObjectStore:
        while self._busy() and time.monotonic() < self._until:
            time.sleep(_LOOK)
        return self._store

    @property
    def url(self) -> str:
        """See the protocol."""
        return self._store.url

    @overload
    def get(self, key: str) -> bytes: ...

    @overload
    def get(self, key: str, byte_range: ByteRange | None = ...) -> Buffer: ...

    def get(self, key: str, byte_range: ByteRange | None = None) -> Buffer:
        """See the protocol."""
        return self._turn().get(key, byte_range)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See the protocol."""
        return self._turn().get_versioned(key)

    def head(self, key: str) -> KeyInfo:
        """See the protocol."""
        return self._turn().head(key)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        """See the protocol."""
        return self._turn().put_if_absent(key, data)

    def replace(self, key: str, data: Buffer, *, version: str | None) -> str:
        """See the protocol."""
        return self._turn().replace(key, data, version=version)

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        """See the protocol. It waits before the first page alone."""
        return self._turn().list(prefix)

    def delete(self, key: str) -> bool:
        """See the protocol."""
        return self._turn().delete(key)

    def close(self) -> None:
        """Leave the other one open: it is others' too."""
