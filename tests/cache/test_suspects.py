"""What lay in ``objects/`` when the machine stopped uncleanly: aside, readable for the daemon alone, and back when it was verified."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from imagefs.cache import disk_open, disk_suspects
from imagefs.cache.checks import Checker, Item, Verdict
from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_open import UNCLEAN, OpenedTier
from imagefs.digest import digest_of
from tests.cache.tierbench import Bench, land, noise, read, until

OTHER = "another start of the machine"
DATA = [noise(size, size) for size in (100, 5000, 70_000, 300_000, 5 << 20)]
NAMES = [digest_of(data) for data in DATA]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> "Gate":
    return Gate(monkeypatch)


class Gate:
    """Holds back who looks, until it is opened; notes in which order they come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = 0
        self.order: list[bytes] = []
        look = Checker.look

        async def held(checker: Checker, batch: Sequence[Item], **options: object) -> list[Verdict]:
            while self.passes <= 0:  # noqa: ASYNC110 # what it waits for is a number that the test sets
                await trio.sleep(0.01)
            self.passes -= 1
            self.order += [name for name, _ in batch]
            return await look(checker, batch, **options)  # type: ignore[arg-type] # as they came

        monkeypatch.setattr(Checker, "look", held)


async def _nothing(_: OpenedTier) -> None: ...


async def _land_all(tier: DiskTier) -> None:
    for data in DATA:
        await land(tier, data)


def _stop(bench: Bench, mark: str = OTHER) -> None:
    """Have the machine stop in the middle of things."""
    bench.run(_land_all, clean=False)
    (bench.root / UNCLEAN).write_text(mark)


async def _cleared(opened: OpenedTier) -> None:
    await until(lambda: not opened.tier.is_suspect)


def _whole(bench: Bench) -> bool:
    return bench.files("objects") == {name.hex(): data for name, data in zip(NAMES, DATA, strict=True)}


def test_the_kernel_is_served_nothing_before_it_is_verified_and_the_daemon_all(bench: Bench, gate: Gate) -> None:
    _stop(bench)

    async def body(opened: OpenedTier) -> None:
        tier = opened.tier
        assert bench.files("objects") == {}
        assert tier.is_suspect
        for name, data in zip(NAMES, DATA, strict=True):
            assert tier.covers(name, 0, len(data))
            assert not tier.is_native(name, len(data))
            assert read(tier, name, 0, len(data)) == data
        gate.passes = 1000
        await _cleared(opened)
        assert _whole(bench)
        for name, data in zip(NAMES, DATA, strict=True):
            assert tier.is_native(name, len(data))
            assert read(tier, name, 0, len(data)) == data
        assert tier.counters.cleared_files == len(DATA)
        assert (tier.complete, tier.held) == (len(DATA), sum(map(len, DATA)))

    bench.run_all(body)
    assert not (bench.root / "suspect").exists()
    assert bench.log.events == ["cache_suspect", "cache_cleared"]


def test_what_is_damaged_never_comes_back(bench: Bench) -> None:
    _stop(bench)
    bench.rot(NAMES[1])
    bench.rot(NAMES[4], 3 << 20)

    async def body(opened: OpenedTier) -> None:
        await _cleared(opened)
        assert set(bench.files("objects")) == {NAMES[number].hex() for number in (0, 2, 3)}
        assert not opened.tier.covers(NAMES[1], 0, 1)
        assert {await opened.tier.withdrawn.receive() for _ in range(2)} == {NAMES[1], NAMES[4]}
        await _land_all(opened.tier)

    bench.run_all(body)
    assert _whole(bench)


def test_what_a_reader_wants_is_looked_at_first(bench: Bench, gate: Gate) -> None:
    _stop(bench)
    wanted = max(NAMES)

    async def body(opened: OpenedTier) -> None:
        gate.passes = 1
        await until(lambda: len(gate.order) == 1)
        assert opened.tier.open(wanted) is not None
        gate.passes = 2
        await until(lambda: len(gate.order) == 3)
        assert gate.order[:3].index(wanted) <= 2
        await until(lambda: bench.path(wanted).exists())
        gate.passes = 1000
        await _cleared(opened)

    bench.run_all(body)
    assert _whole(bench)


