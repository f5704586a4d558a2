"""An object map made from another one by moving some extents to frames of other packs. Pure.

Invariants:

- objects and the cut of their extents stay; an extent that is not moved keeps its frame, with its pack and its place there;
- the new packs come first, in the order given, then those old ones that some extent still needs, in their order; the others are not named;
- one pass over the rows at a time: of an image of any size nothing is kept but a number a frame;
- a base map that is unsound where it is looked at gives ``IntegrityError``.

What does not live here: what is moved where (``imagefs.convert.needed``).
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from imagefs.errors import IntegrityError
from imagefs.format.objectmap import HOLE, Extent, ObjectMap, build_object_map
from imagefs.format.pack import FrameEntry

PackRows = tuple[bytes, bytes, int, Sequence[FrameEntry]]
"""A pack as :func:`build_object_map` takes it: digest, key, size in bytes as stored, frames."""

Moves = Mapping[bytes, Mapping[int, tuple[int, int]]]
"""By an object's raw digest and an extent's offset in it: the frame, numbered over all new packs, and the offset in its content."""


class _Object(NamedTuple):
    digest: bytes
    size: int
    extents: Sequence[Extent]


def relocated(base: ObjectMap, moves: Moves, packs: Sequence[PackRows]) -> bytes:
    """Return the map of ``base``'s objects with ``moves`` into ``packs``.

    Each moved extent's frame holds, at that offset, the bytes that the extent's old one holds: that is the caller's to see to.
    ``IntegrityError`` for an unsound base, and for moves that lie outside their frames.
    """
    numbers, old = _kept(base, _used(base, moves), sum(len(pack[3]) for pack in packs))
    try:
        return build_object_map(_objects(base, moves, numbers), [*packs, *old])
    except ValueError as error:
        raise IntegrityError(f"object map: {error}") from None


def _rows(base: ObjectMap) -> Iterator[tuple[bytes, int, Iterator[tuple[int, int, int, int]]]]:
    """Yield digest, size and extents of all objects. Each object's extents have to be taken before the next object."""
    extents = base.extent_rows()
    position = 0
    for digest, size, first, count in base.object_rows():
        if first != position or not count:
            raise IntegrityError(f"object map: the extents of object {digest.hex()} are not its own")
        position += count
        yield digest, size, islice(extents, count)


def _used(base: ObjectMap, moves: Moves) -> bytearray:
    """Return, for each frame of ``base``, whether an extent stays there."""
    used = bytearray(base.frame_count)
    most = base.frame_count
    for digest, _, extents in _rows(base):
        moved = moves.get(digest, ())
        for offset, _, frame, _ in extents:
            if frame < most:
                if offset not in moved:
                    used[frame] = 1
            elif frame != HOLE:
                raise IntegrityError(f"object map: no frame {frame}")
    return used


def _kept(base: ObjectMap, used: bytearray, first: int) -> "tuple[array[int], list[PackRows]]":
    """Return the new number of each frame, counted from ``first``, and the packs of ``base`` in which a frame is ``used``.

    The number of a frame in another pack is ``HOLE``.
    """
    numbers = array("I", [HOLE]) * base.frame_count
    packs: list[PackRows] = []
    number = first
    for index in range(base.pack_count):
        pack = base.pack(index)
        if used.find(1, pack.first_frame, pack.first_frame + pack.frame_count) < 0:
            continue
        entries = []
        for frame in range(pack.first_frame, pack.first_frame + pack.frame_count):
            row = base.frame(frame)
            if row.pack != index:
                raise IntegrityError(f"object map: frame {frame} is not where its pack has it")
            entries.append(FrameEntry(row.digest, row.offset, row.stored, row.length, row.codec))
            numbers[frame] = number
            number += 1
        packs.append((pack.digest, pack.key, pack.size, entries))
    return numbers, packs


def _objects(base: ObjectMap, moves: Moves, numbers: "array[int]") -> Iterator[_Object]:
    for digest, size, rows in _rows(base):
        moved = moves.get(digest)
        extents = []
        for offset, length, frame, within in rows:
            if frame == HOLE:
                extents.append(Extent(offset, length, HOLE, within))
            elif moved is not None and offset in moved:
                extents.append(Extent(offset, length, *moved[offset]))
            else:
                if numbers[frame] == HOLE:
                    raise IntegrityError(f"object map: frame {frame} is in no pack")
                extents.append(Extent(offset, length, numbers[frame], within))
        yield _Object(digest, size, extents)
