"""What a profile names is fetched ahead of who reads it, from a store that is 20 ms away on a clock that jumps."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from imagefs.cache.fetcher import Fetcher
from imagefs.cache.prefetch import PATIENCE, SOON, Prefetch
from imagefs.digest import Buffer, digest_of
from imagefs.errors import IntegrityError, StoreError
from imagefs.format.profile import EVERY_START, Access
from imagefs.store.base import ByteRange, pack_key
from tests.cache.far_bench import KIB, LATER, MIB, Bench, Far, disk_of, noise, pack, small_files
from tests.cache.far_bench import SOON as AT_ONCE
from tests.fuse.images import FRAME, Maker

pytestmark = pytest.mark.usefixtures("threads_take_no_time")


def of(data: bytes, at: int, *, start: int = 0, end: int | None = None, share: int = EVERY_START) -> Access:
    return Access(digest_of(data), start, len(data) if end is None else end, at, share)


def in_turn(contents: Sequence[bytes], step: int = 10) -> list[Access]:
    """Return a profile of a start that reads these, one after the other, one each ``step`` milliseconds."""
    return [of(data, step * number) for number, data in enumerate(contents)]


async def begun(nursery: trio.Nursery, fetcher: Fetcher, bench: Bench, accesses: Sequence[Access]) -> Prefetch:
    found = fetcher.prefetches.begin(bench.lookup)
    nursery.start_soon(found.run)
    await found.follow(accesses)
    found.complete()
    return found


def run(bench: Bench, accesses: Sequence[Access], body: Callable[[Fetcher, Prefetch], Awaitable[None]], *, known: bool = True) -> None:
    async def main(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            await body(fetcher, await begun(nursery, fetcher, bench, accesses))
            nursery.cancel_scope.cancel()

    bench.run(main, known=known)


def scattered(maker: Maker, count: int = 40, seed: int = 0) -> list[bytes]:
    """Pack files in frames of ten each, and return one of each frame, in an order that is not the packs'."""
    frames = [small_files(10, 10 * KIB, seed + number) for number in range(count)]
    for at in range(0, count, 10):
        pack(maker, *frames[at : at + 10])
    found = [files[3] for files in frames]
    random.Random(seed).shuffle(found)
    return found


# -- what it is for -------------------------------------------------------------------------------------------------------------------


def test_a_start_that_was_seen_before_hardly_waits_and_moves_nothing_twice(maker: Maker) -> None:
    files = scattered(maker)
    bench = Bench(maker)

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        for data in files:
            await bench.read(fetcher, data)
        await found.reached(1.0)
        assert found.is_over
        bench.assert_tidy(fetcher)

    run(bench, in_turn(files), body)
    assert bench.waits <= 5, "of 40"
    assert bench.moved() == [1] * 40
    assert len(bench.store.gets) < 10
    counters = bench.counters
    assert counters.profile_bytes == counters.profile_used_bytes >= 37 * 100 * KIB, "the first ones their readers have asked for"
    assert counters.prefetch_bytes == counters.prefetch_used_bytes == counters.profile_bytes


def test_what_is_needed_first_comes_first_and_neighbours_come_at_once(maker: Maker) -> None:
    large = [noise(8 * MIB, seed) for seed in range(3)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)
    order = [large[2], large[0], large[1]]

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        del fetcher
        await found.reached(1.0)

    run(bench, in_turn(order, 1000), body)
    packs = [pack_key(bench.lookup.objects.pack(bench.lookup.objects.frame(number).pack).digest.hex()) for number in (0, 32, 64)]
    first = {key: index for index, (key, _) in reversed(list(enumerate(bench.store.gets)))}
    assert first[packs[2]] < first[packs[0]] < first[packs[1]]
    assert len(bench.store.gets) <= 24, "of 96 frames"


def test_what_is_here_or_on_its_way_is_left_out(maker: Maker, tmp_path: Path) -> None:
    files, large = scattered(maker), noise(4 * MIB, 9)
    pack(maker, large)
    bench = Bench(maker, tmp_path / "cache")

    async def landing(fetcher: Fetcher) -> None:
        for data in files[:10]:
            await bench.read(fetcher, data)
        await bench.read(fetcher, large, 0, MIB)
        await trio.sleep(LATER)
        await disk_of(fetcher).settled()

    bench.run(landing, known=False)
    landed = [count > 0 for count in bench.moved()]
    assert sum(landed) >= 10

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        # Nobody fetches twice what a reader has just begun to.
        async with trio.open_nursery() as nursery:
            for data in files[20:25]:
                nursery.start_soon(bench.read, fetcher, data)
            await found.reached(1.0)

    run(bench, [*in_turn(files), of(large, 0)], body)
    assert bench.moved() == [not there for there in landed]


