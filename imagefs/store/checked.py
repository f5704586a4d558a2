"""A store as it looks to a writer who does not trust what it holds: what is not what its name says is not there, and is written again.

A writer skips what a store has. Where that was damaged in the store it would be skipped for ever, and no writer would ever heal it.

What it promises:

- ``head`` of a pack, a blob or a manifest reads all of it, once, and raises ``NotFoundError`` if it is not what its name says; so what asks
  whether something is there, to refer to it or to skip it, does neither.
- ``put_if_absent`` of one puts what is given in the place of what is wrong, atomically, and leaves alone what is right.
- What looks wrong is read once more before it is called so: it may have been damaged on its way here.

All else is the store's, reading too: who reads verifies anyway. Looking takes a few megabytes a thread, whatever the size.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from imagefs.digest import Buffer, Hasher
from imagefs.errors import ConflictError, IntegrityError, NotFoundError
from imagefs.store.base import ByteRange, KeyInfo, ObjectStore
from imagefs.store.forwarding import ForwardingStore
from imagefs.store.images import check_blob

_LOOKS: Final = 2
_TRIES: Final = 5
_STEP: Final = 4 * 1024 * 1024


class CheckedStore(ForwardingStore):
    """See the module. ``healed`` has the keys that were written over what was wrong. Closing it leaves the store open."""

    def __init__(self, store: ObjectStore) -> None:
        """Nothing is looked at yet."""
        self._store = store
        self._lock = threading.Lock()
        self._right: set[str] = set()
        self.healed: list[str] = []

    def _reached(self) -> ObjectStore:
        return self._store

    def close(self) -> None:
        """Do nothing: the store is somebody else's."""

    def head(self, key: str) -> KeyInfo:
        """See the module."""
        found = self._store.head(key)
        if not self._is_right(key):
            raise NotFoundError(f"what the store has as {key} is damaged")
        return found

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        """See the module; True also if it was put in the place of something else. ``data`` is what the key says."""
        for _ in range(_TRIES):
            if self._store.put_if_absent(key, data):
                return True
            try:
                if self._is_right(key):
                    return False
                _, version = self._store.get_versioned(key)
                self._store.replace(key, _joined(data), version=version)
            except (NotFoundError, ConflictError):
                continue  # another writer has healed it, or a collector took it away: look again
            with self._lock:
                self.healed.append(key)
                self._right.add(key)
            return True
        raise ConflictError(f"{key} is damaged, and changes all the time", hint="try again")

    def _is_right(self, key: str) -> bool:
        check = _CHECKS.get(key.partition("/")[0])
        if check is None or key in self._right:
            return True
        for _ in range(_LOOKS):
            with suppress(IntegrityError):
                check(self._store, key)
                with self._lock:
                    self._right.add(key)
                return True
        return False

    def delete(self, key: str) -> bool:
        """See the protocol."""
        with self._lock:
            self._right.discard(key)
        return self._store.delete(key)


def _check_plain(store: ObjectStore, key: str) -> None:
    """Read all of what is named by the digest of its bytes as they are stored. ``IntegrityError``."""
    size, hasher = store.head(key).size, Hasher()
    for start in range(0, size, _STEP):
        hasher.update(store.get(key, ByteRange(start, min(start + _STEP, size))))
    if hasher.hexdigest() != key.rpartition("/")[2]:
        raise IntegrityError(f"{key} is damaged: its bytes do not have that digest")


_CHECKS: Final[dict[str, Callable[[ObjectStore, str], None]]] = {
    "packs": _check_plain,
    "manifests": _check_plain,
    "blobs": lambda store, key: check_blob(store, key.rpartition("/")[2]),
}


def _joined(data: Buffer | Sequence[Buffer]) -> Buffer:
    return data if isinstance(data, bytes | bytearray | memoryview) else b"".join(data)
