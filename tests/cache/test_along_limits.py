"""Where fetching along, or what it shares with other fetches, once went wrong."""

import mmap
from collections.abc import Callable
from typing import Any

import pytest
import trio

from imagefs.cache import along, neighbours
from imagefs.cache.decode import Work
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import WINDOW, ObjectRecord, Part, parts_of
from imagefs.cache.pieces import Decoder, Failures, Frames
from imagefs.cache.ram import RamCache
from imagefs.digest import digest_of
from imagefs.errors import NotFoundError
from imagefs.format.objectmap import FRAME_SIZE, Extent
from imagefs.store.base import ByteRange, pack_key
from tests.cache.far_bench import KIB, LATER, MIB, RATE, RTT, SOON, Bench, noise, pack, small_files
from tests.fuse.images import FRAME, Maker, Row

pytestmark = pytest.mark.usefixtures("threads_take_no_time")


def test_window_that_a_second_reader_wants_while_it_is_decoded(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window's buffer must not be exchanged once a thread may write to it."""
    data = noise(4 * MIB, 1)
    maker.file("a", data)
    bench = Bench(maker)

    async def run_sync(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        result = function(*args)
        await trio.sleep(0.005)  # that the thread is ready has not been taken in yet
        return result

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)

    def give_buffer() -> None:
        buffer = mmap.mmap(-1, 4 * MIB)
        buffer[:] = b"J" * (4 * MIB)
        bench.ram._pool.put(buffer)

    async def body(f: Fetcher) -> None:
        give_buffer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, f, data)
            await trio.sleep(RTT + 4 * MIB / RATE + 0.003)
            give_buffer()
            nursery.start_soon(bench.read, f, data)

    bench.run(body)


def test_one_miss_brings_no_more_than_the_reach_where_its_own_frame_compresses(maker: Maker) -> None:
    """A frame that is nearly all zeros in a large object: all of the object is fetched along, past reach, credit and _ALONG_MAX."""
    data = bytearray(noise(256 * FRAME, 1))
    data[100 * FRAME : 101 * FRAME] = b"x" + bytes(FRAME - 1)
    maker.file("big", bytes(data))
    bench = Bench(maker)

    async def body(f: Fetcher) -> None:
        await bench.read(f, bytes(data), 100 * FRAME, 100 * FRAME + 100)
        await trio.sleep(LATER)
        assert sum(range_.end - range_.start for _, range_ in bench.store.gets) <= 2 * neighbours.REACH_MAX

    bench.run(body)


def test_one_miss_spends_no_more_than_there_is_where_neighbours_compress(maker: Maker) -> None:
    frames = [[seed.to_bytes(2, "little") + bytes(255 * KIB)] for seed in range(600)]
    pack(maker, *frames)
    bench = Bench(maker)

    async def body(f: Fetcher) -> None:
        await bench.read(f, frames[300][0], 0, 100)
        await trio.sleep(LATER)
        assert bench.ram.used <= 32 * MIB  # 149 MiB
        assert bench.lookup.neighbours.credit >= 0

    bench.run(body)


