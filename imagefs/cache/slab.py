"""A slab: one contiguous buffer for the frames of a window of a large object, or for one frame; and the buffers that go round.

Invariants:

- the bytes of a piece that is ``READY`` or ``AHEAD`` are verified and never change as long as anybody can see them: a slab's buffer
  serves another slab only when neither the slab nor any view of the buffer is left;
- a buffer that served another slab holds that one's bytes, so only a slab that is filled whole gets one.

Why buffers go round: a page that a process has not touched yet is zeroed by the kernel, and in a virtual machine often fetched from the
host first. Measured, that was two fifths of the daemon's CPU time in a cold read. What does not live here: which slabs there are
(``imagefs.cache.ram``).
"""

import contextlib
import mmap
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from typing import Final

import trio

from imagefs.errors import ImageFSError

MISSING: Final = 0
IN_FLIGHT: Final = 1
READY: Final = 2
AHEAD: Final = 3
"""Like ``READY``, and nobody has read it yet: it was fetched before anybody asked for it."""

SLAB_MAX: Final = 4 * 1024 * 1024
"""Bytes of the largest slab. Buffers of this size go round."""

POOL_MAX: Final = 8
"""Buffers that are kept for slabs to come, at most."""

_MMAP_FROM: Final = 64 * 1024

_SLAB_BYTES: Final = 1024
_PIECE_BYTES: Final = 40
"""What a slab takes besides its bytes, and each piece of it: 1,020 and 39, as the memory of a process with 50,000 of them grows."""


class Pool:
    """Buffers that no slab has. Belongs to the trio thread, but that a thread may be the last to let go of a slab."""

    __slots__ = ("_buffers",)

    def __init__(self) -> None:
        """Start empty."""
        self._buffers: list[mmap.mmap] = []

    def __len__(self) -> int:
        """Count them."""
        return len(self._buffers)

    def put(self, buffer: mmap.mmap) -> None:
        """Keep a buffer that nobody else can see, if there is room for it."""
        if len(self._buffers) < POOL_MAX:
            self._buffers.append(buffer)

    def take(self) -> mmap.mmap | None:
        """Return a buffer with anything in it; None if there is none."""
        try:
            return self._buffers.pop()
        except IndexError:
            return None

    def clear(self) -> None:
        """Give all of them back to the system."""
        self._buffers.clear()


class _Holder:
    """What has a buffer. The buffer's views count as its holders too."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: mmap.mmap | bytearray) -> None:
        self.buffer = buffer

    def holders(self) -> int:
        """Count who refers to the buffer, as the interpreter counts it."""
        return sys.getrefcount(self.buffer)


_ALONE: Final = _Holder(bytearray()).holders()
"""What ``holders`` returns when there is but one: this differs between versions of the interpreter."""


class Slab(_Holder):
    """One buffer and the state of each of its pieces.

    Piece ``i`` is bytes ``bounds[i]`` to ``bounds[i + 1]`` of ``view``. Readers that wait for one park in ``lot`` and look again when
    woken. ``missing`` counts the pieces that are neither ``READY`` nor ``AHEAD``, ``unread`` those that are ``AHEAD``. ``landed`` is how
    many bytes are there, ``unsaved`` how many of them only RAM has. ``due``, ``hits`` and ``main`` belong to the RAM tier.
    """

    __slots__ = (
        "_pool",
        "bounds",
        "dropped",
        "due",
        "hits",
        "in_flight",
        "key",
        "landed",
        "lot",
        "main",
        "missing",
        "state",
        "unread",
        "unsaved",
    )

    def __init__(self, key: Hashable, bounds: Sequence[int]) -> None:
        """``bounds`` are the pieces' limits in bytes, from 0 to the size of the slab."""
        self._pool: Pool | None = None
        size = bounds[-1]
        # A mapping of its own goes back to the system when it is let go of, and takes memory only where it is written to. A private one:
        # Python's default is a shared one, whose faults go through shmem (a tenth of a first read's CPU time). Not in huge pages: a
        # slab that is read here and there would take up to 2 MiB for each 256 KiB that are counted.
        super().__init__(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if size >= _MMAP_FROM else bytearray(size))
        self.key = key
        self.bounds = bounds
        self.state = bytearray(len(bounds) - 1)
        self.missing = len(bounds) - 1
        self.unread = 0
        self.in_flight = 0
        self.landed = 0
        self.unsaved = 0
        self.lot = trio.lowlevel.ParkingLot()
        self.dropped: ImageFSError | None = None
        self.due = 0
        self.hits = 0
        self.main = False

    def __del__(self) -> None:
        pool, buffer = self._pool, self.buffer
        if pool is not None and isinstance(buffer, mmap.mmap):
            del buffer
            if self.holders() == _ALONE:
                pool.put(self.buffer)  # type: ignore[arg-type] # it is what was just looked at

    @property
    def view(self) -> memoryview:
        """The bytes, as a new view: each counts as a holder of the buffer until it goes."""
        return memoryview(self.buffer)

    @property
    def on_disk(self) -> bool:
        """Whether every piece that is there is on SSD too."""
        return not self.unsaved

    @property
    def is_round(self) -> bool:
        """Whether its buffer is one of those that go round."""
        return self._pool is not None

    @property
    def weight(self) -> int:
        """The bytes of memory that it takes: those that are there, and the objects that it consists of."""
        return self.landed + _SLAB_BYTES + _PIECE_BYTES * len(self.state)

    def pieces(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first and the last (exclusive) of the pieces that hold bytes ``start`` to ``stop`` (exclusive)."""
        return bisect_right(self.bounds, start) - 1, bisect_left(self.bounds, stop)

    def fill(self, pool: Pool) -> None:
        """Say that all of it will be written, before any of it is there or on its way: a buffer of ``pool`` serves it, else huge pages do.

        Its buffer goes to the pool afterwards.
        """
        buffer = self.buffer
        if not isinstance(buffer, mmap.mmap):
            return
        if len(buffer) == SLAB_MAX:
            self._pool = pool
            self.buffer = pool.take() or buffer
        if self.buffer is buffer:
            # A fault each two megabytes in place of one each page, and two pages to pin for a read of SSD in place of a thousand: without
            # them such reads were slower by two fifths. A copy out of them is slower by a twentieth.
            with contextlib.suppress(OSError):  # there are kernels that have none
                buffer.madvise(mmap.MADV_HUGEPAGE)

    def has(self, first: int, last: int) -> bool:
        """Say whether all pieces from ``first`` to ``last`` (exclusive) are there."""
        state = self.state
        ready = state.count(READY, first, last)
        return ready == last - first or ready + state.count(AHEAD, first, last) == last - first

    def read(self, first: int, last: int) -> list[int]:
        """Note that pieces from ``first`` to ``last`` (exclusive), which are there, were read; return those that were not before."""
        fresh = [piece for piece in range(first, last) if self.state[piece] == AHEAD]
        for piece in fresh:
            self.state[piece] = READY
        self.unread -= len(fresh)
        return fresh

    def set_ready(self, piece: int, *, ahead: bool = False, saved: bool = False) -> int:
        """Show a piece to readers; return its size in bytes. ``ahead``: no reader waits for it; ``saved``: SSD has it too."""
        self.state[piece] = AHEAD if ahead else READY
        self.unread += ahead
        self.missing -= 1
        size = self.bounds[piece + 1] - self.bounds[piece]
        self.landed += size
        self.unsaved += 0 if saved else size
        return size
