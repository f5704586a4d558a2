"""Which program runs, and what the kernel serves it by itself: what a prefetch makes of being told."""

from pathlib import Path

import pytest
import trio

from imagefs.cache.fetcher import Fetcher
from imagefs.cache.prefetch import Prefetch
from imagefs.digest import digest_of
from tests.cache.far_bench import LATER, MIB, Bench, disk_of, noise, pack
from tests.cache.test_prefetch import in_turn, of, run, scattered
from tests.fuse.images import FRAME, Maker

pytestmark = pytest.mark.usefixtures("threads_take_no_time")


def test_the_profile_of_the_program_that_runs_is_judged_anew(maker: Maker) -> None:
    ours, theirs = scattered(maker, 40), scattered(maker, 40, seed=500)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            found = fetcher.prefetches.begin(bench.lookup)
            nursery.start_soon(found.run)
            for data in ours[:8]:
                await bench.read(fetcher, data)
            await found.follow(in_turn(theirs))
            found.doubt()
            before = sum(bench.moved())
            await trio.sleep(LATER)
            assert sum(bench.moved()) == before, "nothing because of who it is not"
            assert bench.counters.profiles_doubted == 1
            await found.follow(in_turn(ours), chosen=True)
            found.complete()
            await found.reached(1.0)
            assert found.is_over
            nursery.cancel_scope.cancel()

    bench.run(body)
    assert all(bench.moved()[:40])


def test_who_is_taken_for_a_stranger_is_helped_as_soon_as_it_wants_what_the_profile_knows(maker: Maker) -> None:
    files = scattered(maker)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            found = fetcher.prefetches.begin(bench.lookup)
            nursery.start_soon(found.run)
            found.doubt()
            await found.follow(in_turn(files))
            found.complete()
            for data in files:
                await bench.read(fetcher, data)
            await found.reached(1.0)
            nursery.cancel_scope.cancel()

    bench.run(body)
    assert bench.waits <= 9, "of 40"


# -- what the kernel serves by itself -------------------------------------------------------------------------------------------------


def test_opens_of_what_is_here_tell_where_the_program_is(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [noise(FRAME, seed) for seed in range(20)]
    for data in large:
        pack(maker, data)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        del found
        prefetches = fetcher.prefetches
        monkeypatch.setattr(prefetches.link, "is_shared", lambda owner: owner == bench.lookup.name)
        await trio.sleep(1.5)
        assert sum(bench.moved()) == 7
        # Nobody asks for it here: it is on SSD, and the kernel reads it.
        prefetches.opened(bench.lookup.name, digest_of(large[6]))
        await trio.sleep(0.5)
        assert sum(bench.moved()) == 12
        prefetches.opened(bench.lookup.name, digest_of(large[1]))
        prefetches.opened(bench.lookup.name, bytes(32))
        prefetches.opened("another", digest_of(large[19]))
        await trio.sleep(0.4)
        assert sum(bench.moved()) == 12, "where it was before says nothing"

    run(bench, in_turn(large, 1000), body)


def test_opens_of_what_the_profile_does_not_know_end_it_and_of_what_it_knows_keep_it(maker: Maker) -> None:
    ours, theirs = scattered(maker, 40), [noise(8 * MIB, seed) for seed in range(1000, 1012)]
    for data in theirs:
        pack(maker, data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        del found
        for data in ours[:8]:
            fetcher.prefetches.opened(bench.lookup.name, digest_of(data))
        before = len(bench.store.gets)
        await trio.sleep(LATER)
        assert len(bench.store.gets) <= before + 16, "those that waited for their turn"
        assert bench.counters.profiles_doubted == 1
        for data in theirs[:8]:
            fetcher.prefetches.opened(bench.lookup.name, digest_of(data))
        await trio.sleep(LATER)
        assert sum(bench.moved()[40:]) == 256, "as much as RAM holds unread"

    run(bench, in_turn(theirs), body)


def test_a_large_object_that_is_mostly_touched_lands_whole_and_the_kernel_has_it(maker: Maker, tmp_path: Path) -> None:
    mostly, half = noise(32 * FRAME, 1), noise(64 * FRAME, 2)
    pack(maker, mostly, half)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, found: Prefetch) -> None:
        await found.done()
        assert found.share == 1.0
        await disk_of(fetcher).settled()
        assert fetcher.is_native(bench.record(mostly))
        assert not fetcher.is_native(bench.record(half))

    run(bench, [of(mostly, 0, end=31 * FRAME), of(half, 1, end=32 * FRAME)], body)
    assert sum(bench.moved()) == 64, "and nothing of the other one"
    assert bench.counters.profile_bytes == 64 * FRAME