@pytest.mark.parametrize("mark", ["", OTHER, "no boot id"])
def test_the_worst_is_assumed(bench: Bench, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    _stop(bench, mark)
    if mark == "no boot id":
        monkeypatch.setattr(disk_open, "_BOOT_ID", bench.root / "nothing")
        (bench.root / UNCLEAN).write_text("")
    bench.run_all(_cleared)
    assert _whole(bench)
    assert bench.log.events == ["cache_suspect", "cache_cleared"]


def test_a_worker_that_was_killed_leaves_the_machine_as_it_was(bench: Bench) -> None:
    bench.run(_land_all, clean=False)
    assert (bench.root / UNCLEAN).read_text() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    bench.run_all(_nothing)
    assert not (bench.root / UNCLEAN).exists()
    assert bench.log.events == []


def test_mounts_that_live_on_know_better(bench: Bench) -> None:
    _stop(bench)
    bench.run_all(_nothing, lives_on=True)
    assert bench.log.events == []
    assert _whole(bench)


def test_a_clean_end_on_another_start_of_the_machine_is_none(bench: Bench) -> None:
    bench.run(_land_all)
    bench.run_all(_nothing)
    assert bench.log.events == []


@pytest.mark.parametrize("clean", [True, False], ids=["ended", "killed"])
def test_who_ends_in_the_middle_is_followed_by_who_goes_on(bench: Bench, gate: Gate, clean: bool) -> None:
    _stop(bench)

    async def some(opened: OpenedTier) -> None:
        gate.passes = 2
        await until(lambda: opened.tier.counters.cleared_files == 2)

    bench.run_all(some, clean=clean)
    assert len(bench.files("objects")) == 2
    gate.passes = 1000
    bench.run_all(_cleared)
    assert _whole(bench)
    assert len(gate.order) == len(set(gate.order)) == len(DATA), "nothing was looked at twice"


@pytest.mark.parametrize("stops", [3, 12])
def test_the_machine_may_stop_again_and_again(bench: Bench, gate: Gate, stops: int) -> None:
    many = [noise(5000, number) for number in range(stops)]
    left = list(many)

    async def one(opened: OpenedTier) -> None:
        assert bench.files("objects") == {}
        await land(opened.tier, left.pop())
        assert len(bench.files("objects")) == 1

    for _ in range(stops):
        bench.run_all(one, clean=False)
        (bench.root / UNCLEAN).write_text(OTHER)
    assert 1 < len(list((bench.root / "suspect").iterdir())) <= disk_suspects._FOLDERS_MAX
    gate.passes = 1000
    bench.run_all(_cleared)
    assert sorted(bench.files("objects").values()) == sorted(many)
    assert not (bench.root / "suspect").exists()


def test_one_that_stops_before_it_has_marked_it_begins_anew(bench: Bench) -> None:
    _stop(bench)
    # The folder was renamed, and nothing else was done.
    disk_suspects.set_apart(bench.root, "objects")
    bench.run_all(_cleared)
    assert _whole(bench)


def test_what_the_index_does_not_know_is_taken_in_or_removed(bench: Bench) -> None:
    _stop(bench)
    (bench.root / "lmdb" / "data.mdb").write_bytes(b"\xff" * 8192)
    bench.rot(NAMES[2])
    os.truncate(bench.path(NAMES[0]), 99)
    (bench.root / "objects" / "junk").write_text("x")
    (bench.root / "objects" / NAMES[1].hex()[:2] / "a folder").mkdir()
    (bench.root / "objects" / NAMES[1].hex()[:2] / "more junk").write_text("x")

    async def body(opened: OpenedTier) -> None:
        await _cleared(opened)
        await opened.tier.settled()
        assert opened.tier.complete == 3

    bench.run_all(body)
    assert sorted(bench.files("objects")) == sorted(NAMES[number].hex() for number in (1, 3, 4))


def test_what_has_landed_anew_is_not_replaced(bench: Bench, gate: Gate) -> None:
    _stop(bench)
    (bench.root / "lmdb" / "data.mdb").write_bytes(b"\xff" * 8192)
    bench.rot(NAMES[1])

    async def body(opened: OpenedTier) -> None:
        await land(opened.tier, DATA[1])
        inode = bench.path(NAMES[1]).stat().st_ino
        gate.passes = 1000
        await _cleared(opened)
        assert bench.path(NAMES[1]).stat().st_ino == inode

    bench.run_all(body)
    assert _whole(bench)


def test_a_suspect_can_be_evicted(bench: Bench, gate: Gate) -> None:
    _stop(bench)

    async def body(opened: OpenedTier) -> None:
        assert await opened.tier.evict(1 << 40) == sum(map(len, DATA))
        gate.passes = 1000
        await _cleared(opened)
        assert opened.tier.counters.cleared_files == 0

    bench.run_all(body)
    assert bench.files("objects") == {}


def test_who_looks_while_it_is_moved_finds_it(bench: Bench, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop(bench)

    async def body(opened: OpenedTier) -> None:
        folders, path = opened.folders, disk_suspects.Suspects.path
        moves: list[Callable[[], str | None]] = [lambda: path(folders.suspects, NAMES[0]), lambda: None]

        def moved(suspects: disk_suspects.Suspects, name: bytes) -> str | None:
            """Another thread gives it its place just now: before this one has looked, or after."""
            move = moves.pop()
            found = move()
            with monkeypatch.context() as patch:
                patch.setattr(disk_suspects.Suspects, "path", path)
                assert folders.clear(name)
            return found

        for number in (0, 1):
            with monkeypatch.context() as patch:
                patch.setattr(disk_suspects.Suspects, "path", moved)
                assert opened.tier.open(NAMES[number]) is not None
        assert moves == []

    bench.run_all(body)
