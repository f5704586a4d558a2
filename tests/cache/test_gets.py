"""What is noted of each GET while a Start runs: when its first byte came, and what its content took to decode and to verify."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.decode import Work, decode_into
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.gets import NEVER, Get, Kind
from imagefs.cache.layout import ObjectRecord
from imagefs.cache.link import Link, LinkCounters
from imagefs.cache.ram import RamCache
from imagefs.cache.start_parts import Facts
from imagefs.cache.starts import Start, Starts
from imagefs.digest import Buffer, digest_of
from imagefs.errors import IntegrityError, StoreError
from imagefs.format.objectmap import FrameRow, ObjectMap, build_object_map
from imagefs.format.pack import CODEC_RAW
from imagefs.store.base import ByteRange, Moment, ObjectStore
from imagefs.store.opening import open_store
from tests.cache.test_fetcher import Log, Lookup
from tests.fuse.images import FRAME, Maker, noise


class NotingStore:
    """A store that says when answers begin: half way through the time that they take. Some attempts fail after they began."""

    def __init__(self, store: ObjectStore, failures: int = 0) -> None:
        self.store = store
        self.failures = failures
        self.asked = 0

    def get(self, key: str, byte_range: ByteRange | None = None) -> Buffer:
        return self.store.get(key, byte_range)

    def get_noting(self, key: str, byte_range: ByteRange, first: Moment) -> Buffer:
        self.asked += 1
        first.note()
        if self.failures:
            self.failures -= 1
            raise StoreError("the connection broke")
        time.sleep(0.02)
        return self.store.get(key, byte_range)


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Maker]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    yield Maker(store)
    store.close()


def read(maker: Maker, store: object, data: bytes, *, starts: Starts | None = None) -> None:
    """Read an object through a link of its own."""
    lookup = Lookup(ObjectMap(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs)))
    row = lookup.objects.find(digest_of(data))
    assert row is not None
    record = ObjectRecord(lookup, row)

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                link = Link(store, LinkCounters(), Log(), deadline=10)  # type: ignore[arg-type]
                fetcher = Fetcher(nursery, link, RamCache(64 << 20), None, ReadCounters(), log=Log(), deadline=10, starts=starts)
                assert bytes(await fetcher.read(record, 0, len(data))) == data
                nursery.cancel_scope.cancel()

    trio.run(main)


def running(maker: Maker) -> tuple[Starts, Start]:
    starts, start = Starts(), Start(Facts(Lookup(ObjectMap(build_object_map([], []))).name))
    starts.begin(start)
    return starts, start


def test_a_get_is_noted_step_by_step(maker: Maker) -> None:
    data = noise(3 * FRAME, 1)
    maker.file("file", data)
    starts, start = running(maker)
    store = NotingStore(maker.store)
    read(maker, store, data, starts=starts)
    (get,) = start._gets
    assert get.kind == Kind.DEMAND
    assert 0 < get.queued <= get.sent <= get.first < get.arrived <= get.decoded
    assert get.arrived - get.first > 0.015
    assert get.attempts == store.asked == 1
    assert get.decode_ns > 0
    assert get.verify_ns > 0
    assert get.content == len(data)


def test_without_a_start_the_store_is_not_asked_to_note_anything(maker: Maker) -> None:
    data = noise(FRAME, 1)
    maker.file("file", data)
    store = NotingStore(maker.store)
    read(maker, store, data)
    assert store.asked == 0


def test_the_first_byte_is_that_of_the_attempt_that_brought_the_rest(maker: Maker) -> None:
    data = noise(FRAME, 1)
    maker.file("file", data)
    starts, start = running(maker)
    read(maker, NotingStore(maker.store, failures=1), data, starts=starts)
    (get,) = start._gets
    assert get.attempts == 2
    assert 0.015 < get.arrived - get.first < 0.5


def test_a_store_that_does_not_know_gives_the_last_byte_as_the_first(maker: Maker) -> None:
    data = noise(FRAME, 1)
    maker.file("file", data)
    starts, start = running(maker)
    read(maker, maker.store, data, starts=starts)
    (get,) = start._gets
    assert get.first == get.arrived > get.sent


def test_what_is_not_known_is_not_made_up() -> None:
    get = Get("0" * 64, 0, 1, 1, Kind.DEMAND)
    get.has_begun(None)
    assert get.first == NEVER
    get.has_begun(5.0)
    get.has_begun(6.0)
    get.has_arrived()
    assert get.first == 5.0


def test_the_work_of_frames_is_told_apart_and_added_up() -> None:
    data = noise(FRAME, 2)
    frame = FrameRow(digest_of(data), 0, 0, len(data), len(data), CODEC_RAW)
    work, target = Work(), memoryview(bytearray(len(data)))
    decode_into(target, memoryview(data), frame, None, work)  # type: ignore[arg-type] # raw frames need none
    first = work.decode_ns, work.verify_ns
    assert min(first) > 0
    decode_into(target, memoryview(data), frame, None, work)  # type: ignore[arg-type]
    assert work.decode_ns > first[0]
    assert work.verify_ns > first[1]
    wrong = frame._replace(digest=b"\0" * 32)
    with pytest.raises(IntegrityError):
        decode_into(target, memoryview(data), wrong, None, work)  # type: ignore[arg-type]
