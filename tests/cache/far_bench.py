"""A fetcher over a store that is a round trip away, by a clock that jumps: for the tests of what is fetched along."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.disk_place import CachePlace
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import ObjectRecord
from imagefs.cache.link import Link, LinkCounters
from imagefs.cache.ram import RamCache
from imagefs.digest import Buffer, digest_of
from imagefs.format.objectmap import Extent, ObjectMap, build_object_map
from imagefs.store.base import ByteRange, ObjectStore, pack_key
from tests.cache.test_fetcher import Log, Lookup
from tests.fuse.images import FRAME, Maker, Row

KIB = 1024
MIB = 1024 * KIB
RTT = 0.02
RATE = 200e6

SOON = RTT / 4
"""Seconds after which a GET that was just sent is still on its way, and everything that can happen without it has."""

LATER = 10.0
"""Seconds after which everything that was sent has come."""


@dataclass
class Far:
    """Where GETs go, and what runs them: bytes come ``seconds`` after they were asked for, at ``rate`` a GET."""

    inner: ObjectStore
    seconds: float = RTT
    rate: float = RATE
    hook: Callable[[str, ByteRange, bytes], bytes] = lambda _key, _range, data: data
    gets: list[tuple[str, ByteRange]] = field(default_factory=list)
    abandoned: int = 0

    def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        assert byte_range is not None
        self.gets.append((key, byte_range))
        return self.hook(key, byte_range, bytes(self.inner.get(key, byte_range)))

    async def __call__(self, call: Callable[[], Buffer]) -> Buffer:
        data = call()
        await trio.sleep(self.seconds + len(data) / self.rate)
        return data


def pack(maker: Maker, *contents: bytes | Sequence[bytes]) -> None:
    """Make a pack as the converter does: of objects with frames of their own, and of groups of small ones that share a frame."""
    pieces: list[bytes] = []
    for content in contents:
        frame = maker.frames + len(pieces)
        if isinstance(content, bytes):
            cut = [content[at : at + FRAME] for at in range(0, len(content), FRAME)]
            extents = [Extent(index * FRAME, len(piece), frame + index, 0) for index, piece in enumerate(cut)]
            maker.rows[digest_of(content)] = Row(digest_of(content), len(content), extents)
            pieces += cut
            continue
        at = 0
        for data in content:
            maker.rows[digest_of(data)] = Row(digest_of(data), len(data), [Extent(0, len(data), frame, at)])
            at += len(data)
        pieces.append(b"".join(content))
    maker._pack(pieces)


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that do not compress: a frame of them takes as much in its pack as in memory."""
    return random.Random(seed).randbytes(size)


def small_files(count: int, size: int, seed: int = 0) -> list[bytes]:
    data = noise(count * size, seed)
    return [data[at : at + size] for at in range(0, len(data), size)]


Body = Callable[[Fetcher], Awaitable[None]]


class Bench:
    """A daemon's cache over one image, each ``run`` with RAM of its own; with ``root``, over an SSD tier there."""

    def __init__(self, maker: Maker, root: Path | None = None, *, seconds: float = RTT, most: int = 64) -> None:
        self.raw = bytearray(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs))
        self.store = Far(maker.store, seconds)
        self.root = root
        self.most = most
        self.now = 1000.0
        self._begin()

    def _begin(self) -> None:
        self.lookup = Lookup(ObjectMap(bytes(self.raw)))
        self.ram = RamCache(256 * MIB)
        self.counters = ReadCounters()
        self.log = Log()
        self.waits = 0
        self.store.gets.clear()

    def run(self, body: Body, *, known: bool = True) -> None:
        """Run ``body`` on a clock that jumps; ``known``: as after a few misses, the map is read and the latency of the link known."""
        self._begin()
        opened = OpenedTier(CachePlace(self.root), self.log, limit=0, floor=0) if self.root else None

        async def main() -> None:
            with trio.fail_after(3600):
                async with trio.open_nursery() as nursery:
                    if opened is not None:
                        nursery.start_soon(opened.run)
                    link = Link(self.store, LinkCounters(), self.log, deadline=30, most=self.most, run=self.store, rng=random.Random(7))
                    disk = opened.tier if opened is not None else None
                    fetcher = Fetcher(nursery, link, self.ram, disk, self.counters, log=self.log, deadline=30, clock=lambda: self.now)
                    if known:
                        self.lookup.members.build()
                        self.lookup.neighbours.build()
                        for _ in range(2):
                            link._control.figures.took(64 * KIB, self.store.seconds)
                    await body(fetcher)
                    nursery.cancel_scope.cancel()

        try:
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        finally:
            if opened is not None:
                opened.close()

    @property
    def tier(self) -> str:
        """Where the SSD tier keeps complete files, as names of folders and files."""
        assert self.root is not None
        found = [path.relative_to(self.root) for folder in ("objects", "frames") for path in (self.root / folder).glob("*/*")]
        return " ".join(sorted(f"{path.parts[0]}/{''.join(path.parts[1:])}" for path in found))

    def record(self, data: bytes) -> ObjectRecord:
        row = self.lookup.objects.find(digest_of(data))
        assert row is not None
        return ObjectRecord(self.lookup, row)

    async def read(self, fetcher: Fetcher, data: bytes, start: int = 0, end: int | None = None) -> None:
        """Read of an object, as the kernel asks for it, and compare."""
        record, end = self.record(data), len(data) if end is None else end
        began = trio.current_time()
        found = fetcher.cached(record, start, end)
        if found is None:
            found = memoryview(await fetcher.read(record, start, end))
        assert found == data[start:end]
        self.waits += trio.current_time() - began >= self.store.seconds

    def moved(self) -> list[int]:
        """Return for each frame how many GETs brought it."""
        objects = self.lookup.objects
        counts = [0] * objects.frame_count
        for number in range(objects.frame_count):
            frame = objects.frame(number)
            key, start, end = pack_key(objects.pack(frame.pack).digest.hex()), frame.offset, frame.offset + frame.stored
            counts[number] = sum(got == key and range_.start < end and range_.end > start for got, range_ in self.store.gets)
        return counts

    def unread(self) -> int:
        """Count the pieces that lie in RAM and were never read."""
        return sum(slab.unread for slab in self.ram._slabs.values())

    def assert_tidy(self, fetcher: Fetcher) -> None:
        """Nothing is on its way, and no slab is left that was only made to be looked at."""
        assert not fetcher._flights._tickets
        assert not fetcher._along._moving
        assert all(slab.landed and not slab.in_flight for slab in self.ram._slabs.values())


def disk_of(fetcher: Fetcher) -> DiskTier:
    assert fetcher._disk is not None
    return fetcher._disk
