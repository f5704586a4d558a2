"""The object map: each byte of each object is found where it is, and a map that was touched never leads outside."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, IntegrityError, UnsupportedError
from imagefs.format.objectmap import HOLE, Extent, ObjectMap, build_object_map
from imagefs.format.pack import ENTRY_SIZE, FOOTER_SIZE, FrameEntry

Packs = list[tuple[bytes, bytes, int, list[FrameEntry]]]


@dataclass(frozen=True)
class Item:
    digest: bytes
    size: int
    extents: list[Extent]


@st.composite
def maps(draw: st.DrawFn) -> tuple[list[Item], Packs]:
    """Packs of frames, and objects whose extents are any runs of any frames, and holes."""
    packs: Packs = []
    lengths: list[int] = []
    for number in range(draw(st.integers(1, 4))):
        frames, offset = [], 0
        for index in range(draw(st.integers(1, 5))):
            length = draw(st.integers(1, 5000))
            frames.append(FrameEntry(digest_of(b"%d-%d" % (number, index)), offset, length, length, 0))
            lengths.append(length)
            offset += length
        packs.append((digest_of(b"p%d" % number), digest_of(b"k%d" % number), offset + len(frames) * ENTRY_SIZE + FOOTER_SIZE, frames))
    items = []
    for number in range(draw(st.integers(0, 8))):
        extents: list[Extent] = []
        position = 0
        for _ in range(draw(st.integers(1, 6))):
            frame = draw(st.integers(-1, len(lengths) - 1))
            if frame < 0:
                length = draw(st.integers(1, 1 << 40))
                extents.append(Extent(position, length, HOLE, 0))
            else:
                within = draw(st.integers(0, lengths[frame] - 1))
                length = draw(st.integers(1, lengths[frame] - within))
                extents.append(Extent(position, length, frame, within))
            position += length
        items.append(Item(digest_of(b"o%d" % number), position, extents))
    return sorted(items, key=lambda item: item.digest), packs


@given(maps(), st.data())
def test_every_row_is_read_back(made: tuple[list[Item], Packs], data: st.DataObject) -> None:
    items, packs = made
    raw = build_object_map(items, packs)
    opened = ObjectMap(raw)
    opened.validate()
    assert [(row.digest, row.size) for row in opened] == [(item.digest, item.size) for item in items]
    for item in items:
        row = opened.find(item.digest)
        assert row is not None
        assert opened.extents(row, 0, item.size) == item.extents
        start = data.draw(st.integers(0, item.size - 1))
        end = data.draw(st.integers(start + 1, item.size + 10))
        expected = [e for e in item.extents if e.offset < end and e.offset + e.length > start]
        assert opened.extents(row, start, end) == expected
        most = data.draw(st.integers(1, 7))
        assert opened.extents(row, start, end, most=most) == expected[:most]
    frames = [frame for pack in packs for frame in pack[3]]
    assert [opened.frame(n).digest for n in range(opened.frame_count)] == [frame.digest for frame in frames]
    assert [opened.pack(n).key for n in range(opened.pack_count)] == [pack[1] for pack in packs]
    assert opened.find(digest_of(b"absent")) is None


@settings(max_examples=300)
@given(maps(), st.data())
def test_a_map_that_was_touched_gives_errors_and_nothing_worse(made: tuple[list[Item], Packs], data: st.DataObject) -> None:
    items, packs = made
    raw = bytearray(build_object_map(items, packs))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        opened = ObjectMap(bytes(raw))
        for row in opened:
            for extent in opened.extents(row, 0, min(row.size, 1 << 44)):
                if extent.frame != HOLE:
                    assert extent.frame_offset + extent.length <= opened.frame(extent.frame).length
        opened.validate()
    except ImageFSError:
        pass


@given(maps(), st.data())
def test_a_map_that_was_cut_or_grew_is_refused(made: tuple[list[Item], Packs], data: st.DataObject) -> None:
    raw = build_object_map(*made)
    cut = data.draw(st.integers(0, len(raw) - 1))
    for wrong in (raw[:cut], raw + b"\0"):
        with pytest.raises(IntegrityError):
            ObjectMap(wrong)


def test_another_version_is_told_apart_from_damage() -> None:
    raw = bytearray(build_object_map([], []))
    ObjectMap(bytes(raw)).validate()
    raw[8] = 2
    with pytest.raises(UnsupportedError):
        ObjectMap(bytes(raw))
    raw[0] ^= 1
    with pytest.raises(IntegrityError):
        ObjectMap(bytes(raw))


@pytest.mark.parametrize(
    "extents",
    [[], [Extent(1, 9, HOLE, 0)], [Extent(0, 9, HOLE, 0)], [Extent(0, 10, HOLE, 1)], [Extent(0, 5, HOLE, 0), Extent(6, 4, HOLE, 0)]],
)
def test_rows_that_do_not_fit_together_are_not_written(extents: list[Extent]) -> None:
    with pytest.raises(ValueError, match="object"):
        build_object_map([Item(digest_of(b"x"), 10, extents)], [])
