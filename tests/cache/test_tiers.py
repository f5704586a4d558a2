"""The fetcher over RAM, SSD and store: where a read is served from, and what damage in a tier costs."""

import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from imagefs.cache import disk_reads
from imagefs.cache.counters import ReadCounters, Tally
from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_files import OpenFile
from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.disk_place import CachePlace
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import WINDOW, ObjectRecord, Part
from imagefs.cache.link import Link, LinkCounters
from imagefs.cache.pieces import Frames, read_pieces
from imagefs.cache.ram import RamCache
from imagefs.digest import digest_of
from imagefs.errors import DeadlineError, ImageFSError, NotFoundError, StoreError
from imagefs.format.objectmap import ObjectMap, build_object_map
from imagefs.store.base import ByteRange
from imagefs.store.opening import open_store
from tests.cache.test_fetcher import Log, Lookup, SpyStore
from tests.fuse.images import FRAME, Maker, noise

Body = Callable[[Fetcher, DiskTier, Callable[[bytes], ObjectRecord]], Awaitable[None]]


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Maker]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    yield Maker(store)
    store.close()


class Host:
    """A host: each ``run`` is a daemon with RAM of its own, over the same cache directory and store."""

    def __init__(self, maker: Maker, root: Path) -> None:
        self.store = SpyStore(maker.store)
        self.maker = maker
        self.root = root
        self.counters = ReadCounters()
        self.tally = Tally()
        self.log = Log()

    def run(self, body: Body, *, ram: int = 64 << 20, deadline: float = 5) -> None:
        lookup = Lookup(ObjectMap(build_object_map([self.maker.rows[name] for name in sorted(self.maker.rows)], self.maker.packs)))
        self.counters = ReadCounters()
        self.tally = Tally()
        self.log = Log()
        self.store.gets.clear()
        opened = OpenedTier(CachePlace(self.root), self.log, limit=0, floor=0)

        def record(data: bytes) -> ObjectRecord:
            row = lookup.objects.find(digest_of(data))
            assert row is not None
            made = ObjectRecord(lookup, row)
            made.tally = self.tally
            return made

        async def main() -> None:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(opened.run)
                    link = Link(self.store, LinkCounters(), self.log, deadline=5)
                    fetcher = Fetcher(nursery, link, RamCache(ram), opened.tier, self.counters, log=self.log, deadline=deadline)
                    await body(fetcher, opened.tier, record)
                    nursery.cancel_scope.cancel()

        try:
            trio.run(main)
        finally:
            opened.close()

    def damage(self, folder: str, offset: int, data: bytes | None) -> int:
        """Overwrite bytes of (or cut, with None) every file of a folder behind the daemon's back; return how many there were."""
        paths = list((self.root / folder).glob("*/*"))
        for path in paths:
            path.chmod(0o600)
            with path.open("r+b") as file:
                if data is None:
                    file.truncate(offset)
                else:
                    file.seek(offset)
                    file.write(data)
        return len(paths)


@pytest.fixture
def host(maker: Maker, tmp_path: Path) -> Host:
    return Host(maker, tmp_path / "cache")


async def read(fetcher: Fetcher, record: ObjectRecord, start: int, end: int) -> bytes:
    view = fetcher.cached(record, start, end)
    return bytes(await fetcher.read(record, start, end) if view is None else view)


