"""Bytes on their way to the SSD tier: a queue bounded by bytes, a file's pieces together. Belongs to the trio thread.

What comes are pieces of an object, or a frame of small objects, whole, which become a file each.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from imagefs.cache.disk_files import Piece
from imagefs.cache.members import Member
from imagefs.digest import Buffer

QUEUE_MAX: Final = 96 << 20
"""Bytes that wait to be written, at most."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes belong: an object's digest, and its size in bytes. ``holes`` yields the ranges that need no bytes.

    With ``members`` it is a frame's digest, and that returns the small objects which lie in it; called in a thread.
    """

    name: bytes
    size: int
    holes: Callable[[], Iterable[tuple[int, int]]]
    members: Callable[[], Sequence[Member]] | None = None


@dataclass(slots=True)
class Waiting:
    """What waits to be written to one place: ``size`` bytes in all. ``written`` are to be called when it is there."""

    place: Place
    pieces: list[Piece] = field(default_factory=list)
    written: list[Callable[[], None]] = field(default_factory=list)
    size: int = 0

    def tell(self) -> None:
        """Say that it is there."""
        for callback in self.written:
            callback()


class LandingQueue:
    """The queue: first come, first written, file by file."""

    __slots__ = ("_waiting", "size")

    def __init__(self) -> None:
        """Start empty. ``size`` is in bytes."""
        self._waiting: OrderedDict[bytes, Waiting] = OrderedDict()
        self.size = 0

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    def __contains__(self, name: object) -> bool:
        """Whether anything waits for a file."""
        return name in self._waiting

    def add(self, place: Place, offset: int, data: Buffer, written: Callable[[], None]) -> bool:
        """Add bytes of a file; False if there is no room."""
        if self.size + len(data) > QUEUE_MAX:
            return False
        waiting = self._waiting.get(place.name)
        if waiting is None:
            waiting = self._waiting[place.name] = Waiting(place)
        waiting.pieces.append(Piece(offset, data))
        waiting.written.append(written)
        waiting.size += len(data)
        self.size += len(data)
        return True

    def pop(self) -> Waiting:
        """Take out what waits for the file that came first."""
        waiting = self._waiting.popitem(last=False)[1]
        self.size -= waiting.size
        return waiting

    def clear(self) -> int:
        """Forget everything; return how many bytes it were."""
        size, self.size = self.size, 0
        self._waiting.clear()
        return size
