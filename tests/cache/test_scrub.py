"""The scrubber: what is looked at when, by a clock that the test winds; and that looking finds what rotted, on a real disk."""

import errno
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from imagefs.cache import disk_files, idle
from imagefs.cache.checks import STEP, Item, Verdict, batched
from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_files import Folders, OpenFile
from imagefs.cache.disk_index import DiskIndex, Figures, Row
from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.idle import IdleThread
from imagefs.cache.scrub import RATE, Scrubber
from imagefs.errors import StoreFullError
from tests.cache.tierbench import MIB, Bench, Log, land, noise

BEGUN = 1.7e9
PERIOD = 1000.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


# -- the pace -------------------------------------------------------------------------------------------------------------------------


def name(share: float) -> bytes:
    """Name a file that lies at that share of all names."""
    return int(share * 2**64).to_bytes(8, "big") + b"\1" * 24


@dataclass
class Looks:
    """Stands in for who looks: notes when, as the wall shows it."""

    wall: Callable[[], float]
    seconds: float = 0
    seen: list[tuple[bytes, float]] = field(default_factory=list)
    rates: set[float] = field(default_factory=set)

    async def look(self, batch: Sequence[Item], *, by: str, rate: float) -> list[Verdict]:
        self.seen += [(item[0], self.wall() - BEGUN) for item in batch]
        self.rates.add(rate)
        await trio.sleep(self.seconds)
        return [Verdict.SOUND] * len(batch)


@dataclass
class Scene:
    """An index with some files, and a scrubber over it for as long as the body takes."""

    path: Path
    files: dict[bytes, int]
    now: float = 0.0
    """Where a run begins, in seconds since the first."""
    late: float = 0.0
    """How late the scrubber was when it ended."""
    rates: set[float] = field(default_factory=set)
    log: Log = field(default_factory=Log)

    def run(self, seconds: float, *, period: float = PERIOD, takes: float = 0) -> list[tuple[bytes, float]]:
        """Scrub for so long; return what was looked at, and when."""
        begun = 0.0
        index = DiskIndex(self.path)
        index.commit([(name, Row(True, size, size, 0)) for name, size in self.files.items()], [], Figures())
        index.commit([(name(0.55), Row(False, 10, 5, 0))], [], Figures())
        tier = _Tier()

        def wall() -> float:
            return BEGUN + self.now + trio.current_time() - begun

        async def main() -> Looks:
            nonlocal begun
            begun = trio.current_time()
            looks = Looks(wall, takes)
            scrubber = Scrubber(looks, index, tier, self.log, period=period, wall=wall)  # type: ignore[arg-type] # all that it uses
            with trio.move_on_after(seconds):
                await scrubber.run()
                await trio.sleep_forever()
            self.late = max(0, wall() - tier.scrub_due)
            return looks

        try:
            looks = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        finally:
            index.close()
        self.now += seconds
        self.rates |= looks.rates
        return looks.seen


class _Tier:
    scrub_due = math.inf


TEN = {name(share / 10): 100_000 + 4 * MIB for share in range(10)}


@pytest.fixture
def scene(tmp_path: Path, threads_take_no_time: None) -> Scene:
    return Scene(tmp_path / "lmdb", dict(TEN))


def test_each_file_once_a_period_in_the_order_of_names_when_its_share_has_gone_by(scene: Scene) -> None:
    seen = scene.run(2 * PERIOD - 1)
    assert [name for name, _ in seen] == [*sorted(TEN), *sorted(TEN)]
    for number, (_, when) in enumerate(seen):
        assert number * PERIOD / 10 <= when <= number * PERIOD / 10 + 2, (number, when)
    assert scene.late == 0
    assert scene.rates == {RATE}


def test_a_restart_goes_on_where_it_was_and_keeps_the_period(scene: Scene) -> None:
    seen = scene.run(455)
    for _ in range(6):
        seen += scene.run(30)
    seen += scene.run(PERIOD)
    assert [name for name, _ in seen[:15]] == [*sorted(TEN), *sorted(TEN)][:15]
    for number, (_, when) in enumerate(seen):
        # A new one waits no longer than the clock is looked at.
        assert number * PERIOD / 10 <= when <= number * PERIOD / 10 + 2, (number, when)


def test_many_restarts_before_the_first_is_due_do_not_put_it_off(scene: Scene) -> None:
    del scene.files[min(TEN)]
    seen = [item for _ in range(6) for item in scene.run(20)]
    assert [found for found, _ in seen] == [name(0.1)]


