"""How an object is cut into parts, and that no map makes that take long."""

import struct

import pytest
import trio
import trio.testing

from imagefs.cache.along import CONTENT_MAX
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import EXTENTS_MAX, WINDOW, ObjectRecord, parts_of
from imagefs.cache.ram import RamCache
from imagefs.digest import digest_of
from imagefs.errors import LimitError
from imagefs.format.objectmap import HOLE, Extent, ObjectMap, ObjectRow, build_object_map
from tests.cache.far_bench import KIB, LATER, MIB, noise
from tests.cache.far_bench import Bench as FarBench
from tests.cache.test_fetcher import Bench, Lookup
from tests.fuse.images import FRAME, Maker, Row

PAGE = 4 * KIB


def _cut(maker: Maker, data: bytes, lengths: list[int]) -> ObjectRecord:
    """Return an object whose extents have these lengths; those that are not all zeros are frames of their own, one behind the other."""
    extents: list[Extent] = []
    pieces: list[bytes] = []
    at = 0
    for length in lengths:
        piece = data[at : at + length]
        if any(piece):
            extents.append(Extent(at, length, maker.frames + len(pieces), 0))
            pieces.append(piece)
        else:
            extents.append(Extent(at, length, HOLE, 0))
        at += length
    maker._pack(pieces)
    maker.rows[digest_of(data)] = Row(digest_of(data), len(data), extents)
    return Bench(maker).record(data)


