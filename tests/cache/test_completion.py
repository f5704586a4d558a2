"""An image comes whole to SSD, in the background: at its pace, behind everybody, and never at the cost of what is there."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from imagefs.cache.completion import Completion, every_step
from imagefs.cache.fetcher import Fetcher
from imagefs.errors import IntegrityError
from imagefs.format.objectmap import FRAME_SIZE, ObjectMap
from tests.cache.far_bench import KIB, LATER, MIB, Bench, disk_of, noise, pack, small_files
from tests.fuse.images import FRAME, Maker

pytestmark = pytest.mark.usefixtures("threads_take_no_time")

RATE = 4 * MIB
LARGE = 5 * MIB + 100 * KIB


def image(maker: Maker) -> list[bytes]:
    """Pack two large files, files that share frames, one that has a frame alone, and one with a hole; return the large ones."""
    large = [noise(LARGE, seed) for seed in range(2)]
    pack(maker, large[0])
    for at in range(3):
        pack(maker, *(small_files(10, 10 * KIB, 10 * at + seed) for seed in range(10)), noise(90 * KIB, 99 + at))
    pack(maker, large[1])
    maker.file("sparse", noise(FRAME, 50) + bytes(FRAME) + noise(FRAME, 51), hole=(FRAME, 2 * FRAME))
    return large


def run(bench: Bench, body: Callable[[Fetcher, Completion], Awaitable[None]], *, rate: int = RATE) -> None:
    async def main(fetcher: Fetcher) -> None:
        completion = fetcher.completion(rate)
        assert completion is not None
        await body(fetcher, completion)

    bench.run(main, known=False)


def test_each_frame_is_a_step_once_and_an_object_stays_together(maker: Maker) -> None:
    image(maker)
    objects = Bench(maker).lookup.objects
    steps = list(every_step(objects, objects.owners()))
    assert sorted(step.frame for step in steps) == list(range(objects.frame_count))
    assert [step.frame for step in steps] == sorted(step.frame for step in steps), "as the packs go"


def test_all_of_it_lands_at_its_pace_and_leaves_ram(maker: Maker, tmp_path: Path) -> None:
    image(maker)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, completion: Completion) -> None:
        began = trio.current_time()
        await completion.run(bench.lookup)
        took = trio.current_time() - began
        await disk_of(fetcher).settled()
        objects = bench.lookup.objects
        stored = sum(objects.frame(number).stored for number in range(objects.frame_count))
        assert stored / RATE - 2 <= took <= stored / RATE + 10
        assert all(disk_of(fetcher).covers(row.digest, 0, row.size, use=False) for row in objects)
        assert bench.ram.used < MIB
        bench.assert_tidy(fetcher)
        assert bench.counters.completed_bytes == sum(objects.frame(number).length for number in range(objects.frame_count))
        # There is nothing left to do.
        bench.store.gets.clear()
        await completion.run(bench.lookup)
        assert not bench.store.gets

    run(bench, body)
    assert not bench.log.events


def test_what_a_reader_has_come_for_stays_in_ram(maker: Maker, tmp_path: Path) -> None:
    large = image(maker)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, completion: Completion) -> None:
        await bench.read(fetcher, large[0], 0, 128 * KIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(completion.run, bench.lookup)
        assert fetcher.cached(bench.record(large[0]), 0, 128 * KIB) is None or bench.ram.used >= FRAME
        await bench.read(fetcher, large[1])

    run(bench, body)
    assert max(bench.moved()) == 1


def test_it_waits_while_a_reader_waits(maker: Maker, tmp_path: Path) -> None:
    image(maker)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, completion: Completion) -> None:
        link = fetcher.prefetches.link
        quiet = False
        type(link).is_quiet, before = property(lambda _: quiet), type(link).is_quiet  # type: ignore[method-assign, assignment]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(completion.run, bench.lookup)
                await trio.sleep(60)
                sent = len(bench.store.gets)
                assert sent <= 4
                quiet = True
                await trio.sleep(60)
                assert len(bench.store.gets) > sent
                nursery.cancel_scope.cancel()
        finally:
            type(link).is_quiet = before  # type: ignore[method-assign]

    run(bench, body)


def test_it_pushes_nothing_out(maker: Maker, tmp_path: Path) -> None:
    image(maker)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, completion: Completion) -> None:
        disk = disk_of(fetcher)
        disk.set_bounds(limit=6 * MIB + 16 * 4 * MIB)
        with trio.move_on_after(600):
            await completion.run(bench.lookup)
        assert not disk.counters.evicted_files
        assert 6 * MIB - LARGE <= disk.held <= 10 * MIB

    run(bench, body)


def test_it_ends_with_the_last_mount_and_may_begin_again(maker: Maker, tmp_path: Path) -> None:
    image(maker)
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, completion: Completion) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(completion.run, bench.lookup)
            await trio.sleep(0.5)
            completion.keep({bench.lookup.name})
            completion.keep(set())
        bench.assert_tidy(fetcher)
        assert sum(bench.moved()) < bench.lookup.objects.frame_count
        await completion.run(bench.lookup)

    run(bench, body)
    assert set(bench.moved()) == {1}


def test_a_map_that_is_unsound_ends_it_and_nothing_stays_on_its_way(maker: Maker, tmp_path: Path) -> None:
    image(maker)
    bench = Bench(maker, tmp_path / "cache")
    objects = bench.lookup.objects
    # Its pack.
    at = objects._frames_at + 40 * FRAME_SIZE + 32
    bench.raw[at : at + 4] = b"\xff\xff\xff\x7f"

    async def body(fetcher: Fetcher, completion: Completion) -> None:
        with pytest.raises(IntegrityError):
            ObjectMap(bytes(bench.raw)).frame(40)
        await completion.run(bench.lookup)
        await trio.sleep(LATER)
        bench.assert_tidy(fetcher)

    run(bench, body)
    assert [event["event"] for event in bench.log.events] == ["completion_failed"]


def test_without_an_ssd_tier_there_is_nothing_to_complete(maker: Maker) -> None:
    pack(maker, noise(MIB))

    async def body(fetcher: Fetcher) -> None:
        await trio.lowlevel.checkpoint()
        assert fetcher.completion(RATE) is None

    Bench(maker).run(body)
