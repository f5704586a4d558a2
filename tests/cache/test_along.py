"""What is fetched along with a miss, from a store that is 20 ms away on a clock that jumps."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from imagefs.cache import along, neighbours
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.flights import BAD_SECONDS
from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, NotFoundError, StoreError
from imagefs.format.objectmap import EXTENT_SIZE, FRAME_SIZE, OBJECT_SIZE, ObjectMap
from imagefs.store.base import ByteRange, pack_key
from tests.cache.far_bench import KIB, LATER, MIB, RATE, RTT, SOON, Bench, disk_of, noise, pack, small_files
from tests.fuse.images import FRAME, Maker

pytestmark = pytest.mark.usefixtures("threads_take_no_time")


# -- what it is for -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["forwards", "backwards", "from the middle"])
def test_small_files_side_by_side_are_waited_for_a_few_times_and_nothing_moves_twice(maker: Maker, order: str) -> None:
    files = small_files(600, 10 * KIB)
    frames = [files[at : at + 10] for at in range(0, len(files), 10)]
    for at in range(0, len(frames), 20):
        pack(maker, *frames[at : at + 20])
    bench = Bench(maker)
    reading = {"forwards": files, "backwards": files[::-1], "from the middle": files[300:] + files[:300][::-1]}[order]

    async def body(fetcher: Fetcher) -> None:
        began = trio.current_time()
        for data in reading:
            await bench.read(fetcher, data)
        assert trio.current_time() - began < 20 * RTT
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)

    bench.run(body, known=False)
    assert bench.waits <= 12, "of 60 frames, and 600 files"
    assert set(bench.moved()) == {1}
    assert bench.counters.frames_fetched == len(frames)


def test_a_store_that_answers_at_once_has_nothing_fetched_along(maker: Maker) -> None:
    frames = [small_files(10, 10 * KIB, seed) for seed in range(20)]
    pack(maker, *frames)
    bench = Bench(maker, seconds=0.001)

    async def body(fetcher: Fetcher) -> None:
        for files in frames[::4]:
            await bench.read(fetcher, files[3])

    bench.run(body)
    bench.run(body, known=False)
    assert bench.moved() == [1, 0, 0, 0] * 5
    assert bench.counters.prefetch_bytes == 0


@pytest.mark.parametrize(("rate", "way"), [(RATE, 1), (2e6, -1)], ids=["fast", "slow"])
def test_how_far_it_goes_follows_what_the_link_gives(maker: Maker, rate: float, way: int) -> None:
    frames = [small_files(2, 50 * KIB, seed) for seed in range(300)]
    for at in range(0, len(frames), 30):
        pack(maker, *frames[at : at + 30])
    bench = Bench(maker)
    bench.store.rate = rate
    brought: list[int] = []

    async def body(fetcher: Fetcher) -> None:
        for at in (20, 80, 140, 200, 260):
            before = bench.counters.frames_fetched
            await bench.read(fetcher, frames[at][0])
            await trio.sleep(LATER)
            brought.append(bench.counters.frames_fetched - before)

    bench.run(body)
    assert brought[0] == 1 + 2 * 5
    assert sorted(brought)[::way] == brought
    assert (brought[-1] - brought[0]) * way > 5
    assert max(range_.end - range_.start for _, range_ in bench.store.gets) <= MIB, "the nearest should be there first"


# -- what is brought, and how it counts ----------------------------------------------------------------------------------------------


def test_what_comes_along_counts_as_ahead_and_as_used_when_it_is_first_read(maker: Maker) -> None:
    frames = [small_files(10, 10 * KIB, seed) for seed in range(5)]
    pack(maker, *frames)
    bench = Bench(maker)
    size = 100 * KIB

    async def body(fetcher: Fetcher) -> None:
        counters = bench.counters
        await bench.read(fetcher, frames[2][0])
        await trio.sleep(LATER)
        assert (counters.frames_fetched, counters.prefetch_bytes, counters.prefetch_used_bytes) == (5, 4 * size, 0)
        assert bench.unread() == 4
        await bench.read(fetcher, frames[2][1])
        assert counters.prefetch_used_bytes == 0, "a reader waited for this frame"
        await bench.read(fetcher, frames[3][0])
        assert (counters.prefetch_used_bytes, bench.unread()) == (size, 3)
        await bench.read(fetcher, frames[3][0])
        await bench.read(fetcher, frames[3][9])
        assert (counters.prefetch_used_bytes, bench.unread()) == (size, 3)
        # A read that is not answered at once, as of two slabs, counts likewise.
        assert bytes(await fetcher.read(bench.record(frames[1][5]), 0, 10)) == frames[1][5][:10]
        assert bytes(await fetcher.read(bench.record(frames[1][5]), 0, 10)) == frames[1][5][:10]
        assert (counters.prefetch_used_bytes, bench.unread()) == (2 * size, 2)
        assert (counters.prefetch_bytes, bench.waits) == (4 * size, 1)
        bench.assert_tidy(fetcher)

    bench.run(body)
    assert bench.moved() == [1] * 5
    assert bench.counters.fetched_bytes == 10 * KIB


@pytest.mark.parametrize("size", [FRAME + 1, FRAME + FRAME // 2 + 777])
def test_an_object_of_a_few_frames_comes_along_and_is_read_through_its_own_window(maker: Maker, size: int) -> None:
    before, after, large = small_files(10, 10 * KIB, 1), small_files(10, 10 * KIB, 2), noise(MIB + 1, 3)
    middle = noise(size, 4)
    maker.file("large", large)
    pack(maker, before, middle, after)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        await bench.read(fetcher, before[0])
        await trio.sleep(LATER)
        gets = len(bench.store.gets)
        assert (fetcher.tier_of(bench.record(middle)), fetcher.tier_of(bench.record(large))) == ("ram", "store")
        record = bench.record(middle)
        assert bytes(await fetcher.read(record, FRAME - 5, FRAME + 1)) == middle[FRAME - 5 : FRAME + 1]
        view = fetcher.cached(record, 0, size)
        assert view is not None, "one slab has all of it"
        assert view == middle
        await bench.read(fetcher, after[9])
        assert (len(bench.store.gets), bench.waits) == (gets, 1)
        assert bench.counters.prefetch_used_bytes == bench.counters.prefetch_bytes == size + 100 * KIB
        bench.assert_tidy(fetcher)

    bench.run(body)
    frames = bench.lookup.objects.frame_count - 5
    assert bench.moved() == [0] * 5 + [1] * frames


def test_around_a_miss_in_a_large_object_more_of_it_comes_along_but_what_is_far_from_it_does_not(maker: Maker) -> None:
    data = noise(40 * FRAME)
    maker.file("large", data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        await bench.read(fetcher, data, 20 * FRAME + 100, 20 * FRAME + 200)
        await trio.sleep(LATER)
        moved = bench.moved()
        assert moved[19:22] == [1, 1, 1]
        assert sum(moved) <= 7
        assert not any(moved[:17] + moved[24:])
        await bench.read(fetcher, data, 21 * FRAME, 21 * FRAME + 100)
        assert bench.waits == 1
        bench.assert_tidy(fetcher)

    bench.run(body)


# -- the credit ----------------------------------------------------------------------------------------------------------------------


def test_a_random_reader_of_a_large_object_moves_half_as_much_again_as_it_must(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CREDIT", 2 * MIB)
    data = noise(320 * FRAME)
    maker.file("large", data)
    bench = Bench(maker)
    rng = random.Random(3)

    async def body(fetcher: Fetcher) -> None:
        missed = moved = 0
        for _ in range(100):
            # Always somewhere else: nothing that came along is of use.
            frame = rng.choice([number for number, count in enumerate(bench.moved()) if not count])
            await bench.read(fetcher, data, frame * FRAME + 10, frame * FRAME + 4096)
            missed += FRAME
            await trio.sleep(LATER)
            moved = bench.counters.frames_fetched * FRAME
            # The last time, it may spend more than was left: what lies within the reach on either side.
            assert moved <= missed + missed // 2 + 2 * MIB + 2 * MIB
        assert moved >= missed + missed // 2 + 2 * MIB - 2 * MIB, "and it does spend what it has"
        assert bench.counters.prefetch_bytes == moved - missed
        bench.assert_tidy(fetcher)

    bench.run(body)
    assert bench.counters.prefetch_used_bytes == 0


def test_who_uses_what_comes_along_goes_on_having_it(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CREDIT", MIB)
    frames = [small_files(4, 25 * KIB, seed) for seed in range(200)]
    for at in range(0, len(frames), 10):
        pack(maker, *frames[at : at + 10])
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        for files in frames:
            for data in files:
                await bench.read(fetcher, data)
                await trio.sleep(RTT)

    bench.run(body)
    assert bench.waits <= len(frames) // 4


def test_what_is_on_its_way_along_is_bounded_however_many_miss(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(along, "ALONG_MAX", 2 * MIB)
    frames = [small_files(2, 50 * KIB, seed) for seed in range(300)]
    for at in range(0, len(frames), 10):
        pack(maker, *frames[at : at + 10])
    bench = Bench(maker, seconds=1)

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            for at in range(5, 300, 11):
                nursery.start_soon(bench.read, fetcher, frames[at][0])
                await trio.sleep(0.001)
                # Whoever is below the bound may go beyond by what lies within the reach.
                assert fetcher._along._moving <= 2 * MIB + MIB
            assert fetcher._along._moving >= 2 * MIB
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)

    bench.run(body)


# -- on SSD --------------------------------------------------------------------------------------------------------------------------


def test_what_comes_along_is_kept_on_ssd_under_the_name_it_is_looked_for(maker: Maker, tmp_path: Path) -> None:
    group, missed = small_files(3, 30 * KIB, 1), small_files(2, 30 * KIB, 2)
    alone, middle = noise(90 * KIB, 3), noise(FRAME + 99, 4)
    pack(maker, [alone], missed, group, middle)
    bench = Bench(maker, tmp_path / "cache")

    async def first(fetcher: Fetcher) -> None:
        await bench.read(fetcher, missed[0])
        await trio.sleep(LATER)
        await disk_of(fetcher).settled()
        assert disk_of(fetcher).complete == 7

    async def second(fetcher: Fetcher) -> None:
        for data in (alone, middle, *group, *missed):
            await bench.read(fetcher, data)

    def away(_key: str, _range: ByteRange, _data: bytes) -> bytes:
        raise StoreError("away")

    bench.run(first)
    assert bench.tier == " ".join(sorted(f"objects/{digest_of(data).hex()}" for data in (alone, middle, *group, *missed)))
    bench.store.hook = away
    bench.run(second)
    assert bench.store.gets == []
    assert bench.counters.ssd_bytes + bench.counters.ram_bytes == len(alone) + len(middle) + 150 * KIB
    assert bench.counters.prefetch_bytes == bench.counters.prefetch_used_bytes == 0


def test_what_ssd_has_is_not_fetched_along(maker: Maker, tmp_path: Path) -> None:
    frames = [small_files(4, 20 * KIB, seed) for seed in range(4)]
    middle = noise(3 * FRAME, 9)
    pack(maker, *frames, middle)
    bench = Bench(maker, tmp_path / "cache", seconds=0.001)

    async def near(fetcher: Fetcher) -> None:
        await bench.read(fetcher, frames[1][0])
        await bench.read(fetcher, middle, FRAME, 2 * FRAME)
        await trio.sleep(LATER)
        await disk_of(fetcher).settled()

    async def far(fetcher: Fetcher) -> None:
        await bench.read(fetcher, frames[2][0])
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)
        await bench.read(fetcher, middle)

    bench.run(near)
    assert bench.moved() == [0, 1, 0, 0, 0, 1, 0]
    bench.store.seconds = RTT
    bench.run(far)
    assert bench.moved() == [1, 0, 1, 1, 1, 0, 1]


# -- what goes wrong -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 1000])
@pytest.mark.parametrize("waiting", [False, True], ids=["reads it later", "waits for it"])
def test_a_neighbour_whose_bytes_are_wrong_fails_only_who_asks_for_it(maker: Maker, times: int, waiting: bool) -> None:
    frames = [small_files(4, 20 * KIB, seed) for seed in range(5)]
    pack(maker, *frames)
    bench = Bench(maker)
    bad = bench.lookup.objects.frame(3)
    left = times

    def damage(_key: str, byte_range: ByteRange, got: bytes) -> bytes:
        nonlocal left
        at = bad.offset - byte_range.start
        if not left or not 0 <= at < len(got):
            return got
        left -= 1
        return got[:at] + bytes(8) + got[at + 8 :]

    async def asks(fetcher: Fetcher) -> None:
        if times == 1:
            await bench.read(fetcher, frames[3][1])
            return
        with pytest.raises(IntegrityError):
            await bench.read(fetcher, frames[3][1])

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, fetcher, frames[2][0])
            await trio.sleep(SOON)
            if waiting:
                nursery.start_soon(asks, fetcher)
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)
        gets = len(bench.store.gets)
        for files in (*frames[:3], frames[4]):
            await bench.read(fetcher, files[1])
        await asks(fetcher)
        assert len(bench.store.gets) == gets, "it has come, or is refused for a while"
        if times > 1:
            bench.ram.clear()
            await bench.read(fetcher, frames[4][0])
            await trio.sleep(LATER)
            assert len(bench.ram) == 4, "all others come along as before"
            gets = len(bench.store.gets)
        bench.now += BAD_SECONDS
        bench.store.hook = lambda _key, _range, got: got
        await bench.read(fetcher, frames[3][2])
        assert len(bench.store.gets) == gets + (times > 1)

    bench.store.hook = damage
    bench.run(body)
    assert bench.counters.verify_failures == min(times, 2)
    assert [event["event"] for event in bench.log.events] == ["frame_failed"] * (times > 1)


def test_a_neighbour_that_the_store_does_not_give_fails_nobody_and_is_asked_for_again(maker: Maker) -> None:
    frames = [small_files(4, 20 * KIB, seed) for seed in range(3)]
    for files in frames:
        pack(maker, files)
    bench = Bench(maker)

    def without(_key: str, byte_range: ByteRange, got: bytes) -> bytes:
        if len(bench.store.gets) > 1:
            raise NotFoundError("gone")
        return got

    async def body(fetcher: Fetcher) -> None:
        await bench.read(fetcher, frames[1][0])
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)
        bench.store.hook = lambda _key, _range, got: got
        for files in frames:
            await bench.read(fetcher, files[1])

    bench.store.hook = without
    bench.run(body)
    assert bench.counters.prefetch_bytes in (0, 80 * KIB)
    assert not bench.log.events


def _spoil_frame(at: int, value: bytes) -> Callable[[ObjectMap, bytearray], None]:
    def spoil(objects: ObjectMap, raw: bytearray) -> None:
        for number in (1, 3):
            start = objects._frames_at + number * FRAME_SIZE + at
            raw[start : start + len(value)] = value

    return spoil


def _spoil_extents(objects: ObjectMap, raw: bytearray) -> None:
    """Give every extent but that of the frame that is read a frame that is not there."""
    for at in range(objects._extents_at, objects._frames_at, EXTENT_SIZE):
        if int.from_bytes(raw[at + 16 : at + 20], "little") != 2:
            raw[at + 16 : at + 20] = b"\x00\x00\x00\x70"


def _spoil_objects(objects: ObjectMap, raw: bytearray) -> None:
    """Let the objects that have several extents have some that are not there."""
    for at in range(objects._objects_at, objects._extents_at, OBJECT_SIZE):
        if int.from_bytes(raw[at + 44 : at + 48], "little") > 1:
            raw[at + 44 : at + 48] = b"\x00\x00\x00\x70"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_spoil_frame(32, b"\x63\0\0\0"), id="a pack that is not there"),
        pytest.param(_spoil_frame(36, b"\x63"), id="an unknown codec"),
        pytest.param(_spoil_frame(40, b"\xff" * 8), id="an offset past all bytes"),
        pytest.param(_spoil_frame(48, bytes(4)), id="no bytes"),
        pytest.param(_spoil_frame(48, b"\xff" * 4), id="too many bytes"),
        pytest.param(_spoil_frame(52, b"\xff\xff\xff\x00"), id="another length"),
        pytest.param(_spoil_frame(0, b"\x99\x99"), id="another digest"),
        pytest.param(_spoil_extents, id="extents of no frame"),
        pytest.param(_spoil_objects, id="extents that are not there"),
    ],
)
def test_rows_of_neighbours_that_are_not_sound_do_not_disturb_a_read(maker: Maker, spoil: Callable[[ObjectMap, bytearray], None]) -> None:
    files, middle = small_files(4, 20 * KIB), noise(2 * FRAME, 2)
    pack(maker, small_files(4, 20 * KIB, 3), [noise(50 * KIB, 4)], files, small_files(4, 20 * KIB, 5), middle)
    bench = Bench(maker)
    spoil(bench.lookup.objects, bench.raw)

    async def body(fetcher: Fetcher) -> None:
        for _ in range(4):
            # Each time as from the start, but that the map has been looked at by now, and the link is known from the third time on.
            for data in files:
                await bench.read(fetcher, data)
            await trio.sleep(LATER)
            assert not fetcher._flights._tickets
            assert not any(slab.in_flight for slab in bench.ram._slabs.values())
            bench.ram.clear()

    bench.run(body, known=False)
    assert bench.waits == 4


# -- who comes to wait for it --------------------------------------------------------------------------------------------------------


def test_demand_that_comes_to_wait_for_what_is_on_its_way_along_goes_before_the_rest_of_it(maker: Maker) -> None:
    frames = [small_files(4, 15 * KIB, seed) for seed in range(8)]
    for files in frames:
        pack(maker, files)
    # Two places, one of which is demand's: what is fetched along waits until no reader does.
    bench = Bench(maker, most=2)
    keys = [pack_key(bench.lookup.objects.pack(number).digest.hex()) for number in range(8)]

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, fetcher, frames[0][0])
            await trio.sleep(SOON)
            assert len(bench.store.gets) == 1
            tickets = {cast("bytes", slab.key)[-32:]: ticket for (slab, _), ticket in fetcher._flights._tickets.items()}
            names = [bench.lookup.objects.frame(number).digest for number in range(8)]
            assert [tickets[name].demand for name in names] == [True] + [False] * 7
            nursery.start_soon(bench.read, fetcher, frames[7][1])
            await trio.sleep(SOON)
            assert [tickets[name].demand for name in names] == [True] + [False] * 6 + [True]
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)

    bench.run(body)
    order = [keys.index(key) for key, _ in bench.store.gets]
    assert (order[:2], sorted(order[2:])) == ([0, 7], [1, 2, 3, 4, 5, 6])
    assert bench.counters.prefetch_bytes == 7 * 60 * KIB
    assert bench.unread() == 6
    assert bench.waits == 2


def test_misses_near_each_other_do_not_fetch_the_same_along(maker: Maker) -> None:
    frames = [small_files(2, 50 * KIB, seed) for seed in range(40)]
    for at in range(0, len(frames), 20):
        pack(maker, *frames[at : at + 20])
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            for at in range(2, 40, 7):
                nursery.start_soon(bench.read, fetcher, frames[at][0])
                await trio.sleep(SOON / 10)
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)

    bench.run(body)
    assert bench.moved() == [1] * 40


@pytest.mark.parametrize("readers", [1, 20])
def test_who_waits_for_what_is_on_its_way_along_does_not_fetch_it_again(maker: Maker, readers: int) -> None:
    frames = [small_files(20, 5 * KIB, seed) for seed in range(5)]
    pack(maker, *frames)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, fetcher, frames[2][0])
            await trio.sleep(SOON)
            for files in frames:
                for data in files[:readers]:
                    nursery.start_soon(bench.read, fetcher, data)
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)

    bench.run(body)
    assert bench.moved() == [1] * 5
    assert bench.unread() == 0
