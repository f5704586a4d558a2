"""What SSD has lost is brought there again, with nobody waiting for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from imagefs.cache.disk import DiskTier
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import WINDOW, ObjectRecord
from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, StoreError
from imagefs.store.base import ByteRange
from imagefs.store.opening import open_store
from tests.cache.test_tiers import Host, read
from tests.fuse.images import FRAME, Maker, noise

BIG = noise(5 * WINDOW + 777)
HOLED = noise(4 * FRAME, 3) + bytes(2 * FRAME) + noise(WINDOW, 4)
SMALL = {f"small/{number}": noise(3000 + number, 100 + number) for number in range(8)}
ONE = SMALL["small/3"]

Records = Callable[[bytes], ObjectRecord]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    maker = Maker(store)
    maker.file("big", BIG)
    maker.file("holed", HOLED, hole=(4 * FRAME, 6 * FRAME))
    maker.shared(SMALL)
    yield Host(maker, tmp_path / "cache")
    store.close()


async def _on_ssd(fetcher: Fetcher, disk: DiskTier, record: Records) -> None:
    for data in (BIG, HOLED, ONE):
        assert await read(fetcher, record(data), 0, len(data)) == data
    await disk.settled()
    assert disk.complete == 2 + len(SMALL)


@pytest.mark.parametrize("data", [BIG, HOLED, ONE], ids=["large", "with a hole", "small"])
@pytest.mark.parametrize("in_memory", [True, False], ids=["from RAM", "from the store"])
def test_what_was_withdrawn_is_back(host: Host, data: bytes, in_memory: bool) -> None:
    async def lose(fetcher: Fetcher, disk: DiskTier, record: Records) -> None:
        if in_memory:
            await _on_ssd(fetcher, disk, record)
        gets = len(host.store.gets)
        assert await disk.withdraw(digest_of(data), damaged=True)
        assert not disk.covers(digest_of(data), 0, 1)
        await fetcher.bring(record(data))
        await disk.settled()
        assert disk.is_native(digest_of(data), len(data))
        assert (len(host.store.gets) == gets) is in_memory
        assert (host.counters.prefetch_bytes > 0) is not in_memory
        path = host.root / "objects" / digest_of(data).hex()[:2] / digest_of(data).hex()[2:]
        assert path.read_bytes() == data
        assert disk.complete == 2 + len(SMALL)
        assert {slab.unsaved for slab in fetcher._ram._slabs.values()} == {0}, "SSD has it, as far as RAM knows"

    if not in_memory:
        host.run(_on_ssd)
    host.run(lose)


def test_what_cannot_be_had_is_left_alone_in_time(host: Host) -> None:
    def away(_key: str, _range: ByteRange | None, _data: bytes) -> bytes:
        raise StoreError("away")

    async def lose(fetcher: Fetcher, disk: DiskTier, record: Records) -> None:
        assert await disk.withdraw(digest_of(BIG), damaged=True)
        with trio.fail_after(20):
            await fetcher.bring(record(BIG))
        assert not disk.is_native(digest_of(BIG), len(BIG))
        with pytest.raises(ImageFSError):
            await fetcher.read(record(BIG), 0, 100)

    host.run(_on_ssd)
    host.store.hook = away
    host.run(lose)