@pytest.mark.parametrize("piece", [0, 1])
def test_what_comes_along_with_a_miss_in_an_object_of_a_few_frames_is_charged_and_decoded_once(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    middle = noise(4 * FRAME, 4)
    pack(maker, small_files(2, 1000, 1), middle, small_files(2, 1000, 2))
    bench = Bench(maker)
    decoded: list[int] = []
    decode = Decoder.decode

    def spy(self: Decoder, data: memoryview, start: int, frames: Frames, work: Work | None = None) -> Failures:
        decoded.extend(frame.offset for _, frame in frames)
        return decode(self, data, start, frames, work)

    monkeypatch.setattr(Decoder, "decode", spy)

    async def body(f: Fetcher) -> None:
        before = bench.lookup.neighbours.credit
        await bench.read(f, middle, piece * FRAME, piece * FRAME + 100)
        await trio.sleep(LATER)
        assert (len(decoded), before - bench.lookup.neighbours.credit) == (len(set(decoded)), bench.counters.prefetch_bytes)

    bench.run(body)


def test_two_frames_of_one_digest_and_other_lengths_do_not_disturb_who_reads_a_third(maker: Maker) -> None:
    """IndexError in _lacking, out of Fetcher.read."""
    files = small_files(4, 20 * KIB)
    pack(maker, small_files(4, 20 * KIB, 3), [noise(50 * KIB, 4)], files, small_files(4, 20 * KIB, 5))
    bench = Bench(maker)
    for number in (1, 3):
        at = bench.lookup.objects._frames_at + number * FRAME_SIZE
        bench.raw[at : at + 32] = bytes(32)

    async def body(f: Fetcher) -> None:
        await bench.read(f, files[0])

    bench.run(body)


def test_misses_at_once_look_at_the_map_once(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [small_files(2, 1000, seed) for seed in range(20)]
    pack(maker, *files)
    bench = Bench(maker)
    builds: list[int] = []
    build = neighbours.Neighbours.build

    def count(self: neighbours.Neighbours) -> None:
        builds.append(1)
        build(self)

    monkeypatch.setattr(neighbours.Neighbours, "build", count)

    async def body(f: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            for group in files:
                nursery.start_soon(bench.read, f, group[0])

    bench.run(body, known=False)
    assert len(builds) == 1


def test_slabs_that_were_made_to_be_looked_at_do_not_stay_where_a_row_is_unsound(maker: Maker) -> None:
    alone = noise(5000, 77)
    groups = [small_files(2, 2000, seed) for seed in range(50)]
    pack(maker, *groups[:5], [alone], *groups[5:])
    bench = Bench(maker)
    row = bench.record(alone).row
    at = bench.lookup.objects._extents_at + row.first_extent * 24 + 8
    bench.raw[at : at + 8] = (4000).to_bytes(8, "little")  # it does not cover the object

    async def body(f: Fetcher) -> None:
        await bench.read(f, groups[25][0])
        await trio.sleep(LATER)
        assert all(slab.landed for slab in bench.ram._slabs.values())  # 42 empty ones, which no bound counts

    bench.run(body)


def test_a_get_that_a_reader_came_to_wait_for_still_counts_as_fetched_along_for_its_other_frames(maker: Maker) -> None:
    """One ticket a GET: all six frames become demand, none counts as used when it is read, and none of what they cost is earned."""
    frames = [small_files(4, 20 * KIB, seed) for seed in range(7)]
    pack(maker, *frames)
    bench = Bench(maker)

    async def body(f: Fetcher) -> None:
        near = bench.lookup.neighbours
        near.spend(64 * MIB)
        before = near.credit
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, f, frames[0][0])
            await trio.sleep(SOON)
            nursery.start_soon(bench.read, f, frames[1][0])
        await trio.sleep(LATER)
        for files in frames:
            await bench.read(f, files[1])
        assert bench.counters.prefetch_used_bytes >= 5 * 80 * KIB
        assert near.credit > before

    bench.run(body)


def test_the_reach_does_not_grow_because_gets_fail_at_once(maker: Maker) -> None:
    frames = [small_files(4, 20 * KIB, seed) for seed in range(40)]
    for files in frames:
        pack(maker, files)
    bench = Bench(maker)

    wanted = pack_key(bench.lookup.objects.pack(20).digest.hex())

    def gone(key: str, _range: ByteRange, got: bytes) -> bytes:
        if key != wanted:
            raise NotFoundError("gone")
        return got

    bench.store.hook = gone

    async def body(f: Fetcher) -> None:
        before = f._along._reach.around(RTT)
        await bench.read(f, frames[20][0])
        await trio.sleep(LATER)
        assert f._along._reach.around(RTT) <= before

    bench.run(body)


def test_objects_of_a_few_frames_count_in_full_against_the_reach(maker: Maker) -> None:
    missed = small_files(2, 1000, 99)
    pack(maker, missed, *[noise(4 * FRAME, seed) for seed in range(8)])
    bench = Bench(maker)

    async def body(f: Fetcher) -> None:
        reach = f._along._reach.around(RTT)
        await bench.read(f, missed[0])
        await trio.sleep(LATER)
        assert bench.counters.prefetch_bytes <= reach  # four times that: an object counts with its nearest frame

    bench.run(body)


def test_a_long_hole_beside_a_miss_is_not_looked_through(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(2 * FRAME) + bytes(200 * MIB)
    maker.file("sparse", data, hole=(2 * FRAME, len(data)))
    bench = Bench(maker)
    looked: list[int] = []

    def look(record: ObjectRecord, offset: int, end: int, ram: RamCache, *, create: bool = True) -> list[Part]:
        looked.append(offset)
        return parts_of(record, offset, end, ram, create=create)

    monkeypatch.setattr(along, "parts_of", look)

    async def body(f: Fetcher) -> None:
        await bench.read(f, data, 0, 100)
        await trio.sleep(LATER)
        assert 1 <= len(looked) <= 2 * along.CONTENT_MAX // WINDOW + 2
        assert bench.moved()[:2] == [1, 1]

    bench.run(body)


def test_around_a_miss_in_a_piece_of_a_shared_frame_no_other_place_of_the_object_is_taken_for_its_neighbourhood(maker: Maker) -> None:
    """It lies at 0 of the file that is its frame. That was taken for its place in the object, and the object's beginning came along."""
    half = 32 * KIB
    pieces = [noise(half, seed) for seed in range(60)]
    data = b"".join(pieces)
    small = small_files(60, half, 1000)
    maker._pack([piece + own for piece, own in zip(pieces, small, strict=True)])
    maker.rows[digest_of(data)] = Row(digest_of(data), len(data), [Extent(number * half, half, number, 0) for number in range(60)])
    for number, own in enumerate(small):
        maker.rows[digest_of(own)] = Row(digest_of(own), half, [Extent(0, half, number, half)])
    bench = Bench(maker)

    async def body(f: Fetcher) -> None:
        await bench.read(f, data, 50 * half, 50 * half + 100)
        await trio.sleep(LATER)
        assert not sum(bench.moved()[:40])
        bench.assert_tidy(f)

    bench.run(body)
