"""Memory is cut by pages: what is zero is a hole, what is known is a reference, and the rest is gathered into new frames. Pure.

A memory file is a run of pages of 4096 bytes, of which the last may be shorter. For each the cutter says where its bytes are: nowhere (a
hole), in a frame that the lineage has, or in a new one; new frames hold pages one behind the other, in the order in which they came, up to
4 MiB, whatever holes and references lie between them, also across files. A run of pages that follow each other in one frame is one extent.

Invariants: extents cover the file without gap or overlap, and each lies in one frame, from a page of it on; a page that is zero is neither
fingerprinted nor stored; one that is met twice is stored once, within the bounds of the index; what is decided depends on the index and on
the bytes alone. No Python object stays for a page: a run takes 24 bytes.

What does not live here: how frames become packs (``snapshotstore.packing``), and which pages are known (``snapshotstore.fingerprints``).
"""

from array import array
from collections.abc import Callable
from typing import Final

from imagefs.digest import Hasher
from imagefs.format.objectmap import HOLE, Extent
from snapshotstore.fingerprints import FINGERPRINT_SIZE, FRAME_PAGES, PAGE, PageIndex

CHUNK: Final = 256 * PAGE
"""Bytes that are best given to :meth:`PageCutter.add` at once."""

_ZERO: Final = bytes(PAGE)
_ZEROS: Final = bytes(CHUNK)
_NOWHERE: Final = (1 << 64) - 1
_RUN: Final = 3

Emit = Callable[[int, list[bytes]], None]
"""Takes a new frame when it is whole: its number in the index, and its content in pieces."""


class Runs:
    """Where the bytes of one file are. ``data`` has offset, length in bytes, and position for each run."""

    __slots__ = ("data", "size", "zero")

    def __init__(self) -> None:
        """Cover nothing yet. ``size`` is what is covered, ``zero`` how much of that are holes, in bytes."""
        self.data: array[int] = array("Q")
        self.size = 0
        self.zero = 0

    def add(self, length: int, position: int) -> None:
        """Add ``length`` bytes, of which the first are those at ``position``, within one frame; or a hole."""
        if self.data and self._follows(position):
            self.data[-2] += length
        else:
            self.data.extend((self.size, length, position))
        self.size += length
        if position == _NOWHERE:
            self.zero += length

    def _follows(self, position: int) -> bool:
        """Say whether the last run goes on at a position."""
        length, last = self.data[-2:]
        if _NOWHERE in {position, last}:
            return position == last
        return position == last + length // PAGE and position // FRAME_PAGES == last // FRAME_PAGES

    def frames(self) -> set[int]:
        """Return the numbers of the frames that they lie in."""
        return {position // FRAME_PAGES for position in self.data[2::_RUN] if position != _NOWHERE}

    def extents(self, number: Callable[[int], int]) -> list[Extent]:
        """Return them as an object map has them; ``number`` returns for a frame's number in the index that in the map."""
        data = self.data
        return [
            Extent(offset, length, HOLE, 0)
            if position == _NOWHERE
            else Extent(offset, length, number(position // FRAME_PAGES), position % FRAME_PAGES * PAGE)
            for offset, length, position in zip(data[::_RUN], data[1::_RUN], data[2::_RUN], strict=True)
        ]


class PageCutter:
    """Cuts the memory files of one snapshot, one after the other. Belongs to one thread."""

    def __init__(self, index: PageIndex, emit: Emit) -> None:
        """``emit`` is given each new frame as soon as it is whole."""
        self._index = index
        self._emit = emit
        # The open frame, -1 where there is none; what is in it, and the position of what comes next.
        self._number = -1
        self._pieces: list[bytes] = []
        self._next = -1
        self._runs = Runs()
        self._expected = 0
        self.stored = 0
        """Bytes that went into new frames, as far as those were given away."""

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of a file: whole pages, but at its end."""
        runs = self._runs
        if chunk == _ZEROS:
            runs.add(CHUNK, _NOWHERE)
            return
        whole = len(chunk) // PAGE * PAGE
        enter, prints, expected = self._index.enter, self._index.prints, self._expected
        first = last = _NOWHERE
        count = 0
        fresh = -1
        # All in one loop, and of a run only its end is told: called for each page, that took longer than the fingerprints.
        for at in range(0, whole, PAGE):
            page = chunk[at : at + PAGE]
            is_new = False
            if page == _ZERO:
                position = _NOWHERE
            else:
                name = Hasher(page).digest(length=FINGERPRINT_SIZE)
                # Where the page is that follows the one before: memory that was known is known in its order. What is new keeps its place.
                guess = expected * FINGERPRINT_SIZE
                expected += 1
                if prints[guess : guess + FINGERPRINT_SIZE] == name:
                    position = expected - 1
                else:
                    new = self._next if self._next >= 0 else self._open()
                    position = enter(name, new)
                    is_new = position == new
                    if not is_new:
                        expected = position + 1
            if is_new:
                if fresh < 0:
                    fresh = at
                self._next = position + 1
                if self._next % FRAME_PAGES == 0:
                    self._pieces.append(chunk[fresh : at + PAGE])
                    self._close()
                    fresh = -1
            elif fresh >= 0:
                self._pieces.append(chunk[fresh:at])
                fresh = -1
            if (position == last + 1 and position % FRAME_PAGES) or (position == last == _NOWHERE and count):
                count += 1
            else:
                if count:
                    runs.add(count * PAGE, first)
                first, count = position, 1
            last = position
        if fresh >= 0:
            self._pieces.append(chunk[fresh:whole])
        if count:
            runs.add(count * PAGE, first)
        self._expected = expected
        if whole < len(chunk):
            self._add_end(chunk[whole:])

    def end(self) -> Runs:
        """Return where the bytes of the file are that ends here. Its frames may not be whole yet."""
        runs, self._runs = self._runs, Runs()
        return runs

    def finish(self) -> None:
        """Give the last frame away."""
        if self._pieces:
            self._close()

    def _open(self) -> int:
        """Return the position of the first page of a new frame."""
        self._number = self._index.open_frame()
        self._next = self._number * FRAME_PAGES
        return self._next

    def _add_end(self, rest: bytes) -> None:
        """Take the last bytes of a file, less than a page. They end their frame: what follows has to begin with a page."""
        if rest.count(0) == len(rest):
            self._runs.add(len(rest), _NOWHERE)
            return
        self._runs.add(len(rest), self._next if self._next >= 0 else self._open())
        self._pieces.append(rest)
        self._close()

    def _close(self) -> None:
        """Give the open frame away."""
        pieces, self._pieces = self._pieces, []
        self._next = -1
        self.stored += sum(map(len, pieces))
        self._emit(self._number, pieces)
