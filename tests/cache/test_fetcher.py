"""The fetcher against a store that counts, waits and lies."""

import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from imagefs.cache.counters import ReadCounters
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.flights import BAD_SECONDS
from imagefs.cache.layout import WINDOW, ObjectRecord
from imagefs.cache.link import Link, LinkCounters
from imagefs.cache.members import Members
from imagefs.cache.neighbours import Neighbours
from imagefs.cache.ram import RamCache
from imagefs.digest import digest_of
from imagefs.errors import DeadlineError, ImageFSError, IntegrityError, NotFoundError
from imagefs.format.objectmap import ObjectMap, build_object_map
from imagefs.store.base import ByteRange, ObjectStore
from imagefs.store.opening import open_store
from tests.fuse.images import FRAME, Maker, noise


@dataclass
class Lookup:
    """An image, as far as the fetcher needs one."""

    objects: ObjectMap
    name: str = "0" * 64

    def __post_init__(self) -> None:
        self.neighbours = Neighbours(self.objects)
        self.members = Members(self.objects)


@dataclass
class SpyStore:
    """Passes GETs on after a hook that may wait, raise, or change the bytes."""

    inner: ObjectStore
    hook: Callable[[str, ByteRange | None, bytes], bytes] = lambda _key, _range, data: data
    gets: list[tuple[str, ByteRange | None]] = field(default_factory=list)

    def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        self.gets.append((key, byte_range))
        return self.hook(key, byte_range, bytes(self.inner.get(key, byte_range)))


@dataclass
class Log:
    """Remembers events."""

    events: list[dict[str, object]] = field(default_factory=list)

    def error(self, event: str, /, **fields: object) -> None:
        self.events.append({"event": event, **fields})

    warning = info = exception = error


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Maker]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    yield Maker(store)
    store.close()


class Bench:
    """A fetcher over one image, with what it counts."""

    def __init__(self, maker: Maker, *, ram: int = 64 << 20, deadline: float = 10.0) -> None:
        self.store = SpyStore(maker.store)
        self.lookup = Lookup(ObjectMap(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs)))
        self.ram = RamCache(ram)
        self.counters = ReadCounters()
        self.link = LinkCounters()
        self.log = Log()
        self.deadline = deadline
        self.now = 1000.0

    def record(self, data: bytes) -> ObjectRecord:
        row = self.lookup.objects.find(digest_of(data))
        assert row is not None
        return ObjectRecord(self.lookup, row)

    def run(self, body: Callable[[Fetcher], Awaitable[None]]) -> None:
        async def main() -> None:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    link = Link(self.store, self.link, self.log, deadline=self.deadline)
                    fetcher = Fetcher(
                        nursery, link, self.ram, None, self.counters, log=self.log, deadline=self.deadline, clock=lambda: self.now
                    )
                    await body(fetcher)
                    nursery.cancel_scope.cancel()

        trio.run(main)


async def _read(fetcher: Fetcher, record: ObjectRecord, start: int, end: int) -> bytes:
    view = fetcher.cached(record, start, end)
    return bytes(await fetcher.read(record, start, end) if view is None else view)