def test_what_is_late_is_done_at_once_and_the_next_round_is_in_time(scene: Scene) -> None:
    scene.run(150)
    scene.now += 3 * PERIOD + 500
    seen = scene.run(PERIOD)
    first = [when for _, when in seen[:8]]
    assert [name for name, _ in seen[:8]] == sorted(TEN)[2:]
    assert first[-1] - first[0] < 5
    # What was looked at before that is overdue as well: one more round at once, and no second one.
    assert [name for name, _ in seen[8:18]] == sorted(TEN)
    assert seen[17][1] - first[0] < 10
    assert len(seen) <= 18 + 10


def test_a_clock_that_is_set_back_does_not_stop_it(scene: Scene) -> None:
    scene.run(150)
    scene.now -= 1e8
    assert len(scene.run(PERIOD)) >= 7, "those that were left, in their time"
    assert len(scene.run(PERIOD)) == 10


def test_how_late_it_is(scene: Scene) -> None:
    scene.run(900, takes=300)
    assert 500 <= scene.late <= 900


def test_zero_days_are_never(scene: Scene) -> None:
    assert scene.run(5 * PERIOD, period=0) == []
    assert scene.late == 0


def test_a_full_disk_and_a_bug_end_nothing_else(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(DiskIndex, "keep_scrub", full)
        assert len(scene.run(455)) == 5
    assert scene.log.events == []
    monkeypatch.setattr(Scrubber, "_look", None)
    assert scene.run(PERIOD) == []
    assert scene.log.events == ["scrubber_bug"]
    assert scene.late > 0, "which is seen in the figures"


def test_an_empty_cache_does_not_keep_it_busy(scene: Scene) -> None:
    scene.files.clear()
    assert scene.run(3 * PERIOD) == []


def test_runs_are_worth_a_step() -> None:
    items = [(bytes([number]) * 32, size) for number, size in enumerate([10, STEP, 10, STEP * 3, *[5] * 70])]
    runs = list(batched(items))
    assert [len(run) for run in runs] == [1, 1, 1, 1, 64, 6]
    assert [item for run in runs for item in run] == items


# -- looking --------------------------------------------------------------------------------------------------------------------------


def _scrubbing(opened: OpenedTier, log: Log, period: float = 0.5) -> Callable[[], Awaitable[None]]:
    return Scrubber(opened.checker, opened.index, opened.tier, log, period=period).run


@pytest.mark.parametrize("size", [100, 100_000, 9 * MIB + 5])
@pytest.mark.parametrize("damage", ["flipped", "cut", "unreadable"])
def test_what_rotted_is_found_withdrawn_and_told(bench: Bench, monkeypatch: pytest.MonkeyPatch, size: int, damage: str) -> None:
    async def body(opened: OpenedTier) -> None:
        tier = opened.tier
        names = [await land(tier, noise(size, number)) for number in range(3)]
        if damage == "flipped":
            bench.rot(names[1], size - 1)
        elif damage == "cut":
            os.truncate(bench.path(names[1]), size // 2)
        else:
            bad = os.fspath(bench.path(names[1]))
            read_into = OpenFile.read_into

            def refused(file: OpenFile, target: memoryview, offset: int) -> bool:
                if Path(f"/proc/self/fd/{file.descriptor}").readlink() == Path(bad):
                    raise OSError(errno.EIO, "a bad block")
                return read_into(file, target, offset)

            monkeypatch.setattr(OpenFile, "read_into", refused)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_scrubbing(opened, bench.log))
            assert await opened.tier.withdrawn.receive() == names[1]
            # Before it is told, it is unlinked.
            assert not bench.path(names[1]).exists()
            assert not tier.covers(names[1], 0, 1)
            nursery.cancel_scope.cancel()
        assert (tier.counters.damaged_files, tier.counters.withdrawn_files) == (1, 1)
        assert all(tier.covers(name, 0, size) for name in (names[0], names[2]))
        assert tier.counters.scrubbed_files > 0
        assert tier.counters.scrubbed_bytes > 0

    bench.run_all(body)
    assert bench.log.events == ["object_damaged"]


def test_verify_finds_and_removes_what_rotted(bench: Bench) -> None:
    async def body(opened: OpenedTier) -> None:
        names = [await land(opened.tier, noise(100_000, n)) for n in range(5)]
        await land(opened.tier, noise(10 * MIB, 9))
        bench.rot(names[2], 5000)
        size = 500_000 + 10 * MIB
        assert await opened.checker.verify() == {"files": 6, "bytes": size, "bad": 1}
        assert await opened.checker.verify() == {"files": 5, "bytes": size - 100_000, "bad": 0}

    bench.run_all(body)
    assert len(bench.files("objects")) == 5


def test_a_row_without_a_file_goes_and_what_cannot_be_opened_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(opened: OpenedTier) -> None:
        gone, kept = [await land(opened.tier, noise(5000, n)) for n in range(2)]
        bench.path(gone).unlink()
        open_complete = Folders.open_complete

        def refused(folders: Folders, name: bytes, *, ask: bool = True) -> OpenFile:
            if name == kept:
                raise OSError(errno.EMFILE, "too many")
            return open_complete(folders, name, ask=ask)

        monkeypatch.setattr(Folders, "open_complete", refused)
        assert await opened.checker.look([(gone, 5000), (kept, 5000)], by="test") == [Verdict.GONE, Verdict.UNKNOWN]
        assert not opened.tier.covers(gone, 0, 1)
        assert opened.tier.covers(kept, 0, 5000)
        assert (opened.tier.counters.damaged_files, opened.tier.counters.withdrawn_files) == (0, 0)

    bench.run_all(body)
    assert bench.log.events == []


def test_readers_go_first_but_not_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.cache.disk._QUIET_SECONDS", 0.2)
    monkeypatch.setattr("imagefs.cache.disk._WAIT_SECONDS", 0.6)

    async def body(opened: OpenedTier) -> None:
        item = (await land(opened.tier, noise(5000)), 5000)

        async def took(**options: bool) -> float:
            begun = trio.current_time()
            await opened.checker.look([item], by="test", **options)
            return trio.current_time() - begun

        opened.tier.reader_waits()
        assert 0.15 < await took() < 0.5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_on, opened.tier)
            await trio.sleep(0.01)
            assert await took(patient=False) < 0.15
            assert 0.55 < await took() < 1.5
            nursery.cancel_scope.cancel()

    bench.run_all(body)