def test_a_reader_that_comes_for_what_is_on_its_way_goes_before_the_rest(maker: Maker) -> None:
    large = [noise(4 * MIB, seed) for seed in range(30)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker, most=4)
    bench.store.rate = 20e6

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        del found
        await trio.sleep(AT_ONCE)
        began = trio.current_time()
        await bench.read(fetcher, large[29], 0, 128 * KIB)
        assert trio.current_time() - began < 1.0, "and not after 120 MB, which take two seconds"

    run(bench, in_turn(large), body)


def test_nothing_is_read_ahead_of_who_reads_what_the_profile_knows_and_as_ever_of_who_goes_on(maker: Maker) -> None:
    data = noise(24 * MIB)
    pack(maker, data)
    bench = Bench(maker)
    known = 4 * MIB // FRAME
    waits: list[int] = []

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        await found.reached(1.0)
        for at in range(0, 4 * MIB, 128 * KIB):
            await bench.read(fetcher, data, at, at + 128 * KIB)
        await trio.sleep(LATER)
        if fetcher.prefetches.of(bench.lookup.name) is found and found.content:
            assert bench.moved() == [1] * known + [0] * (96 - known)
        bench.waits = 0
        for at in range(4 * MIB, 24 * MIB, 128 * KIB):
            await bench.read(fetcher, data, at, at + 128 * KIB)
        waits.append(bench.waits)

    for profile in ([], [of(data, 0, end=4 * MIB)]):
        run(bench, profile, body)
        assert bench.moved() == [1] * 96
    assert waits[1] <= waits[0] + 10


# -- bounds ---------------------------------------------------------------------------------------------------------------------------


