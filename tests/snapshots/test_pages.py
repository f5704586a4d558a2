"""Memory cut by pages: put together again it is what it was, whatever repeats, is zero, or is known from before."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format.objectmap import HOLE, Extent
from imagefs.format.pack import CODEC_RAW, ENTRY_SIZE, FOOTER_SIZE, FrameEntry
from snapshotstore import fingerprints
from snapshotstore.fingerprints import FRAME_PAGES, PAGE, PageIndex, PageTable, TablePack, fingerprint
from snapshotstore.pages import CHUNK, PageCutter, Runs

PAGES = {0: bytes(PAGE), **{kind: kind.to_bytes(2, "little") * (PAGE // 2) for kind in range(1, 40)}}


class Cutting:
    """A cutter, and the frames that it made."""

    def __init__(self) -> None:
        self.index = PageIndex()
        self.frames: dict[int, bytes] = {}
        self.cutter = PageCutter(self.index, self._emit)

    def _emit(self, number: int, pieces: list[bytes]) -> None:
        assert number not in self.frames
        self.frames[number] = b"".join(pieces)
        assert 0 < len(self.frames[number]) <= FRAME_PAGES * PAGE

    def again(self) -> None:
        """Begin another push that knows what there is."""
        self.cutter = PageCutter(self.index, self._emit)

    def cut(self, data: bytes) -> Runs:
        for at in range(0, len(data), CHUNK):
            self.cutter.add(data[at : at + CHUNK])
        return self.cutter.end()

    def joined(self, runs: Runs) -> bytes:
        found = bytearray()
        for offset, length, frame, within in runs.extents(lambda number: number):
            assert offset == len(found)
            piece = bytes(length) if frame == HOLE else self.frames[frame][within : within + length]
            assert len(piece) == length
            assert within % PAGE == 0
            found += piece
        assert len(found) == runs.size
        return bytes(found)


MEMORY = st.builds(
    lambda kinds, rest: b"".join(PAGES[kind] for kind in kinds) + rest,
    st.lists(st.integers(0, 39), max_size=60),
    st.binary(max_size=20),
)


@settings(deadline=None)
@given(st.lists(st.lists(MEMORY, min_size=1, max_size=3), min_size=1, max_size=3))
def test_what_was_cut_is_what_it_was(pushes: list[list[bytes]]) -> None:
    cutting = Cutting()
    seen: set[bytes] = set()
    for files in pushes:
        cutting.again()
        runs = [cutting.cut(data) for data in files]
        cutting.cutter.finish()
        assert [cutting.joined(one) for one in runs] == files
        pages = [data[at : at + PAGE] for data in files for at in range(0, len(data), PAGE)]
        zero = sum(len(page) for page in pages if not any(page))
        assert sum(one.zero for one in runs) == zero
        whole = {page for page in pages if len(page) == PAGE and any(page)}
        ends = sum(len(page) for page in pages if len(page) < PAGE and any(page))
        assert cutting.cutter.stored == len(whole - seen) * PAGE + ends
        seen |= whole


def distinct(count: int, first: int = 1) -> bytes:
    """Return pages that all differ."""
    return b"".join(number.to_bytes(8, "little") * (PAGE // 8) for number in range(first, first + count))


def test_frames_are_full_and_one_extent_each() -> None:
    cutting = Cutting()
    data = distinct(2 * FRAME_PAGES + 3)
    runs = cutting.cut(data)
    cutting.cutter.finish()
    size = FRAME_PAGES * PAGE
    assert runs.extents(lambda number: number) == [Extent(0, size, 0, 0), Extent(size, size, 1, 0), Extent(2 * size, 3 * PAGE, 2, 0)]
    assert [len(frame) for frame in cutting.frames.values()] == [size, size, 3 * PAGE]


def test_a_frame_may_end_anywhere_in_a_file() -> None:
    cutting = Cutting()
    files = [distinct(100), distinct(2 * FRAME_PAGES, 1000)]
    runs = [cutting.cut(data) for data in files]
    cutting.cutter.finish()
    assert [cutting.joined(one) for one in runs] == files
    assert [extent.length // PAGE for extent in runs[1].extents(lambda number: number)] == [FRAME_PAGES - 100, FRAME_PAGES, 100]


def test_pages_that_are_known_elsewhere_are_runs_of_their_frames() -> None:
    cutting = Cutting()
    cutting.cut(distinct(100))
    cutting.cutter.finish()
    cutting.again()
    # Shifted by two pages, one replaced, one zeroed: what was known stays in runs.
    data = distinct(2, 1000) + distinct(40) + distinct(1, 2000) + distinct(20, 42) + bytes(PAGE) + distinct(37, 62)
    runs = cutting.cut(data)
    cutting.cutter.finish()
    assert cutting.joined(runs) == data
    assert cutting.cutter.stored == 3 * PAGE
    assert [extent.length // PAGE for extent in runs.extents(lambda number: number)] == [2, 40, 1, 20, 1, 37]


def test_what_follows_the_end_of_a_file_begins_with_a_page_of_its_frame() -> None:
    cutting = Cutting()
    files = [distinct(3) + b"end", distinct(2, 100), b"x" * 100, distinct(1, 7)]
    runs = [cutting.cut(data) for data in files]
    cutting.cutter.finish()
    assert [cutting.joined(one) for one in runs] == files


def test_a_page_is_the_same_only_if_all_of_its_fingerprint_is() -> None:
    index = PageIndex()
    name = fingerprint(distinct(1))
    near = name[:15] + bytes([name[15] ^ 1])
    index.add_frame(near)
    assert index.find(name) == -1
    assert index.find(near) == 0
    assert len(name) == 16


def test_an_index_finds_all_that_it_was_given_however_large_it_grows() -> None:
    index = PageIndex()
    prints = [number.to_bytes(16, "big") for number in range(1, 20_001)]
    # Fingerprints that begin alike fall into one place of the hash table.
    prints[:100] = [bytes([7] * 8) + bytes([number + 1] * 8) for number in range(100)]
    spread = [fingerprint(name * (PAGE // 16)) for name in prints]
    for start in range(0, len(spread), FRAME_PAGES):
        index.add_frame(b"".join(spread[start : start + FRAME_PAGES]))
    index.add_frame(b"".join(prints[:100]))
    assert [index.find(name) for name in spread] == list(range(len(spread)))
    base = (len(spread) + FRAME_PAGES - 1) // FRAME_PAGES * FRAME_PAGES
    assert [index.find(name) for name in prints[:100]] == list(range(base, base + 100))


def table() -> PageTable:
    frames = [FrameEntry(b"a" * 32, 0, 2 * PAGE, 2 * PAGE, CODEC_RAW), FrameEntry(b"b" * 32, 2 * PAGE, PAGE + 5, PAGE + 5, CODEC_RAW)]
    size = 3 * PAGE + 5 + 2 * ENTRY_SIZE + FOOTER_SIZE
    return PageTable([TablePack(b"p" * 32, b"k" * 32, size, frames)], [b"0" * 32, b"1" * 16])


def test_a_table_is_read_back() -> None:
    found = fingerprints.decode(fingerprints.encode(table()))
    assert (found.packs, [bytes(one) for one in found.prints]) == (table().packs, table().prints)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_table_is_refused_or_harmless(data: st.DataObject) -> None:
    raw = bytearray(fingerprints.encode(table()))
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    try:
        found = fingerprints.decode(bytes(raw))
    except (IntegrityError, UnsupportedError):
        return
    for pack in found.packs:
        assert sum(frame.stored for frame in pack.frames) + len(pack.frames) * ENTRY_SIZE + FOOTER_SIZE == pack.size
    assert [len(one) // 16 for one in found.prints] == [frame.length // PAGE for pack in found.packs for frame in pack.frames]


def test_another_version_is_refused() -> None:
    raw = bytearray(fingerprints.encode(table()))
    raw[8] = 2
    with pytest.raises(UnsupportedError):
        fingerprints.decode(bytes(raw))
