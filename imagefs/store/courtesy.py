"""A store that is used in the background: each call waits while somebody is in need of the link.

For what is written and read because of profiles, once a start, in small requests: none of it is worth a moment of a reader's. It waits for
so long at most, all calls together, then it goes on all the same: who always reads would never publish. Blocks.
"""

import time
from collections.abc import Callable
from typing import Final

from imagefs.store.base import ObjectStore
from imagefs.store.forwarding import ForwardingStore

PATIENCE: Final = 300.0
"""Seconds that are waited, at most."""

_LOOK: Final = 0.05


class Courteous(ForwardingStore):
    """An ``ObjectStore`` around another one, for one piece of work."""

    def __init__(self, store: ObjectStore, busy: Callable[[], bool], patience: float = PATIENCE) -> None:
        """``busy`` says whether somebody is in need of the link, and is called from any thread."""
        self._store = store
        self._busy = busy
        self._until = time.monotonic() + patience

    def _reached(self) -> ObjectStore:
        while self._busy() and time.monotonic() < self._until:
            time.sleep(_LOOK)
        return self._store

    @property
    def url(self) -> str:
        """See the protocol."""
        return self._store.url

    def close(self) -> None:
        """Leave the other one open: it is others' too."""