async def _read_on(tier: DiskTier) -> None:
    while True:
        tier.reader_waits()
        await trio.sleep(0.01)


@pytest.mark.parametrize("size", [MIB, 6 * MIB])
def test_no_more_bytes_a_second_than_the_rate(bench: Bench, size: int) -> None:
    async def body(opened: OpenedTier) -> None:
        found = await land(opened.tier, noise(size))
        begun = trio.current_time()
        await opened.checker.look([(found, size)], by="test", rate=10 * MIB)
        assert size / (10 * MIB) <= trio.current_time() - begun < 5

    bench.run_all(body)


def test_the_thread_is_idle_and_others_are_not() -> None:
    def priorities() -> tuple[int, int]:
        number = os.getpriority(os.PRIO_PROCESS, 0)
        return number, idle.__dict__["ioprio_idle"].__globals__["_syscall"](252, 1, 0) if os.uname().machine == "x86_64" else 3 << 13

    async def main() -> tuple[tuple[int, int], tuple[int, int]]:
        thread = IdleThread()
        try:
            return await thread(priorities), await trio.to_thread.run_sync(priorities)
        finally:
            thread.close()

    ours, other = trio.run(main)
    assert ours == (19, 3 << 13)
    assert other[0] == os.getpriority(os.PRIO_PROCESS, os.getpid())
    assert other[1] != 3 << 13


def test_what_the_thread_raises_is_raised() -> None:
    async def main() -> None:
        thread = IdleThread()
        with pytest.raises(ZeroDivisionError):
            await thread(lambda: 1 // 0)
        assert await thread(lambda: 5) == 5
        thread.close()

    trio.run(main)


# -- fs-verity ------------------------------------------------------------------------------------------------------------------------


def _writers(path: str) -> list[str]:
    """Return who has a file open for writing in this process."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            flags = int(Path(f"/proc/self/fdinfo/{entry.name}").read_text().split("flags:")[1].split()[0], 8)
            if os.fspath(entry.readlink()) == path and flags & os.O_ACCMODE != os.O_RDONLY:
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_what_is_sealed_gets_verity_when_nobody_writes_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def enable(descriptor: int) -> None:
        path = os.fspath(Path(f"/proc/self/fd/{descriptor}").readlink())
        assert _writers(path) == []
        asked.append(path)
        if len(asked) == 1:
            raise OSError(errno.ETXTBSY, "somebody writes")

    monkeypatch.setattr(disk_files, "enable_verity", enable)

    async def body(opened: OpenedTier) -> None:
        names = [await land(opened.tier, noise(size, size)) for size in (100, MIB)]
        paths = [os.fspath(bench.path(name)) for name in names]
        assert asked == paths
        # What could not have it then has it when it was looked at.
        await opened.checker.verify()
        assert sorted(asked) == sorted([*paths, *paths])
        assert opened.folders.has_verity

    bench.run_all(body)


def test_where_there_is_no_verity_it_is_asked_for_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def enable(descriptor: int) -> None:
        asked.append(descriptor)
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(disk_files, "enable_verity", enable)

    async def body(opened: OpenedTier) -> None:
        for number in range(3):
            await land(opened.tier, noise(5000, number))
        await opened.checker.verify()
        assert opened.tier.complete == 3

    bench.run_all(body)
    assert len(asked) == 1
