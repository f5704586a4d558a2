"""A store that fails as it is told to: faults as inputs."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from imagefs.digest import Buffer
from imagefs.store.base import ByteRange, KeyInfo, ObjectStore, Start


@dataclass(slots=True)
class Fault:
    """What happens on calls of ``op`` for keys like ``keys`` (a glob), from the ``first`` of them on, ``times`` times.

    ``error`` is raised; ``change`` is applied to the bytes that a read returns; ``before`` is called first, and may block on an event.
    """

    op: str
    keys: str = "*"
    first: int = 1
    times: int = 1_000_000
    error: Exception | None = None
    change: Callable[[bytes], bytes] | None = None
    before: Callable[[], object] | None = None
    seen: int = 0

    def hits(self, op: str, key: str) -> bool:
        """Count a call, and say whether it is one that fails."""
        if op != self.op or not fnmatch.fnmatch(key, self.keys):
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.times


def flipped(data: bytes) -> bytes:
    """Flip one bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def truncated(data: bytes) -> bytes:
    """Lose the second half."""
    return data[: len(data) // 2]


@dataclass(slots=True)
class FaultyStore:
    """An ``ObjectStore`` around another, with faults. ``calls`` lists what was asked for, in order."""

    inner: ObjectStore
    faults: Sequence[Fault] = ()
    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.inner.url

    def _enter(self, op: str, key: str) -> Callable[[bytes], bytes] | None:
        self.calls.append((op, key))
        change = None
        for fault in self.faults:
            if fault.hits(op, key):
                if fault.before is not None:
                    fault.before()
                if fault.error is not None:
                    raise fault.error
                change = fault.change or change
        return change

    def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        change = self._enter("get", key)
        data = bytes(self.inner.get(key, byte_range))
        return change(data) if change else data

    def start(self, key: str, most: int) -> Start:
        change = self._enter("get", key)  # a fault that hits what is read hits this as well
        found = self.inner.start(key, most)
        return Start(changed := change(found.data), len(changed), found.version) if change else found

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        change = self._enter("get_versioned", key)
        data, version = self.inner.get_versioned(key)
        return (change(data) if change else data), version

    def head(self, key: str) -> KeyInfo:
        self._enter("head", key)
        return self.inner.head(key)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        self._enter("put_if_absent", key)
        return self.inner.put_if_absent(key, data)

    def replace(self, key: str, data: Buffer, *, version: str | None) -> str:
        self._enter("replace", key)
        return self.inner.replace(key, data, version=version)

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        self._enter("list", prefix)
        return self.inner.list(prefix)

    def delete(self, key: str) -> bool:
        self._enter("delete", key)
        return self.inner.delete(key)

    def close(self) -> None:
        self.inner.close()
