"""A map that was made from another one by moving extents: what moved is there, and all else is where it was."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, IntegrityError
from imagefs.format.objectmap import HOLE, Extent, ObjectMap, build_object_map
from imagefs.format.pack import ENTRY_SIZE, FOOTER_SIZE, FrameEntry
from imagefs.format.relocation import PackRows, relocated

Spot = tuple[bytes, bytes, int, int]
"""Where an extent's bytes are, whatever the numbers: pack, frame, the frame's offset in the pack, the extent's in the frame."""


def pack_of(name: bytes, lengths: list[int]) -> PackRows:
    frames, offset = [], 0
    for index, length in enumerate(lengths):
        frames.append(FrameEntry(digest_of(b"%s-%d" % (name, index)), offset, length, length, 0))
        offset += length
    return digest_of(b"p" + name), digest_of(b"k" + name), offset + len(frames) * ENTRY_SIZE + FOOTER_SIZE, frames


class Item:
    def __init__(self, name: bytes, extents: list[Extent]) -> None:
        self.digest = digest_of(name)
        self.extents = extents
        self.size = sum(extent.length for extent in extents)


LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=5)


@st.composite
def images(draw: st.DrawFn) -> bytes:
    packs = [pack_of(b"old%d" % number, draw(LENGTHS)) for number in range(draw(st.integers(1, 4)))]
    lengths = [frame.length for pack in packs for frame in pack[3]]
    items = []
    for number in range(draw(st.integers(0, 8))):
        extents: list[Extent] = []
        position = 0
        for _ in range(draw(st.integers(1, 6))):
            frame = draw(st.integers(-1, len(lengths) - 1))
            within = 0 if frame < 0 else draw(st.integers(0, lengths[frame] - 1))
            length = draw(st.integers(1, 10_000 if frame < 0 else lengths[frame] - within))
            extents.append(Extent(position, length, HOLE if frame < 0 else frame, within))
            position += length
        items.append(Item(b"o%d" % number, extents))
    return build_object_map(sorted(items, key=lambda item: item.digest), packs)


@st.composite
def moves_of(draw: st.DrawFn, objects: ObjectMap) -> tuple[dict[bytes, dict[int, tuple[int, int]]], list[PackRows]]:
    """Some extents, each to a frame of its own with something before and behind it, in a few packs."""
    chosen = [
        (row.digest, extent)
        for row in objects
        for extent in objects.extents(row, 0, row.size)
        if extent.frame != HOLE and draw(st.booleans())
    ]
    moves: dict[bytes, dict[int, tuple[int, int]]] = {}
    lengths = []
    for number, (digest, extent) in enumerate(chosen):
        before = draw(st.integers(0, 9))
        moves.setdefault(digest, {})[extent.offset] = (number, before)
        lengths.append(before + extent.length + draw(st.integers(0, 9)))
    packs: list[PackRows] = []
    while lengths:
        count = draw(st.integers(1, len(lengths)))
        packs.append(pack_of(b"new%d" % len(packs), lengths[:count]))
        del lengths[:count]
    return moves, packs


def spots(objects: ObjectMap) -> dict[tuple[bytes, int], tuple[int, Spot | None]]:
    """Return length and place of every extent by object and offset."""
    found: dict[tuple[bytes, int], tuple[int, Spot | None]] = {}
    for row in objects:
        for extent in objects.extents(row, 0, row.size):
            spot = None
            if extent.frame != HOLE:
                frame = objects.frame(extent.frame)
                spot = objects.pack(frame.pack).digest, frame.digest, frame.offset, extent.frame_offset
            found[row.digest, extent.offset] = extent.length, spot
    return found


@given(images(), st.data())
def test_what_moves_is_in_its_new_frame_and_nothing_else_moves(raw: bytes, data: st.DataObject) -> None:
    base = ObjectMap(raw)
    moves, packs = data.draw(moves_of(base))
    made = ObjectMap(relocated(base, moves, packs))
    made.validate()
    frames = [(pack[0], frame) for pack in packs for frame in pack[3]]
    before, after = spots(base), spots(made)
    assert before.keys() == after.keys()
    for (digest, offset), (length, spot) in before.items():
        if offset in moves.get(digest, {}):
            number, within = moves[digest][offset]
            pack, frame = frames[number]
            expected: Spot | None = (pack, frame.digest, frame.offset, within)
        else:
            expected = spot
        assert after[digest, offset] == (length, expected)


@given(images(), st.data())
def test_packs_are_the_new_ones_and_then_those_that_are_needed(raw: bytes, data: st.DataObject) -> None:
    base = ObjectMap(raw)
    moves, packs = data.draw(moves_of(base))
    made = ObjectMap(relocated(base, moves, packs))
    needed = {spot[0] for _, spot in spots(made).values() if spot is not None}
    old = [base.pack(number).digest for number in range(base.pack_count)]
    assert [made.pack(number).digest for number in range(made.pack_count)] == [
        *(pack[0] for pack in packs),
        *(digest for digest in old if digest in needed),
    ]


@given(images(), st.data())
def test_an_unsound_map_gives_errors_and_nothing_worse(raw: bytes, data: st.DataObject) -> None:
    moves, packs = data.draw(moves_of(ObjectMap(raw)))
    touched = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        touched[data.draw(st.integers(0, len(touched) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        made = ObjectMap(relocated(ObjectMap(bytes(touched)), moves, packs))
    except ImageFSError:
        return
    for row in made:
        made.extents(row, 0, row.size)


ITEM: Any = Item(b"x", [Extent(0, 10, 0, 0), Extent(10, 10, 0, 10)])


def test_a_place_outside_of_its_frame_is_refused() -> None:
    base = ObjectMap(build_object_map([ITEM], [pack_of(b"old", [20])]))
    with pytest.raises(IntegrityError, match="outside its frame"):
        relocated(base, {ITEM.digest: {0: (0, 1)}}, [pack_of(b"new", [10])])