def test_no_more_is_only_in_ram_and_unread_than_a_quarter_of_it(maker: Maker) -> None:
    large = [noise(4 * MIB, seed) for seed in range(10)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        bench.ram.set_limit(32 * MIB)
        await trio.sleep(LATER)
        assert 4 * MIB <= fetcher.prefetches.held(found) <= 8 * MIB
        assert not bench.ram.evicted
        for data in large:
            for at in range(0, len(data), MIB):
                await bench.read(fetcher, data, at, at + MIB)
                await trio.sleep(0.05)
        assert not found.is_over or found.share == 1.0

    run(bench, in_turn(large), body)
    assert sum(bench.moved()) <= 1.1 * 160, "a slab that is being read may go while half of it is unread"
    assert bench.counters.profile_used_bytes >= 0.9 * bench.counters.profile_bytes


def test_where_nobody_reads_and_there_is_no_room_who_waits_is_told_soon_and_it_ends_in_time(maker: Maker) -> None:
    large = [noise(4 * MIB, seed) for seed in range(10)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        bench.ram.set_limit(32 * MIB)
        began = trio.current_time()
        await found.reached(1.0)
        assert trio.current_time() - began < 15
        assert 0 < found.share < 1
        await trio.sleep(PATIENCE)
        assert found.is_over
        bench.assert_tidy(fetcher)

    run(bench, in_turn(large), body)


def test_with_an_ssd_tier_all_of_it_comes_though_nobody_reads(maker: Maker, tmp_path: Path) -> None:
    large = [noise(4 * MIB, seed) for seed in range(10)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        bench.ram.set_limit(32 * MIB)
        await found.reached(1.0)
        assert found.share == 1.0
        await disk_of(fetcher).settled()

    run(bench, in_turn(large), body)
    assert bench.moved() == [1] * 160
    assert bench.tier.count("objects/") == 10


def test_where_others_wait_for_the_link_only_what_is_needed_soon_is_fetched(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [noise(FRAME, seed) for seed in range(20)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)
    others = True

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        nonlocal others
        link = fetcher.prefetches.link
        monkeypatch.setattr(link, "is_shared", lambda owner: others and owner == bench.lookup.name)
        await trio.sleep(1.5)
        assert bench.moved() == [1] * (1 + (SOON + 1500) // 1000) + [0] * 13
        # The program is where it reads.
        await bench.read(fetcher, large[4])
        await trio.sleep(1.5)
        assert sum(bench.moved()) == 7 + 4
        others = False
        await found.reached(1.0)
        assert sum(bench.moved()) == 20

    run(bench, in_turn(large, 1000), body)


# -- a profile that is of no use --------------------------------------------------------------------------------------------------------


def seconds_of(bench: Bench, files: Sequence[bytes], accesses: Sequence[Access]) -> tuple[float, int]:
    """Return how long it takes to read files one after the other under a profile, 2 ms between two, and what was fetched by it."""
    took = 0.0

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        nonlocal took
        del found
        began = trio.current_time()
        for data in files:
            await bench.read(fetcher, data)
            await trio.sleep(0.002)
        took = trio.current_time() - began

    run(bench, accesses, body)
    return took, bench.counters.profile_bytes


@pytest.mark.parametrize(("rate", "most"), [(200e6, 96), (40e6, 32)])
def test_a_profile_of_a_quite_different_program_is_soon_left_and_costs_nothing_to_speak_of(maker: Maker, rate: float, most: int) -> None:
    ours = scattered(maker, 200)
    theirs = [noise(8 * MIB, seed) for seed in range(1000, 1012)]
    for data in theirs:
        pack(maker, data)
    bench = Bench(maker)
    times: list[float] = []
    fetched: list[int] = []
    for profile in ([], in_turn(theirs)):
        bench.store = Shared(bench.store.inner, rate=rate)
        took, count = seconds_of(bench, ours, profile)
        times.append(took)
        fetched.append(count)
    assert fetched[0] == 0
    assert fetched[1] <= most * MIB, "of 96 MiB"
    assert times[1] < 1.15 * times[0]


@dataclass
class Shared(Far):
    """Like it, but all GETs share one link of that rate."""

    moving: int = 0

    async def __call__(self, call: Callable[[], Buffer]) -> Buffer:
        data = call()
        await trio.sleep(self.seconds)
        left = float(len(data))
        self.moving += 1
        try:
            while left > 0:
                part = min(left, 64 * KIB)
                await trio.sleep(part * self.moving / self.rate)
                left -= part
        finally:
            self.moving -= 1
        return data


def test_a_program_that_reads_in_another_order_is_followed(maker: Maker) -> None:
    large = [noise(4 * MIB, seed) for seed in range(16)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)
    bench.store = Shared(bench.store.inner, rate=50e6)

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        for data in (*large[12:], *large[:12]):
            for at in range(0, len(data), MIB):
                await bench.read(fetcher, data, at, at + MIB)
        await found.reached(1.0)

    run(bench, in_turn(large), body)
    assert sum(bench.moved()) <= 1.05 * 256, "a hedge or two"
    assert bench.waits <= 30


# -- faults -----------------------------------------------------------------------------------------------------------------------------


def test_a_store_that_dies_in_the_middle_ends_it_and_readers_wait_for_nothing_of_it(maker: Maker) -> None:
    large = [noise(4 * MIB, seed) for seed in range(16)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)

    def dead(key: str, byte_range: ByteRange, data: bytes) -> bytes:
        del key, byte_range
        if len(bench.store.gets) > 8:
            raise StoreError("gone")
        return data

    bench.store.hook = dead

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        await trio.sleep(PATIENCE + 60)
        assert found.is_over
        assert 0 < found.share < 1
        bench.assert_tidy(fetcher)
        with pytest.raises(StoreError):
            await bench.read(fetcher, large[15], 0, MIB)

    run(bench, in_turn(large), body)


def test_a_store_that_comes_back_gives_the_rest(maker: Maker) -> None:
    large = [noise(4 * MIB, seed) for seed in range(16)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)
    down = True

    def hook(key: str, byte_range: ByteRange, data: bytes) -> bytes:
        del key, byte_range
        if down and len(bench.store.gets) > 4:
            raise StoreError("gone")
        return data

    bench.store.hook = hook

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        nonlocal down
        await trio.sleep(20)
        down = False
        # The breaker is told by who reads.
        await bench.read(fetcher, large[3], 0, MIB)
        await trio.sleep(30)
        await found.reached(1.0)
        bench.assert_tidy(fetcher)
        assert found.share > 0.5

    run(bench, in_turn(large), body)


def test_a_frame_that_is_wrong_fails_who_reads_it_and_nobody_else(maker: Maker) -> None:
    large = [noise(4 * MIB, seed) for seed in range(4)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)
    bad = bench.lookup.objects.frame(20)
    key = pack_key(bench.lookup.objects.pack(bad.pack).digest.hex())

    def damage(got: str, byte_range: ByteRange, data: bytes) -> bytes:
        at = bad.offset + 5 - byte_range.start
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if got == key and 0 <= at < len(data) else data

    bench.store.hook = damage

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        await found.reached(1.0)
        assert found.is_over
        bench.assert_tidy(fetcher)
        for number, data in enumerate(large):
            for at in range(0, len(data), FRAME):
                if number * 16 + at // FRAME == 20:
                    bench.now += 10
                    with pytest.raises(IntegrityError):
                        await bench.read(fetcher, data, at, at + FRAME)
                else:
                    await bench.read(fetcher, data, at, at + FRAME)

    run(bench, in_turn(large), body)


def test_an_ssd_tier_that_refuses_changes_nothing_for_readers(maker: Maker, tmp_path: Path) -> None:
    large = [noise(4 * MIB, seed) for seed in range(10)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        bench.ram.set_limit(32 * MIB)
        disk_of(fetcher).disable()
        await trio.sleep(LATER)
        assert fetcher.prefetches.held(found) <= 16 * MIB
        for data in large:
            for at in range(0, len(data), MIB):
                await bench.read(fetcher, data, at, at + MIB)
                await trio.sleep(0.05)
        assert not bench.ram.evicted or max(bench.moved()) <= 2

    run(bench, in_turn(large), body)


def test_one_that_is_stopped_sends_nothing_more_and_leaves_nothing(maker: Maker) -> None:
    large = [noise(4 * MIB, seed) for seed in range(16)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        await trio.sleep(AT_ONCE)
        fetcher.prefetches.drop(bench.lookup.name)
        sent = len(bench.store.gets)
        await trio.sleep(LATER)
        assert found.is_over
        assert len(bench.store.gets) <= sent + 16, "those that waited for their turn"
        assert not fetcher.prefetches.ahead
        assert fetcher.prefetches.of(bench.lookup.name) is None
        bench.assert_tidy(fetcher)
        await bench.read(fetcher, large[15], 0, MIB)

    run(bench, in_turn(large), body)
    assert sum(bench.moved()) < 200


def test_another_profile_takes_the_place_of_the_first(maker: Maker) -> None:
    files = scattered(maker)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            found = fetcher.prefetches.begin(bench.lookup)
            nursery.start_soon(found.run)
            await found.follow(in_turn(files[:10]))
            await trio.sleep(1.0)
            assert sum(bench.moved()) == 10
            await found.follow(in_turn(files))
            found.complete()
            await found.reached(1.0)
            assert found.is_over
            nursery.cancel_scope.cancel()

    bench.run(body)
    assert bench.moved() == [1] * 40


def test_an_unsound_map_is_no_error_of_anybody(maker: Maker) -> None:
    files = scattered(maker)
    bench = Bench(maker)

    class Broken:
        name = bench.lookup.name
        objects = bench.lookup.objects

        @property
        def members(self) -> object:
            raise IntegrityError("unsound")

    async def body(fetcher: Fetcher) -> None:
        found = fetcher.prefetches.begin(Broken())  # type: ignore[arg-type]
        await found.follow(in_turn(files))
        found.complete()
        await found.run()
        assert found.is_over

    bench.run(body)
    assert any("prefetch_failed" in str(event) for event in bench.log.events)


def test_what_few_starts_touch_waits_until_nobody_else_wants_the_link(maker: Maker) -> None:
    files = scattered(maker)
    bench = Bench(maker)
    accesses = [of(data, number, share=EVERY_START if number % 2 else EVERY_START // 4) for number, data in enumerate(files)]

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        del fetcher
        await found.reached(1.0)
        assert sum(bench.moved()) <= 40
        await trio.sleep(LATER)
        assert found.is_over

    run(bench, accesses, body)
    assert bench.moved() == [1] * 40