def _pieces_of_one_frame(maker: Maker, data: bytes, length: int) -> ObjectRecord:
    """Return an object of extents of ``length`` bytes each, which are pieces of one frame."""
    maker._pack([data])
    extents = [Extent(at, min(length, len(data) - at), maker.frames - 1, at) for at in range(0, len(data), length)]
    maker.rows[digest_of(data)] = Row(digest_of(data), len(data), extents)
    return Bench(maker).record(data)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many extents each question to an object map was answered with."""
    counts: list[int] = []
    extents = ObjectMap.extents

    def count(self: ObjectMap, row: ObjectRow, start: int, end: int, *, most: int | None = None) -> list[Extent]:
        found = extents(self, row, start, end, most=most) if most is not None else extents(self, row, start, end)
        counts.append(len(found))
        return found

    monkeypatch.setattr(ObjectMap, "extents", count)
    return counts


# -- what is a window ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "is_window"),
    [
        ([FRAME] * 3, True),
        ([FRAME, 2 * FRAME, 100], True),
        ([PAGE] * 5 + [1], True),
        ([PAGE] * (WINDOW // PAGE), True),
        ([FRAME] * 15 + [FRAME - 1, 1], False),
        ([PAGE + 1, PAGE - 1, PAGE], False),
        ([100, 2 * PAGE - 100, PAGE], False),
        ([FRAME], False),
    ],
    ids=["frames", "uneven", "pages", "as many as there are pages", "a byte at its end", "a byte past a page", "less than a page", "one"],
)
def test_a_window_is_cut_at_pages(maker: Maker, lengths: list[int], is_window: bool) -> None:
    """Of less than a page a slab would take all of it, and count what is there."""
    data = noise(sum(lengths))
    record = _cut(maker, data, lengths)
    assert (record.window(0) is not None) is is_window
    ram = RamCache(64 * MIB)
    parts = parts_of(record, 0, len(data), ram)
    assert len(parts) == (1 if is_window else len(lengths))
    assert sum(part.stop - part.start for part in parts) == len(data)


def test_a_window_ends_where_its_object_or_its_bytes_do(maker: Maker) -> None:
    data = noise(WINDOW + 3 * FRAME)
    record = _cut(maker, data, [FRAME] * 19)
    first, second = record.window(0), record.window(WINDOW)
    assert first is not None
    assert second is not None
    assert (first.bounds[-1], second.bounds[-1]) == (WINDOW, 3 * FRAME)
    straddles = _cut(maker, noise(WINDOW + FRAME, 1), [FRAME] * 15 + [2 * FRAME])
    assert straddles.window(0) is straddles.window(WINDOW) is None


def test_what_is_cut_in_any_way_is_read_as_it_is(maker: Maker) -> None:
    data = noise(50 * KIB) + bytes(3 * PAGE + 7) + noise(60 * KIB + 1, 1) + bytes(5) + noise(9, 2)
    _cut(maker, data, [50 * KIB, 3 * PAGE + 7, 60 * KIB + 1, 5, 9])
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        for start, end in ((0, len(data)), (50 * KIB - 1, 50 * KIB + 1), (len(data) - 15, len(data)), (51 * KIB, 52 * KIB)):
            assert bytes(await fetcher.read(record, start, end)) == data[start:end]
        assert fetcher.tier_of(record) == "ram"

    bench.run(body)


# -- what a question costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16, 100, 1000])
def test_a_read_looks_at_the_extents_of_its_own_bytes(maker: Maker, looked: list[int], length: int) -> None:
    """It looked at those of the whole window: a million of them took more than a second, each time."""
    data = noise(MIB)
    _pieces_of_one_frame(maker, data, length)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        looked.clear()
        for at in (PAGE, 2 * PAGE, 2 * PAGE + 5):
            assert bytes(await fetcher.read(record, at, at + PAGE)) == data[at : at + PAGE]
        # Once it is found out that this is no window.
        assert sum(looked) <= WINDOW // PAGE + 3 * (PAGE // length + 2)

    bench.run(body)


def test_a_read_that_is_too_finely_cut_fails_and_one_page_of_it_does_not(maker: Maker, looked: list[int]) -> None:
    data = noise(MIB)
    _pieces_of_one_frame(maker, data, 16)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        await fetcher.read(record, PAGE, 2 * PAGE)
        looked.clear()
        for start, end in ((0, 128 * KIB), (0, 16 * EXTENTS_MAX)):
            with pytest.raises(LimitError, match="read at once"):
                await fetcher.read(record, start, end)
        assert sum(looked) <= 2 * EXTENTS_MAX
        assert bytes(await fetcher.read(record, 0, 16 * (EXTENTS_MAX - 1))) == data[: 16 * (EXTENTS_MAX - 1)]
        assert len(bench.ram) == 1

    bench.run(body)


def test_ranges_of_many_windows_are_bounded_as_one(maker: Maker) -> None:
    """As reading ahead asks for them: each window has fewer extents than are allowed, all of them have not."""
    size = 8 * WINDOW
    extents = [Extent(at, 2000 if at + 2000 <= size else size - at, HOLE, 0) for at in range(0, size, 2000)]
    maker.rows[b"\1" * 32] = Row(b"\1" * 32, size, extents)
    lookup = Lookup(ObjectMap(build_object_map(maker.rows.values(), [])))
    record = ObjectRecord(lookup, lookup.objects.object(0))
    ram = RamCache(64 * MIB)
    assert len(parts_of(record, 5, WINDOW, ram)) == WINDOW // 2000 + 1
    with pytest.raises(LimitError):
        parts_of(record, 0, size, ram)


def test_where_an_object_would_come_from_is_told_without_looking_at_a_window_again_and_again(maker: Maker, looked: list[int]) -> None:
    """Of an object of 16,384 extents that took 100 s: all extents of the window, for each of them."""
    data = noise(MIB)
    record = _pieces_of_one_frame(maker, data, 256)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        looked.clear()
        assert fetcher.tier_of(record) == "store"
        assert sum(looked) <= 3 * record.row.extent_count

    bench.run(body)


def test_extents_that_do_not_go_on_are_not_looked_at_for_ever(maker: Maker, looked: list[int]) -> None:
    """Of no length, as no converter writes them: they would all be looked at, for any of the bytes around."""
    size = 2 * FRAME
    count = 3 * EXTENTS_MAX
    maker._pack([noise(FRAME)])
    extents = [Extent(0, FRAME, 0, 0), *(Extent(FRAME + at, 1, HOLE, 0) for at in range(count - 2))]
    extents.append(Extent(FRAME + count - 2, FRAME - count + 2, HOLE, 0))
    raw = bytearray(build_object_map([Row(b"\1" * 32, size, extents)], maker.packs))
    at = ObjectMap(bytes(raw))._extents_at
    for index in range(1, count - 1):
        struct.pack_into("<QQ", raw, at + index * 24, FRAME, 0)
    struct.pack_into("<QQ", raw, at + (count - 1) * 24, FRAME, FRAME)
    lookup = Lookup(ObjectMap(bytes(raw)))
    record = ObjectRecord(lookup, lookup.objects.object(0))
    with pytest.raises(LimitError):
        parts_of(record, FRAME - 1, FRAME + 1, RamCache(MIB))
    assert sum(looked) <= EXTENTS_MAX + WINDOW // PAGE


@pytest.mark.usefixtures("threads_take_no_time")
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_what_lies_around_a_miss_is_not_looked_through_piece_by_piece(maker: Maker, looked: list[int], before: bool) -> None:
    """Holes cost no reach: of 32 MiB to either side each window has fewer extents than are allowed, all of them have not."""
    some = noise(WINDOW)
    holes = 2 * CONTENT_MAX
    data = bytes(holes) + some if before else some + bytes(holes)
    fine = [2000] * (holes // 2000) + [holes % 2000]
    frames = [FRAME] * 16
    _cut(maker, data, fine + frames if before else frames + fine)
    bench = FarBench(maker)

    async def body(fetcher: Fetcher) -> None:
        at = holes if before else WINDOW - 1
        record = bench.record(data)
        looked.clear()
        await fetcher.read(record, at, at + 1)
        assert EXTENTS_MAX <= sum(looked) <= 3 * EXTENTS_MAX
        await trio.sleep(LATER)

    bench.run(body)