def test_what_was_read_is_on_ssd_and_needs_no_store(host: Host) -> None:
    big, small = noise(2 * WINDOW + 777), noise(5000, 1)
    host.maker.file("big", big)
    host.maker.file("small", small)

    async def first(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        for data in (big, small):
            assert fetcher.tier_of(record(data)) == "store"
            assert await read(fetcher, record(data), 0, len(data)) == data
            assert fetcher.tier_of(record(data)) == "ram"
        await disk.settled()
        assert disk.complete == 2

    async def second(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        for data in (big, small):
            assert fetcher.tier_of(record(data)) == "ssd"
            assert await read(fetcher, record(data), 3, len(data) - 3) == data[3:-3]
        # The first one finds it in RAM, and the second knows where to look.
        again = record(big)
        for _ in range(2):
            assert await read(fetcher, again, 100, 200) == big[100:200]

    host.run(first)
    host.store.hook = _away
    host.run(second)
    assert host.store.gets == []
    assert host.counters.ssd_bytes == len(big) + len(small) - 12
    assert host.counters.ram_bytes == 200
    assert host.counters.fetched_bytes == 0
    assert host.tally == Tally(ram=200, ssd=len(big) + len(small) - 12)


def _away(_key: str, _range: ByteRange | None, _data: bytes) -> bytes:
    raise StoreError("away")


def test_a_part_that_is_on_ssd_is_served_and_the_rest_is_fetched(host: Host) -> None:
    data = noise(2 * WINDOW)
    host.maker.file("big", data)

    async def first(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 5 * FRAME, 7 * FRAME) == data[5 * FRAME : 7 * FRAME]
        await disk.settled()

    async def second(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 5 * FRAME + 1, 7 * FRAME - 1) == data[5 * FRAME + 1 : 7 * FRAME - 1]
        assert host.store.gets == []
        assert await read(fetcher, record(data), 0, len(data)) == data
        assert host.counters.frames_fetched == len(data) // FRAME - 2
        await disk.settled()
        assert disk.complete == 1

    host.run(first)
    host.run(second)


@pytest.mark.parametrize(("offset", "bytes_"), [(0, b"\xff"), (300_000, bytes(4096)), (2_000_000, None)], ids=["flipped", "zeroed", "cut"])
@pytest.mark.parametrize("share", [1.0, 0.5], ids=["complete", "partial"])
def test_damage_on_ssd_is_found_counted_and_healed(host: Host, offset: int, bytes_: bytes | None, share: float) -> None:
    data = noise(WINDOW)
    host.maker.file("big", data)
    end = int(len(data) * share)

    async def first(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 0, end) == data[:end]
        await disk.settled()

    async def second(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 0, end) == data[:end]
        assert host.counters.verify_failures >= 1
        assert host.store.gets
        assert any(event["event"] == "frame_damaged" and event["tier"] == "ssd" for event in host.log.events)
        await disk.settled()

    async def third(fetcher: Fetcher, _: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 0, len(data)) == data
        assert await read(fetcher, record(data), 0, len(data)) == data

    host.run(first)
    assert host.damage("objects" if share == 1.0 else "partial", offset, bytes_) == 1
    host.run(second)
    host.run(third)
    assert host.counters.verify_failures == 0


def test_damage_on_ssd_with_the_store_away_is_an_error_and_not_a_wrong_byte(host: Host) -> None:
    data = noise(WINDOW)
    host.maker.file("big", data)

    async def first(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        await read(fetcher, record(data), 0, WINDOW // 2)
        await disk.settled()

    async def second(fetcher: Fetcher, _: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        with pytest.raises(ImageFSError):
            await read(fetcher, record(data), 0, 100)
        assert await read(fetcher, record(data), 3 * FRAME, 4 * FRAME) == data[3 * FRAME : 4 * FRAME]

    host.run(first)
    host.damage("partial", 10, b"\xff\xff")
    host.store.hook = _away
    host.run(second)


def test_an_evicted_file_comes_from_the_store_again(host: Host) -> None:
    data = noise(WINDOW)
    host.maker.file("big", data)

    async def body(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        await read(fetcher, record(data), 0, len(data))
        await disk.settled()
        await disk.evict(1 << 40)
        assert disk.held == 0
        fetcher._ram.clear()
        before = len(host.store.gets)
        assert await read(fetcher, record(data), 0, len(data)) == data
        assert len(host.store.gets) > before

    host.run(body)


def test_a_lying_map_cannot_poison_what_others_read(host: Host) -> None:
    data, lie = noise(WINDOW), noise(WINDOW, 5)
    host.maker.file("true", data)
    host.maker.file("false", lie)
    rows = host.maker.rows
    row_true, row_false = (rows[digest_of(content)] for content in (data, lie))
    honest = Lookup(ObjectMap(build_object_map([rows[name] for name in sorted(rows)], host.maker.packs)), "1" * 64)
    swapped = [type(row)(row.digest, row.size, other.extents) for row, other in ((row_true, row_false), (row_false, row_true))]
    liar = Lookup(ObjectMap(build_object_map(sorted(swapped, key=lambda row: row.digest), host.maker.packs)), "2" * 64)

    async def body(fetcher: Fetcher, disk: DiskTier, _: Callable[[bytes], ObjectRecord]) -> None:
        def record(lookup: Lookup) -> ObjectRecord:
            row = lookup.objects.find(digest_of(data))
            assert row is not None
            return ObjectRecord(lookup, row)

        assert await read(fetcher, record(liar), 0, WINDOW) == lie, "an image that says so gets what it says"
        await disk.settled()
        assert disk.complete == 0, "but it is not that object"
        assert await read(fetcher, record(honest), 0, WINDOW) == data
        await disk.settled()
        fetcher._ram.clear()
        assert await read(fetcher, record(honest), 0, WINDOW) == data

    host.run(body)


def test_ten_thousand_corruptions_give_no_wrong_byte(maker: Maker, tmp_path: Path) -> None:
    """Each frame of an object comes damaged once from the store, and once more from SSD, with small frames so that they are many."""
    maker.frame = 4096
    # Incompressible, so stored as it is: in a compressed frame some bits mean nothing.
    data = random.Random(7).randbytes(5120 * maker.frame)
    maker.file("big", data)
    host = Host(maker, tmp_path / "cache")
    count = len(data) // maker.frame
    frames = [entry for pack in maker.packs for entry in pack[3]]
    spoiled: set[int] = set()

    def spoil(_key: str, byte_range: ByteRange | None, got: bytes) -> bytes:
        assert byte_range is not None
        out = bytearray(got)
        for frame in frames:
            at = frame.offset - byte_range.start
            if 0 <= at < len(out) and frame.offset not in spoiled:
                spoiled.add(frame.offset)
                out[at + len(spoiled) % frame.stored] ^= 1 << len(spoiled) % 8
        return bytes(out)

    async def from_store(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 0, len(data)) == data
        await disk.settled()
        assert disk.complete == 1

    async def from_ssd(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 0, len(data)) == data
        await disk.settled()

    host.store.hook = spoil
    host.run(from_store, deadline=30)
    assert len(spoiled) == count
    assert host.counters.verify_failures == count
    (path,) = (host.root / "objects").glob("*/*")
    path.chmod(0o600)
    with path.open("r+b") as file:
        for number in range(count):
            at = number * maker.frame + number * 7 % maker.frame
            file.seek(at)
            file.write(bytes([data[at] ^ (1 << number % 8)]))
    host.run(from_ssd, deadline=30)
    assert host.counters.verify_failures == count
    host.run(from_ssd, deadline=30)
    assert host.counters.verify_failures == 0
    assert 2 * count >= 10_000


def _gone(_key: str, _range: ByteRange | None, _data: bytes) -> bytes:
    raise NotFoundError("gone")


def test_a_read_that_cannot_have_one_part_leaves_the_other_to_others(host: Host) -> None:
    data = noise(2 * WINDOW)
    host.maker.file("big", data)

    async def first(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 0, WINDOW) == data[:WINDOW]
        await disk.settled()

    async def second(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        host.store.hook = _gone
        with pytest.raises(ImageFSError):
            await read(fetcher, record(data), WINDOW, 2 * WINDOW)
        with pytest.raises(ImageFSError):
            await read(fetcher, record(data), 0, 2 * WINDOW)
        with trio.fail_after(3):
            assert await read(fetcher, record(data), 0, WINDOW) == data[:WINDOW]
        assert disk.counters.damaged_files == 0

    host.run(first)
    host.run(second)


@pytest.mark.parametrize("first", [0, 4], ids=["at once", "later on"])
def test_a_disk_that_hangs_is_what_readers_and_the_log_are_told_of(host: Host, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """The log named the store, and the reader whose own read hung was told of both."""
    data = noise(WINDOW)
    host.maker.file("big", data)
    wakes = threading.Event()

    def hang(part: Part, file: OpenFile, frames: Frames) -> Frames:
        if frames[0][0][1] >= first:
            wakes.wait(30)
        return read_pieces(part, file, frames)

    async def fill(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 0, WINDOW) == data
        await disk.settled()

    async def hung(fetcher: Fetcher, _: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        monkeypatch.setattr(disk_reads, "read_pieces", hang)

        async def reader(delay: float) -> None:
            await trio.sleep(delay)
            with pytest.raises(DeadlineError, match="the cache disk did not answer within"):
                await fetcher.read(record(data), 0, WINDOW)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader, 0)
            nursery.start_soon(reader, 0.1)
        wakes.set()

    host.run(fill)
    host.run(hung, deadline=0.5)
    assert not host.store.gets
    events = [event for event in host.log.events if event["event"] == "frame_failed"]
    assert len(events) == WINDOW // FRAME - first
    assert {(event["tier"], event["error"]) for event in events} == {("ssd", "the cache disk did not answer within 0.5 s")}


def test_of_a_read_that_ends_with_the_daemon_the_log_says_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reload under load logged, of a disk that was well, that it did not answer within the deadline."""
    data = noise(WINDOW)
    host.maker.file("big", data)
    begun, wakes = threading.Event(), threading.Event()

    def hang(part: Part, file: OpenFile, frames: Frames) -> Frames:
        begun.set()
        wakes.wait(30)
        return read_pieces(part, file, frames)

    async def fill(fetcher: Fetcher, disk: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        assert await read(fetcher, record(data), 0, WINDOW) == data
        await disk.settled()

    async def ending(fetcher: Fetcher, _: DiskTier, record: Callable[[bytes], ObjectRecord]) -> None:
        monkeypatch.setattr(disk_reads, "read_pieces", hang)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.read, record(data), 0, WINDOW)
            assert await trio.to_thread.run_sync(begun.wait, 10)
            nursery.cancel_scope.cancel()

    host.run(fill)
    host.run(ending)
    wakes.set()
    assert not host.log.events
