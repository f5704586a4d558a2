"""What an image that lies, or bytes that are damaged, must not do to who reads something else."""

import gc
import mmap
import struct
import weakref

import pytest
import trio

from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import WINDOW, ObjectRecord
from imagefs.cache.slab import Slab
from imagefs.digest import digest_of
from imagefs.errors import ImageFSError
from imagefs.format.objectmap import Extent, ObjectMap, build_object_map
from imagefs.format.pack import CODEC_RAW
from imagefs.store.base import ByteRange
from tests.cache.far_bench import KIB, noise
from tests.cache.test_fetcher import Bench, Lookup
from tests.fuse.images import FRAME, Maker, Row


def test_a_pack_row_that_is_unsound_fails_the_read_and_nothing_else(maker: Maker) -> None:
    data = noise(3 * FRAME)
    maker.file("a", data)
    bench = Bench(maker)
    raw = bytearray(bench.lookup.objects._buffer)
    struct.pack_into("<I", raw, bench.lookup.objects._packs_at + 72, 0xFFFFFF)  # its first frame lies outside
    bench.lookup = Lookup(ObjectMap(bytes(raw)))

    async def body(fetcher: Fetcher) -> None:
        for _ in range(2):
            with pytest.raises(ImageFSError):
                await fetcher.read(bench.record(data), 0, 100)

    bench.run(body)


def test_two_windows_that_are_equal_are_brought_once_however_they_are_stored(maker: Maker) -> None:
    """The second copy in the store is damaged: it must not be decoded over the first one, which readers see."""
    window = noise(WINDOW, 1)
    data = window + window
    maker.file("f", data)
    bench = Bench(maker)
    second = bench.lookup.objects.frame(16).offset

    def damage(_key: str, byte_range: ByteRange | None, got: bytes) -> bytes:
        assert byte_range is not None
        count = max(0, second - byte_range.start)
        return got[:count] + bytes(len(got) - len(got[:count]))

    bench.store.hook = damage

    async def body(fetcher: Fetcher) -> None:
        record = bench.record(data)
        assert bytes(await fetcher.read(record, 0, 2 * WINDOW)) == data
        assert bytes(await fetcher.read(record, 0, 128 * KIB)) == data[: 128 * KIB]

    bench.run(body)
    assert bench.counters.frames_fetched == 16
    assert bench.counters.verify_failures == 0


@pytest.mark.parametrize("frame", [32 * KIB, FRAME])
def test_a_frame_that_is_the_list_of_a_windows_digests_does_not_stand_for_the_window(maker: Maker, frame: int) -> None:
    maker.frame = frame
    data = noise(WINDOW, 1)
    maker.file("honest", data)
    digests = b"".join(digest_of(data[at : at + frame]) for at in range(0, WINDOW, frame))
    other = Maker(maker.store)
    other.file("evil", digests)
    bench = Bench(maker)
    evil = ObjectMap(build_object_map(list(other.rows.values()), other.packs))
    evil.validate()

    async def body(fetcher: Fetcher) -> None:
        await fetcher.read(ObjectRecord(Lookup(evil, "1" * 64), evil.object(0)), 0, len(digests))
        assert bytes(await fetcher.read(bench.record(data), 0, 512)) == data[:512]
        assert bytes(await fetcher.read(bench.record(data), 0, 4096)) == data[:4096]

    bench.run(body)


def test_a_window_whose_lengths_are_a_lie_is_not_that_of_an_honest_image(maker: Maker) -> None:
    data = noise(2 * FRAME, 1)
    maker.file("honest", data)
    digest, key, size, entries = maker.packs[0]
    lie = [entries[0]._replace(stored=FRAME // 2, length=FRAME // 2), entries[1]]
    row = Row(b"\1" * 32, FRAME // 2 + FRAME, [Extent(0, FRAME // 2, 0, 0), Extent(FRAME // 2, FRAME, 1, 0)])
    evil = ObjectMap(build_object_map([row], [(digest, key, size, lie)]))
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        with pytest.raises(ImageFSError):
            await fetcher.read(ObjectRecord(Lookup(evil, "1" * 64), evil.object(0)), 0, row.size)
        assert bytes(await fetcher.read(bench.record(data), 0, len(data))) == data

    bench.run(body)


def test_reads_that_fail_leave_no_slabs(maker: Maker) -> None:
    """Objects of two extents, of which the second is in a frame that has no sound place."""
    maker._pack([noise(60 * KIB, seed) for seed in range(20)])
    digest, key, size, entries = maker.packs[0]
    last = entries[-1]
    maker.packs[0] = (digest, key, size, [*entries, type(last)(b"\2" * 32, last[1], 70 * KIB, 60 * KIB, CODEC_RAW)])
    for number in range(20):
        name = number.to_bytes(32, "big")
        maker.rows[name] = Row(name, 61 * KIB, [Extent(0, 30 * KIB, number, 0), Extent(30 * KIB, 31 * KIB, 20, 0)])
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        for number in range(20):
            with pytest.raises(ImageFSError):
                await fetcher.read(ObjectRecord(bench.lookup, bench.lookup.objects.object(number)), 0, 61 * KIB)
        assert len(bench.ram) == 0

    bench.run(body)


def test_what_is_remembered_of_a_bad_frame_holds_no_memory(maker: Maker) -> None:
    data = noise(4 * FRAME)
    maker.file("f", data)
    bench = Bench(maker)
    bench.store.hook = lambda _key, _range, got: bytes(len(got))
    lookups: list[weakref.ref[Lookup]] = []

    async def body(fetcher: Fetcher) -> None:
        lookup = Lookup(bench.lookup.objects, "2" * 64)
        lookups.append(weakref.ref(lookup))
        row = lookup.objects.find(digest_of(data))
        assert row is not None
        for _ in range(3):
            with pytest.raises(ImageFSError):
                await fetcher.read(ObjectRecord(lookup, row), 0, 4096)
        del lookup
        # The fetches end by themselves, a little after they woke the reader; a thread of theirs counts as waiting meanwhile.
        with trio.fail_after(10):
            while lookups[0]() is not None:
                await trio.sleep(0.01)
                gc.collect()

    bench.run(body)


def test_a_kernel_without_huge_pages_is_no_error(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(WINDOW)
    maker.file("f", data)
    bench = Bench(maker)

    class Plain(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    make = Slab.__init__

    def plain(self: Slab, *args: object) -> None:
        make(self, *args)  # type: ignore[arg-type]
        self.buffer = Plain(-1, len(self.buffer))

    monkeypatch.setattr(Slab, "__init__", plain)

    async def body(fetcher: Fetcher) -> None:
        assert bytes(await fetcher.read(bench.record(data), 0, WINDOW)) == data

    bench.run(body)
