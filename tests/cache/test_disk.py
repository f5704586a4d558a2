"""The SSD tier on a real directory: landing, sealing, reading back, damage, eviction, restarts, a disk that refuses."""

import errno
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_files import Folders, OpenFile
from imagefs.cache.disk_index import DiskIndex
from imagefs.cache.disk_queue import QUEUE_MAX, Place
from imagefs.cache.members import Member
from imagefs.digest import digest_of
from imagefs.errors import StoreError
from imagefs.format.objectmap import ObjectRow
from tests.cache.tierbench import MIB, Bench, land, noise, place, read, until


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


def test_what_is_complete_is_sealed_under_its_name(bench: Bench) -> None:
    data = noise(MIB + 17)

    async def body(tier: DiskTier) -> None:
        name = await land(tier, data)
        assert tier.covers(name, 0, len(data))
        assert read(tier, name, 5, 1000) == data[5:1000]
        assert (tier.held, tier.complete) == (len(data), 1)

    bench.run(body)
    assert bench.files("objects") == {digest_of(data).hex(): data}
    assert bench.files("partial") == {}
    path = next((bench.root / "objects").glob("*/*"))
    assert path.stat().st_mode & 0o777 == 0o444


def shared(contents: Sequence[bytes], lie: int = -1) -> tuple[Place, bytes]:
    """A frame of these small objects; what the map says of number ``lie`` is not true."""
    members, offset = [], 0
    for number, content in enumerate(contents):
        digest = digest_of(b"something else" if number == lie else content)
        members.append(Member(ObjectRow(digest, len(content), number, 1), offset))
        offset += len(content)
    data = b"".join(contents)
    return Place(digest_of(data), len(data), tuple, lambda: members), data


def test_a_frame_of_small_objects_becomes_a_file_each(bench: Bench) -> None:
    contents = [noise(size, size) for size in (65, 4096, 5000, 100_000)]
    told: list[bool] = []

    async def first(tier: DiskTier) -> None:
        where, data = shared(contents)
        assert tier.land(where, 0, data, lambda: told.append(True))
        await tier.settled()
        assert told == [True]
        assert (tier.complete, tier.held) == (4, 4096 + 4096 + 8192 + 102_400)
        # The same again, as another image's frame: nothing is written.
        where, data = shared(contents[::-1])
        assert tier.land(where, 0, data)
        await tier.settled()
        assert (tier.complete, tier.held) == (4, 4096 + 4096 + 8192 + 102_400)

    async def second(tier: DiskTier) -> None:
        for content in contents:
            assert tier.covers(digest_of(content), 0, len(content))
            assert read(tier, digest_of(content), 0, len(content)) == content

    bench.run(first)
    assert bench.files("objects") == {digest_of(content).hex(): content for content in contents}
    assert bench.files("partial") == {}
    assert {path.stat().st_mode & 0o777 for path in (bench.root / "objects").glob("*/*")} == {0o444}
    bench.run(second)


def test_an_object_that_the_map_lies_about_does_not_land(bench: Bench) -> None:
    contents = [noise(1000, seed) for seed in range(3)]

    async def body(tier: DiskTier) -> None:
        where, data = shared(contents, lie=1)
        assert tier.land(where, 0, data)
        await tier.settled()
        assert tier.complete == 2
        assert not tier.covers(digest_of(b"something else"), 0, 1)

    bench.run(body)
    assert sorted(bench.files("objects").values()) == sorted([contents[0], contents[2]])


def test_small_objects_that_the_disk_refuses_land_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.cache.disk._OFF_SECONDS", 0.0)
    contents = [noise(1000, seed) for seed in range(5)]
    write_small = Folders.write_small
    calls = itertools.count()

    def refusing(folders: Folders, name: bytes, data: bytes) -> bool:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "no room")
        return write_small(folders, name, data)

    monkeypatch.setattr(Folders, "write_small", refusing)
    told: list[bool] = []

    async def body(tier: DiskTier) -> None:
        where, data = shared(contents)
        assert tier.land(where, 0, data, lambda: told.append(True))
        await until(lambda: tier.counters.write_errors == 1)
        await tier.settled()
        assert (tier.complete, told) == (2, [])
        assert tier.land(where, 0, data, lambda: told.append(True))
        await tier.settled()
        assert (tier.complete, told) == (5, [True])

    bench.run(body)


