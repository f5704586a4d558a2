"""What a Start consists of (``starts``): facts that hold for all of it, names of what was accessed and by whom, and columns of integers."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

EVENTS_MAX: Final = 65536
"""Opens, reads, GETs and ranges of one Start, each: what is more is counted, not kept."""


class File(NamedTuple):
    """What was accessed: an object by its digest, or by its nid a file whose content is in the tree. ``nid`` is -1 where not known."""

    key: bytes | int
    size: int
    nid: int


class Process(NamedTuple):
    """Who accessed: a process's id, its command line, its parent's id (0: not known)."""

    pid: int
    command: str
    parent: int


@dataclass(slots=True)
class Facts:
    """What a Start is of. It is in the document as it is; what is found out meanwhile is filled in.

    ``manifest`` is a hex digest; ``mode`` ``kernel`` or ``fuse``; ``host`` and ``image`` as in the document. ``profile``: what was
    prefetched from. ``optimized``: what the image was made of by ``imagefs optimize``.
    """

    manifest: str
    ref: str = ""
    mountpoint: str = ""
    mode: str = "fuse"
    label: str = ""
    entry: list[str] = field(default_factory=list)
    gpu: str = ""
    watched: bool = False
    host: dict[str, object] = field(default_factory=dict)
    image: dict[str, int] = field(default_factory=dict)
    optimized: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None


class Columns:
    """Rows of integers, at most ``EVENTS_MAX``."""

    __slots__ = ("_width", "lost", "values")

    def __init__(self, width: int) -> None:
        self._width = width
        self.values = array("q")
        self.lost = 0

    def __len__(self) -> int:
        return len(self.values) // self._width

    def __copy__(self) -> "Columns":
        other = Columns(self._width)
        other.values, other.lost = self.values[:], self.lost
        return other

    def add(self, *row: int) -> None:
        """Keep a row, or count it as lost."""
        if len(self.values) < EVENTS_MAX * self._width:
            self.values.extend(row)
        else:
            self.lost += 1

    def rows(self) -> Iterator[list[int]]:
        """Yield the rows."""
        values, width = self.values, self._width
        for at in range(0, len(values), width):
            yield values[at : at + width].tolist()
