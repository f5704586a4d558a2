"""An image comes whole to SSD because somebody asked: afterwards nothing of it is read from the store, whatever shape its objects have."""

from pathlib import Path

import pytest
import trio

from imagefs.cache.fetcher import Fetcher
from imagefs.cache.warming import MOVING, Warming, Warmth, all_steps
from imagefs.digest import digest_of
from imagefs.format.objectmap import HOLE, Extent
from imagefs.store.base import pack_key
from tests.cache.far_bench import KIB, MIB, Bench, disk_of, noise, pack, small_files
from tests.fuse.images import FRAME, Maker, Row

pytestmark = pytest.mark.usefixtures("threads_take_no_time")

PAGE = 4096


def memory(maker: Maker, seed: int) -> bytes:
    """Pack memory as a snapshot has it: runs of pages of frames, some twice, whole frames at two places, and holes."""
    pieces = [noise(FRAME, seed + number) for number in range(3)]
    first = maker.frames
    maker._pack(pieces)
    content, extents = bytearray(), []
    for frame, start, length in (
        (0, PAGE, 20 * PAGE),
        (None, 0, 5 * PAGE),
        (1, 0, FRAME),
        (0, 40 * PAGE, 3 * PAGE),
        (1, 0, FRAME),
        (None, 0, 3 * FRAME),
        (2, 0, 7 * PAGE + 100),
    ):
        place = Extent(len(content), length, HOLE, 0) if frame is None else Extent(len(content), length, first + frame, start)
        extents.append(place)
        content += bytes(length) if frame is None else pieces[frame][start : start + length]
    maker.rows[digest_of(content)] = Row(digest_of(content), len(content), extents)
    return bytes(content)


def image(maker: Maker) -> list[bytes]:
    """Pack files of every shape; return what is in them."""
    large, small = noise(5 * MIB + 100 * KIB, 1), small_files(10, 10 * KIB, 2)
    pack(maker, large)
    pack(maker, small, noise(90 * KIB, 3))
    maker.file("sparse", noise(FRAME, 50) + bytes(FRAME) + noise(FRAME, 51), hole=(FRAME, 2 * FRAME))
    return [large, *small, memory(maker, 60), memory(maker, 70)]


async def warmed(fetcher: Fetcher, bench: Bench) -> Warmth:
    warmth = Warmth()
    await Warming(fetcher.prefetches, disk_of(fetcher)).run(bench.lookup, warmth)
    assert warmth.is_over
    return warmth


def test_afterwards_nothing_is_read_from_the_store(maker: Maker, tmp_path: Path) -> None:
    contents = image(maker)
    bench = Bench(maker, tmp_path / "cache")

    async def warm(fetcher: Fetcher) -> None:
        warmth = await warmed(fetcher, bench)
        assert (warmth.here, warmth.problem, warmth.damaged) == (warmth.content, "", 0)
        assert warmth.content == sum(step.length for step in all_steps(bench.lookup.objects))
        assert sorted(bench.moved())[-3:] == [1, 2, 2], "the two that are whole at two places"
        assert bench.ram.used < MIB
        bench.assert_tidy(fetcher)
        # There is nothing left to do.
        bench.store.gets.clear()
        again = await warmed(fetcher, bench)
        assert (again.here, again.fetched, bench.store.gets) == (again.content, 0, [])

    async def read(fetcher: Fetcher) -> None:
        for data in contents:
            await bench.read(fetcher, data)
        assert not bench.store.gets

    bench.run(warm, known=False)
    assert not bench.log.events
    bench.run(read, known=False)


def test_what_others_have_of_a_shared_pack_is_not_brought(maker: Maker, tmp_path: Path) -> None:
    data = memory(maker, 60)
    stranger = noise(FRAME, 9)
    maker._pack([stranger])
    bench = Bench(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher) -> None:
        warmth = await warmed(fetcher, bench)
        assert warmth.here == warmth.content
        assert bench.moved() == [1, 2, 1, 0]
        await bench.read(fetcher, data)

    bench.run(body)


def test_it_takes_what_the_link_gives_and_no_more_memory_than_it_may(maker: Maker, tmp_path: Path) -> None:
    pack(maker, *(noise(4 * MIB, seed) for seed in range(40)))
    bench = Bench(maker, tmp_path / "cache", seconds=0.1)
    most = 0

    async def body(fetcher: Fetcher) -> None:
        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, bench.ram.used)
                await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            began = trio.current_time()
            warmth = await warmed(fetcher, bench)
            took = trio.current_time() - began
            nursery.cancel_scope.cancel()
        assert warmth.here == warmth.content == 160 * MIB
        # Each GET takes a tenth of a second, however large it is: one at a time took two.
        assert took < 160 / 8 * 0.1

    bench.run(body)
    assert most < 2 * MOVING + bench.ram.limit // 4


def test_a_reader_goes_first(maker: Maker, tmp_path: Path) -> None:
    contents = [noise(4 * MIB, seed) for seed in range(60)]
    pack(maker, *contents)
    bench = Bench(maker, tmp_path / "cache", seconds=0.1)

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warmed, fetcher, bench)
            await trio.sleep(0.15)
            before = len(bench.store.gets)
            began = trio.current_time()
            await bench.read(fetcher, contents[-1], 0, 4 * KIB)
            took = trio.current_time() - began
        assert 0 < before < 20, "most of it is still to come"
        # What is under way comes first, then this.
        assert took < 0.35

    bench.run(body)


def test_what_is_damaged_is_told_and_the_rest_comes(maker: Maker, tmp_path: Path) -> None:
    contents = image(maker)
    bench = Bench(maker, tmp_path / "cache")
    objects = bench.lookup.objects
    frame = objects.frame(objects.frame_count - 1)
    path = tmp_path / "store" / pack_key(objects.pack(frame.pack).digest.hex())
    held = bytearray(path.read_bytes())
    held[frame.offset + 50] ^= 1
    path.chmod(0o644)
    path.write_bytes(held)

    async def body(fetcher: Fetcher) -> None:
        warmth = await warmed(fetcher, bench)
        assert (warmth.damaged, warmth.content - warmth.here) == (frame.length, frame.length)
        assert frame.digest.hex() in warmth.problem
        for data in contents[:-1]:
            await bench.read(fetcher, data)
        # It was repaired, and the rest is not brought again.
        held[frame.offset + 50] ^= 1
        path.write_bytes(held)
        bench.now += 10
        bench.store.gets.clear()
        again = await warmed(fetcher, bench)
        assert (again.here, again.fetched, again.problem) == (again.content, frame.length, "")
        assert len(bench.store.gets) == 1

    bench.run(body)


def test_an_unsound_map_ends_it(maker: Maker, tmp_path: Path) -> None:
    pack(maker, noise(5 * MIB, 1))
    bench = Bench(maker, tmp_path / "cache")
    bench.raw[-80 - 56 + 32 : -80 - 56 + 36] = b"\xff\xff\xff\xff"

    async def body(fetcher: Fetcher) -> None:
        warmth = await warmed(fetcher, bench)
        assert warmth.problem
        assert (warmth.here, warmth.fetched) == (0, 0)

    bench.run(body, known=False)
    assert bench.log.events
