"""Small objects on their way to the SSD tier: the content of a frame becomes a file an object.

Invariant: an object is written only if its bytes have the digest that is its name. So an object map that lies about what a frame holds
puts nothing here, and other images are not shown it.

Blocking functions, run in a thread. What does not live here: making the files durable and giving them their places (``disk_files``).
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from blake3 import blake3

from imagefs.cache.disk_files import Folders
from imagefs.cache.disk_index import DiskIndex
from imagefs.cache.disk_queue import Waiting
from imagefs.cache.members import Member
from imagefs.errors import ImageFSError

_BLOCK = 4096


class SmallFile(NamedTuple):
    """A file that was written, and waits for its place: its object, its size, and the bytes that it takes on disk."""

    name: bytes
    size: int

    @property
    def held(self) -> int:
        """Bytes on disk: whole blocks."""
        return -(-self.size // _BLOCK) * _BLOCK


def write_members(folders: Folders, index: DiskIndex, frames: Iterable[Waiting]) -> tuple[list[SmallFile], OSError | None]:
    """Write the objects of frames; return those that were not there before, and what the disk refused the rest for."""
    written: list[SmallFile] = []
    try:
        for waiting in frames:
            data = memoryview(waiting.pieces[0].data)
            for (name, size, _, _), offset in _members(waiting):
                content = data[offset : offset + size]
                if index.get(name) is not None or blake3(content).digest() != name:
                    continue
                if folders.write_small(name, content):
                    written.append(SmallFile(name, size))
    except OSError as error:
        return written, error
    return written, None


def _members(waiting: Waiting) -> Sequence[Member]:
    # A map that is unsound here is so for its own image; whoever reads what it leads to is told.
    with contextlib.suppress(ImageFSError):
        return waiting.place.members() if waiting.place.members is not None else ()
    return ()
