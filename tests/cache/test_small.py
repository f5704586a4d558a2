"""Small objects, which share frames in the store, and are a file each on SSD."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from imagefs.cache.disk import DiskTier
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import ObjectRecord
from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, StoreError
from imagefs.format.objectmap import Extent
from imagefs.store.base import ByteRange
from imagefs.store.opening import open_store
from tests.cache.test_tiers import Host, read
from tests.fuse.images import Maker, Row, noise

FILES = [noise(size, size) for size in (100, 5000, 70_000)]
Find = Callable[[bytes], ObjectRecord]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    maker = Maker(store)
    maker.shared({str(number): data for number, data in enumerate(FILES)})
    yield Host(maker, tmp_path / "cache")
    store.close()


async def fill(fetcher: Fetcher, disk: DiskTier, record: Find) -> None:
    assert await read(fetcher, record(FILES[0]), 0, 100) == FILES[0]
    await disk.settled()


def away(_key: str, _range: ByteRange | None, _data: bytes) -> bytes:
    raise StoreError("away")


def test_who_reads_one_has_all_of_its_frame_on_ssd(host: Host) -> None:
    async def offline(fetcher: Fetcher, _: DiskTier, record: Find) -> None:
        for data in FILES:
            found = record(data)
            assert fetcher.tier_of(found) == "ssd"
            assert await read(fetcher, found, 3, len(data) - 1) == data[3:-1]
            assert fetcher.tier_of(found) == "ram"
            assert bytes(fetcher.cached(found, 0, len(data)) or b"") == data

    host.run(fill)
    assert len(host.store.gets) == 1
    assert {path.parent.name + path.name for path in (host.root / "objects").glob("*/*")} == {digest_of(data).hex() for data in FILES}
    host.store.hook = away
    host.run(offline)
    assert host.store.gets == []
    assert host.counters.ssd_bytes == sum(len(data) - 4 for data in FILES)


@pytest.mark.parametrize("cut", [False, True])
def test_one_that_is_damaged_on_ssd_is_healed_from_its_frame(host: Host, cut: bool) -> None:
    async def heal(fetcher: Fetcher, disk: DiskTier, record: Find) -> None:
        for data in FILES:
            assert await read(fetcher, record(data), 0, len(data)) == data
        await disk.settled()
        assert disk.complete == 3

    host.run(fill)
    assert host.damage("objects", 50, None if cut else b"\xff\xff") == 3
    host.run(heal)
    assert host.counters.verify_failures == 3
    host.store.hook = away
    host.run(heal)
    assert host.counters.verify_failures == 0


def test_where_the_frame_is_in_ram_ssd_is_not_asked(host: Host) -> None:
    async def both(fetcher: Fetcher, disk: DiskTier, record: Find) -> None:
        await fill(fetcher, disk, record)
        host.damage("objects", 50, b"\xff\xff")
        for data in FILES:
            assert fetcher.tier_of(record(data)) == "ram"
            assert await read(fetcher, record(data), 0, len(data)) == data

    host.run(both)
    assert host.counters.verify_failures == 0
    assert host.counters.ssd_bytes == 0


def test_a_map_that_lies_about_one_gets_no_other_bytes_for_it_once_ssd_has_it(host: Host) -> None:
    """Of an object that is told apart by its own name, nobody is shown anything else: not by a fetch either that heals it."""
    host.run(fill)
    host.damage("objects", 50, b"\xff\xff")
    name = digest_of(FILES[1])
    # It now is said to lie where its neighbour does.
    host.maker.rows[name] = Row(name, 5000, [Extent(0, 5000, 0, 200)])

    async def lied_to(fetcher: Fetcher, _: DiskTier, record: Find) -> None:
        with pytest.raises(ImageFSError, match="does not hold object"):
            await read(fetcher, record(FILES[1]), 0, 5000)
        assert fetcher.cached(record(FILES[1]), 0, 5000) is None

    host.run(lied_to)


def test_one_that_goes_from_ssd_comes_with_its_frame_again(host: Host) -> None:
    async def again(fetcher: Fetcher, disk: DiskTier, record: Find) -> None:
        disk.bad(digest_of(FILES[1]), 0, 1)
        assert fetcher.tier_of(record(FILES[0])) == "ssd"
        assert fetcher.tier_of(record(FILES[1])) == "store"
        assert await read(fetcher, record(FILES[1]), 0, 5000) == FILES[1]
        await disk.settled()

    host.run(fill)
    host.run(again)
    assert len(host.store.gets) == 1


def test_what_the_queue_had_no_room_for_lands_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.cache.disk_queue.QUEUE_MAX", 1_500_000)
    monkeypatch.setattr("imagefs.cache.disk.QUEUE_MAX", 1_500_000)
    store = open_store(f"file://{tmp_path}/store", create=True)
    maker = Maker(store)
    files = [[noise(20_000, 100 * frame + number) for number in range(10)] for frame in range(20)]
    for frame, contents in enumerate(files):
        maker.shared({f"{frame}.{number}": data for number, data in enumerate(contents)})
    big = noise(1_000_000, 7)
    maker.file("big", big)
    host = Host(maker, tmp_path / "cache")

    async def body(fetcher: Fetcher, disk: DiskTier, record: Find) -> None:
        for contents in files:
            assert await read(fetcher, record(contents[0]), 0, 20_000) == contents[0]
        assert await read(fetcher, record(big), 0, len(big)) == big
        assert disk.counters.not_landed_bytes > 0, "there was no room"
        with trio.fail_after(20):
            while disk.complete < 201:  # noqa: ASYNC110 # there is no event for it outside
                await trio.sleep(0.01)
        # What it was first refused counts as such; nothing is fetched for it.
        assert host.counters.frames_fetched == 20 + 4

    host.run(body)
    store.close()