def test_reads_give_the_bytes_cold_and_warm(maker: Maker) -> None:
    data = noise(2 * WINDOW + 12345)
    maker.file("big", data)
    bench = Bench(maker)
    ranges = [(0, 1), (5, FRAME + 7), (WINDOW - 10, WINDOW + 10), (len(data) - 3, len(data)), (0, len(data)), (WINDOW, 2 * WINDOW)]

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        for start, end in [*ranges, *ranges]:
            assert await _read(fetcher, record, start, end) == data[start:end]

    bench.run(body)
    assert bench.counters.frames_fetched == -(-len(data) // FRAME)
    assert bench.counters.verify_failures == 0


def test_a_warm_read_is_a_view_and_no_copy(maker: Maker) -> None:
    data = noise(WINDOW)
    maker.file("big", data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        await fetcher.read(record, 0, WINDOW)
        view = fetcher.cached(record, 1 << 20, 2 << 20)
        assert isinstance(view, memoryview)
        assert view == data[1 << 20 : 2 << 20]
        slab = bench.ram.get(record.slab_at(0)[0])
        assert slab is not None
        assert view.obj is slab.view.obj

    bench.run(body)


def test_many_readers_of_one_frame_make_one_get(maker: Maker) -> None:
    data = noise(3 * FRAME)
    maker.file("big", data)
    bench = Bench(maker)
    gate = threading.Event()

    def wait(_key: str, _range: ByteRange | None, got: bytes) -> bytes:
        assert gate.wait(10)
        return got

    bench.store.hook = wait

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)

        async def reader(at: int) -> None:
            assert await _read(fetcher, record, at, at + 100) == data[at : at + 100]

        async with trio.open_nursery() as nursery:
            for at in range(0, FRAME - 100, 1000):
                nursery.start_soon(reader, at)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()

    bench.run(body)
    assert len(bench.store.gets) == 1


def test_images_share_the_frames_of_small_objects(maker: Maker) -> None:
    files = {f"f{number}": noise(1000, number) for number in range(20)}
    maker.shared(files)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        for data in files.values():
            assert await _read(fetcher, bench.record(data), 0, 1000) == data
        other = Lookup(bench.lookup.objects, "1" * 64)
        data = files["f7"]
        row = other.objects.find(digest_of(data))
        assert row is not None
        assert bytes(fetcher.cached(ObjectRecord(other, row), 10, 20) or b"") == data[10:20]

    bench.run(body)
    assert len(bench.store.gets) == 1


def test_a_sequential_reader_is_read_ahead_in_few_gets_and_nothing_moves_twice(maker: Maker) -> None:
    data = noise(16 * WINDOW)
    maker.file("big", data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        for start in range(0, len(data), FRAME):
            assert await _read(fetcher, record, start, start + FRAME) == data[start : start + FRAME]

    bench.run(body)
    assert len(bench.store.gets) <= len(data) // FRAME // 8
    assert bench.counters.frames_fetched == len(data) // FRAME
    ranges = [(key, got.start, got.end) for key, got in bench.store.gets if got is not None]
    stored = sum(pack[2] for pack in maker.packs)
    assert 0.9 * stored < sum(end - start for _, start, end in ranges) < stored


def test_holes_are_zeros_that_nobody_fetches(maker: Maker) -> None:
    data = noise(FRAME) + bytes(2 * FRAME) + noise(FRAME, 1)
    maker.file("sparse", data, hole=(FRAME, 3 * FRAME))
    nothing = bytes(3 * WINDOW)
    maker.file("zeros", nothing, hole=(0, 3 * WINDOW))
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        assert await _read(fetcher, bench.record(nothing), 5, 2 * WINDOW) == nothing[5 : 2 * WINDOW]
        assert not bench.store.gets
        assert await _read(fetcher, bench.record(data), 0, len(data)) == data

    bench.run(body)
    assert bench.counters.frames_fetched == 2


def test_a_frame_damaged_once_is_fetched_again(maker: Maker) -> None:
    data = noise(FRAME)
    maker.file("a", data)
    bench = Bench(maker)

    def damage_first(_key: str, _range: ByteRange | None, got: bytes) -> bytes:
        return bytes([got[0] ^ 1]) + got[1:] if len(bench.store.gets) == 1 else got

    bench.store.hook = damage_first

    async def body(fetcher: Fetcher) -> None:
        assert await _read(fetcher, bench.record(data), 0, FRAME) == data

    bench.run(body)
    assert (bench.counters.verify_failures, len(bench.store.gets)) == (1, 2)
    assert not bench.log.events


def test_a_bad_frame_fails_alone_is_named_and_is_not_asked_for_again_at_once(maker: Maker) -> None:
    data = noise(8 * FRAME)
    maker.file("big", data)
    bench = Bench(maker)
    frame = bench.lookup.objects.frame(3)

    def damage(_key: str, byte_range: ByteRange | None, got: bytes) -> bytes:
        assert byte_range is not None
        at = frame.offset - byte_range.start
        return got[:at] + bytes(8) + got[at + 8 :] if 0 <= at < len(got) else got

    bench.store.hook = damage

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        with pytest.raises(IntegrityError):
            await fetcher.read(record, 0, len(data))
        gets = len(bench.store.gets)
        for start in range(0, len(data), FRAME):
            if start != 3 * FRAME:
                assert await _read(fetcher, record, start, start + FRAME) == data[start : start + FRAME]
        with pytest.raises(IntegrityError):
            await fetcher.read(record, 3 * FRAME, 3 * FRAME + 1)
        assert len(bench.store.gets) == gets
        bench.now += BAD_SECONDS
        bench.store.hook = lambda _key, _range, got: got
        assert await _read(fetcher, record, 0, len(data)) == data

    bench.run(body)
    assert bench.counters.verify_failures == 2
    assert [(event["event"], event["frame"], event["object"]) for event in bench.log.events] == [
        ("frame_failed", frame.digest.hex(), digest_of(data).hex())
    ]


def test_a_short_pack_gives_what_it_has(maker: Maker) -> None:
    data = noise(4 * FRAME)
    maker.file("big", data)
    bench = Bench(maker)
    end = bench.lookup.objects.frame(2).offset

    def short(_key: str, byte_range: ByteRange | None, got: bytes) -> bytes:
        assert byte_range is not None
        if byte_range.end > end:
            raise IntegrityError("ends early")
        return got

    bench.store.hook = short

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        with pytest.raises(IntegrityError):
            await fetcher.read(record, 0, len(data))
        assert await _read(fetcher, record, 0, 2 * FRAME) == data[: 2 * FRAME]

    bench.run(body)


@pytest.mark.parametrize("error", [NotFoundError("no pack"), RuntimeError("a bug")])
def test_an_error_of_the_store_reaches_every_reader_and_ends_nothing(maker: Maker, error: Exception) -> None:
    data = noise(2 * WINDOW)
    maker.file("big", data)
    bench = Bench(maker)

    def fail(_key: str, _range: ByteRange | None, _got: bytes) -> bytes:
        raise error

    bench.store.hook = fail

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        failed = []

        async def reader(start: int) -> None:
            try:
                await fetcher.read(record, start, start + 10)
            except ImageFSError as problem:
                failed.append(problem)

        async with trio.open_nursery() as nursery:
            for start in range(0, len(data), FRAME):
                nursery.start_soon(reader, start)
        assert len(failed) == 2 * WINDOW // FRAME
        # What was read ahead may still be tried.
        assert all(slab.in_flight and not slab.landed for slab in bench.ram._slabs.values())

    bench.run(body)


def test_a_store_that_hangs_costs_the_deadline_and_nothing_that_is_there(maker: Maker) -> None:
    data, other = noise(2 * FRAME), noise(2 * FRAME, 1)
    maker.file("a", data)
    maker.file("b", other)
    bench = Bench(maker, deadline=0.3)
    gate = threading.Event()

    async def body(fetcher: Fetcher) -> None:
        record, held = bench.record(data), bench.record(other)
        assert await _read(fetcher, held, 0, len(other)) == other

        def hang(_key: str, _range: ByteRange | None, got: bytes) -> bytes:
            gate.wait(10)
            return got

        bench.store.hook = hang
        begin = trio.current_time()
        with pytest.raises(DeadlineError, match="the store did not answer"):
            await fetcher.read(record, 0, len(data))
        assert trio.current_time() - begin < 2
        assert bytes(fetcher.cached(held, 0, len(other)) or b"") == other
        gate.set()

    try:
        bench.run(body)
    finally:
        gate.set()


def test_memory_stays_bounded_however_much_is_read(maker: Maker) -> None:
    data = noise(4 * WINDOW)
    maker.file("big", data)
    bench = Bench(maker, ram=WINDOW + FRAME)

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        for start in range(0, len(data), 1 << 20):
            assert await _read(fetcher, record, start, start + (1 << 20)) == data[start : start + (1 << 20)]
            assert bench.ram.used <= 2 * WINDOW

    bench.run(body)
    assert bench.ram.evicted >= 2 * WINDOW


def test_tier_and_frames_are_told(maker: Maker) -> None:
    data = noise(3 * FRAME)
    maker.file("a", data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        assert (fetcher.tier_of(record), record.frame_count()) == ("store", 3)
        await fetcher.read(record, 0, FRAME)
        assert fetcher.tier_of(record) == "store"
        await fetcher.read(record, 0, len(data))
        assert fetcher.tier_of(record) == "ram"

    bench.run(body)
