"""A store that is another one, reached in some way of its own: what all such have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

from imagefs.digest import Buffer
from imagefs.store.base import ByteRange, KeyInfo, ObjectStore, Start


class ForwardingStore(ABC):
    """Hands each call on, but ``close``: that is for each kind to say."""

    @abstractmethod
    def _reached(self) -> ObjectStore:
        """Return the other one, for one call. May block, and raise what a store may."""

    @abstractmethod
    def close(self) -> None:
        """See the protocol."""

    @property
    def url(self) -> str:
        """See the protocol."""
        return self._reached().url

    @overload
    def get(self, key: str) -> bytes: ...

    @overload
    def get(self, key: str, byte_range: ByteRange | None = ...) -> Buffer: ...

    def get(self, key: str, byte_range: ByteRange | None = None) -> Buffer:
        """See the protocol."""
        return self._reached().get(key, byte_range)

    def start(self, key: str, most: int) -> Start:
        """See the protocol."""
        return self._reached().start(key, most)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See the protocol."""
        return self._reached().get_versioned(key)

    def head(self, key: str) -> KeyInfo:
        """See the protocol."""
        return self._reached().head(key)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        """See the protocol."""
        return self._reached().put_if_absent(key, data)

    def replace(self, key: str, data: Buffer, *, version: str | None) -> str:
        """See the protocol."""
        return self._reached().replace(key, data, version=version)

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        """See the protocol. What reaching it takes is taken before the first page alone."""
        return self._reached().list(prefix)

    def delete(self, key: str) -> bool:
        """See the protocol."""
        return self._reached().delete(key)