def test_what_is_just_being_written_is_not_settled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small = Folders.write_small
    begun, go_on = threading.Event(), threading.Event()

    def slow(folders: Folders, name: bytes, data: bytes) -> bool:
        begun.set()
        assert go_on.wait(20)
        return write_small(folders, name, data)

    monkeypatch.setattr(Folders, "write_small", slow)

    async def body(tier: DiskTier) -> None:
        where, data = shared([noise(1000)])
        assert tier.land(where, 0, data)
        await until(begun.is_set)
        assert not tier.status()["settled"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tier.settled)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert tier.complete == 1

    bench.run(body)


def test_what_is_being_written_when_the_tier_is_to_end_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end comes while small objects are written: what was taken from the queue together with them is written, too."""
    write_small = Folders.write_small
    begun, go_on = threading.Event(), threading.Event()
    large = noise(MIB, 2)

    def slow(folders: Folders, name: bytes, data: bytes) -> bool:
        begun.set()
        assert go_on.wait(20)
        return write_small(folders, name, data)

    monkeypatch.setattr(Folders, "write_small", slow)

    async def body(tier: DiskTier) -> None:
        where, data = shared([noise(1000)])
        assert tier.land(where, 0, data)
        assert tier.land(place(large), 0, large)
        await until(begun.is_set)
        # The tier's task is cancelled before it can hear that the thread is done.
        go_on.set()

    bench.run(body)
    assert set(bench.files("objects")) == {digest_of(noise(1000)).hex(), digest_of(large).hex()}


def test_what_was_found_damaged_lands_again_at_once(bench: Bench) -> None:
    contents = [noise(1000, seed) for seed in range(2)]

    async def body(tier: DiskTier) -> None:
        where, data = shared(contents)
        assert tier.land(where, 0, data)
        await tier.settled()
        tier.bad(digest_of(contents[0]), 0, 1000)
        assert not tier.covers(digest_of(contents[0]), 0, 1)
        assert tier.land(where, 0, data)
        await tier.settled()
        assert tier.complete == 2
        assert read(tier, digest_of(contents[0]), 0, 1000) == contents[0]

    bench.run(body)


@pytest.mark.parametrize(
    ("patience", "more", "kept"),
    [((1000, 1000), 0, False), ((1000, 1000), 1, True), ((1000, 0.02), 0, True), ((0.02, 1000), 0, True)],
    ids=["waits", "not if much waits", "not for long", "until nobody reads"],
)
def test_what_lands_waits_for_readers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, patience: tuple[float, float], more: int, kept: bool
) -> None:
    monkeypatch.setattr("imagefs.cache.disk._QUIET_SECONDS", patience[0])
    monkeypatch.setattr("imagefs.cache.disk._WAIT_SECONDS", patience[1])
    monkeypatch.setattr("imagefs.cache.disk._WAIT_BYTES", MIB + 1)
    data = noise(MIB + more)

    async def body(tier: DiskTier) -> None:
        tier.reader_waits()
        assert tier.land(place(data), 0, data)
        with trio.move_on_after(20 if kept else 0.3):
            await until(lambda: tier.counters.landed_bytes > 0)
        assert tier.counters.landed_bytes == (len(data) if kept else 0)

    bench.run(body)


def test_what_lands_twice_while_its_file_waits_to_be_sealed_is_said_to_be_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.cache.disk._OFF_SECONDS", 0.0)
    seal = Folders.seal
    refusals = iter([True])

    def refusing(folders: Folders, files: Sequence[tuple[bytes, int, OpenFile]], small: Sequence[bytes] = ()) -> list[bytes]:
        if next(refusals, False):
            raise OSError(errno.EIO, "not now")
        return seal(folders, files, small)

    monkeypatch.setattr(Folders, "seal", refusing)
    data = noise(MIB)

    async def body(tier: DiskTier) -> None:
        where = place(data)
        there: list[int] = []
        assert tier.land(where, 0, data, lambda: there.append(1))
        await until(lambda: tier.counters.write_errors == 1)
        assert tier.land(where, 0, data, lambda: there.append(2))
        await tier.settled()
        assert there == [1, 2]
        assert tier.counters.not_landed_bytes == 0
        assert tier.complete == 1

    bench.run(body)


def test_what_is_incomplete_is_known_after_a_restart(bench: Bench) -> None:
    data = noise(MIB)

    async def first(tier: DiskTier) -> None:
        where = place(data)
        assert tier.land(where, 256 << 10, data[256 << 10 : 512 << 10])
        await tier.settled()
        assert tier.covers(where.name, 256 << 10, 512 << 10)
        assert not tier.covers(where.name, 0, 1)

    async def second(tier: DiskTier) -> None:
        name = digest_of(data)
        assert tier.covers(name, 256 << 10, 512 << 10)
        assert not tier.covers(name, 0, 1)
        assert not tier.covers(name, 512 << 10, 600 << 10)
        assert read(tier, name, 300_000, 400_000) == data[300_000:400_000]
        await land(tier, data)
        assert tier.complete == 1
        assert tier.held == len(data)

    bench.run(first)
    assert [len(content) for content in bench.files("partial").values()] == [MIB]
    bench.run(second)
    assert bench.files("objects") == {digest_of(data).hex(): data}
    assert bench.files("partial") == {}


@pytest.mark.parametrize("odd", [0, 1, 4095], ids=["aligned", "odd", "nearly"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
def test_any_place_and_memory_will_do(bench: Bench, monkeypatch: pytest.MonkeyPatch, odd: int, direct: bool) -> None:
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", -1)  # no file system takes all flags
    data = noise(3 * MIB + odd)
    memory = memoryview(mmap.mmap(-1, len(data) + 8192))
    memory[odd : odd + len(data)] = data
    cuts = [0, 4096, 4096 + odd, MIB, MIB + odd, 2 * MIB - odd, 2 * MIB, len(data)]

    async def body(tier: DiskTier) -> None:
        where = place(data)
        for start, end in itertools.pairwise(cuts):
            if start < end:
                assert tier.land(where, start, memory[odd + start : odd + end])
        await tier.settled()
        assert tier.complete == 1
        for start in (0, 1, 4096, MIB - 3):
            assert read(tier, where.name, start, len(data)) == data[start:]

    bench.run(body)


def test_holes_need_no_bytes(bench: Bench) -> None:
    data = bytes(MIB) + b"x" * 1000

    async def body(tier: DiskTier) -> None:
        where = place(data, holes=[(0, MIB)])
        tier.land(where, MIB, data[MIB:])
        await tier.settled()
        assert tier.complete == 1
        assert tier.held == 1000
        assert read(tier, where.name, MIB - 3, MIB + 3) == b"\0\0\0xxx"

    bench.run(body)


def test_bytes_that_do_not_make_the_object_are_never_sealed(bench: Bench) -> None:
    data = noise(MIB)
    lie = bytearray(data)
    lie[777] ^= 1

    async def body(tier: DiskTier) -> None:
        tier.land(place(data), 0, bytes(lie))
        await tier.settled()
        assert not tier.covers(digest_of(data), 0, 1)
        assert tier.counters.damaged_files == 1
        assert tier.held == 0
        await land(tier, data)
        assert tier.complete == 1

    bench.run(body)
    assert bench.files("objects") == {digest_of(data).hex(): data}


def test_what_is_found_damaged_is_forgotten_and_can_come_again(bench: Bench) -> None:
    data, part = noise(MIB), noise(MIB, 1)

    async def body(tier: DiskTier) -> None:
        name = await land(tier, data)
        tier.bad(name, 0, 10)
        assert not tier.covers(name, 0, len(data))
        assert tier.open(name) is None
        await tier.settled()
        assert bench.files("objects") == {}
        assert tier.held == 0
        other = place(part)
        tier.land(other, 0, part[: 512 << 10])
        await tier.settled()
        tier.bad(other.name, 0, 256 << 10)
        assert not tier.covers(other.name, 0, 1)
        assert tier.covers(other.name, 256 << 10, 512 << 10)
        await land(tier, data)
        assert tier.covers(name, 0, len(data))

    bench.run(body)


def test_an_open_file_stays_readable_whatever_is_evicted(bench: Bench) -> None:
    data = noise(MIB)

    async def body(tier: DiskTier) -> None:
        name = await land(tier, data)
        file = tier.open(name)
        assert file is not None
        assert await tier.evict(1) >= MIB
        assert bench.files("objects") == {}
        target = bytearray(MIB)
        assert file.read_into(memoryview(target), 0)
        assert target == data

    bench.run(body)


def test_the_limit_is_kept_and_can_be_changed(bench: Bench) -> None:
    bench.limit = 8 * MIB

    async def body(tier: DiskTier) -> None:
        for number in range(24):
            await land(tier, noise(MIB, number))
        assert tier.held <= 8 * MIB
        tier.set_bounds(limit=3 * MIB)
        await until(lambda: tier.held <= 3 * MIB)
        assert sum(map(len, bench.files("objects").values())) == tier.held

    bench.run(body)


def test_a_full_disk_is_a_slower_host(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    broken = [True]

    def pwritev(descriptor: int, views: list[memoryview], offset: int) -> int:
        if broken[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, [views[0][:4096]], offset)  # short writes are no errors

    data = noise(100_000)
    now = [1e9]

    async def body(tier: DiskTier) -> None:
        monkeypatch.setattr(os, "pwritev", pwritev)
        tier._wall = lambda: now[0]
        assert tier.land(place(data), 0, data)
        await tier.settled()
        assert tier.counters.write_errors == 1
        assert not tier.land(place(data), 0, data), "left alone for a while"
        assert tier.status()["refusing"]
        broken[0] = False
        now[0] += 60
        await land(tier, data)
        assert tier.complete == 1

    bench.run(body)
    assert bench.log.events == ["cache_disk_refuses"]


def test_a_bug_in_the_task_ends_the_tier_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(1000)

    async def body(tier: DiskTier) -> None:
        monkeypatch.setattr(tier._folders, "create", None)
        tier.land(place(data), 0, data)
        await until(lambda: bool(bench.log.events))
        assert not tier.land(place(data), 0, data)
        assert not tier.covers(digest_of(data), 0, 1)

    bench.run(body)
    assert bench.log.events == ["cache_bug"]


def test_the_queue_is_bounded(bench: Bench) -> None:
    data = noise(16 * MIB)

    async def body(tier: DiskTier) -> None:
        kept = [tier.land(Place(digest_of(b"%d" % n), len(data), tuple), 0, data) for n in range(10)]
        assert kept == [True] * (QUEUE_MAX // len(data)) + [False] * (10 - QUEUE_MAX // len(data))

    bench.run(body)


def test_after_a_kill_sealed_files_are_taken_in_and_others_removed(bench: Bench) -> None:
    data, lost = noise(MIB), noise(MIB, 1)

    async def nothing(_: DiskTier) -> None: ...

    async def body(tier: DiskTier) -> None:
        await land(tier, noise(10_000, 9))

    bench.run(body, clean=False)
    for folder, content, name in (
        ("objects", data, digest_of(data)),
        ("objects", b"damaged", digest_of(lost)),
        ("partial", b"x", digest_of(b"p")),
    ):
        path = bench.root / folder / name.hex()[:2] / name.hex()[2:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1, 1))

    async def after(tier: DiskTier) -> None:
        await until(lambda: tier.covers(digest_of(data), 0, MIB) and len(bench.files("objects")) == 2 and not bench.files("partial"))
        await tier.settled()
        assert tier.complete == 2
        assert tier.held == MIB + 10_000

    bench.run(after)
    bench.run(nothing)
    assert sorted(bench.files("objects")) == sorted([digest_of(data).hex(), digest_of(noise(10_000, 9)).hex()])


@pytest.mark.parametrize("damage", [lambda data: b"\xff" * 8192, lambda data: data[: len(data) // 2 & -4096]], ids=["other", "cut"])
def test_a_damaged_index_is_put_aside(bench: Bench, damage: Callable[[bytes], bytes]) -> None:
    async def body(tier: DiskTier) -> None:
        await land(tier, noise(MIB))

    bench.run(body)
    index = bench.root / "lmdb" / "data.mdb"
    index.write_bytes(damage(index.read_bytes()))

    async def after(tier: DiskTier) -> None:
        await until(lambda: tier.complete == 1)

    bench.run(after)
    assert "cache_index_damaged" in bench.log.events


def test_an_index_that_cannot_be_read_ends_the_tier_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupted(*_: object) -> None:
        raise StoreError("the index of the cache cannot be read")

    async def body(tier: DiskTier) -> None:
        await land(tier, noise(MIB))
        monkeypatch.setattr(DiskIndex, "get", corrupted)
        assert not tier.covers(digest_of(noise(10)), 0, 1)
        assert not tier.covers(digest_of(noise(MIB)), 0, 1)
        assert not tier.land(place(b"x"), 0, b"x")

    bench.run(body)
    assert bench.log.events == ["cache_index_unreadable"]
    assert (bench.root / "unclean").exists(), "the next start sets it right"


def test_a_file_that_was_sealed_just_before_a_kill_is_taken_in(bench: Bench) -> None:
    data = noise(MIB)
    name = digest_of(data)

    async def partly(tier: DiskTier) -> None:
        tier.land(place(data), 0, data[: 256 << 10])
        await tier.settled()

    bench.run(partly, clean=False)
    sealed = bench.root / "objects" / name.hex()[:2] / name.hex()[2:]
    sealed.parent.mkdir()
    sealed.write_bytes(data)
    os.utime(sealed, (1, 1))

    async def after(tier: DiskTier) -> None:
        await until(lambda: tier.covers(name, 0, MIB))
        assert (tier.held, tier.complete) == (MIB, 1)
        assert read(tier, name, 0, MIB) == data

    bench.run(after)


def test_what_cannot_be_sealed_now_is_sealed_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(MIB)
    real = Folders.seal
    broken = [True]

    def seal(self: Folders, files: Sequence[tuple[bytes, int, OpenFile]], small: Sequence[bytes] = ()) -> list[bytes]:
        if broken[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, files, small)

    monkeypatch.setattr(Folders, "seal", seal)

    async def body(tier: DiskTier) -> None:
        assert tier.land(place(data), 0, data)
        await until(lambda: tier.counters.write_errors > 0)
        assert tier.covers(digest_of(data), 0, MIB)
        assert read(tier, digest_of(data), 0, MIB) == data
        broken[0] = False
        await until(lambda: tier.complete == 1)

    bench.run(body)
    assert bench.files("objects") == {digest_of(data).hex(): data}


def test_open_files_are_bounded(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async def body(tier: DiskTier) -> None:
        for number in range(600):
            data = noise(8192, number)
            assert tier.land(place(data), 0, data[:4096])
        await tier.settled()
        assert len(os.listdir("/proc/self/fd")) - before < 2 * 256 + 50  # noqa: PTH208

    bench.run(body)
