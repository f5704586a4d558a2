"""Profiles on their way to the store: what waits, what goes, and what is told, while the store does what stores do."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from imagefs.cache.counters import StartCounters
from imagefs.daemon import publishing
from imagefs.daemon.publishing import SPOOL_MAX, Publisher, Spool, publisher_of
from imagefs.errors import AccessError, DeadlineError, ImageFSError, StoreError
from imagefs.format.accesses import GRAIN
from imagefs.format.profile import Access, Key, Profile
from imagefs.store.opening import open_store
from imagefs.store.profiles import fetch
from tests.cache.test_fetcher import Log
from tests.store.faulty import FaultyStore

_MANIFEST = "ab" * 32


def _profile(number: int = 0) -> Profile:
    return Profile(_MANIFEST, Key("x"), 1, [Access(bytes([number]) * 32, 0, GRAIN, 0, 65535)])


class Store:
    """Takes profiles, or raises ``error``."""

    def __init__(self) -> None:
        """See the class."""
        self.error: Exception | None = None
        self.taken: list[Profile] = []
        self.kept: list[Profile] = []
        self.calls = 0

    def publish(self, profile: Profile) -> str:
        """Take one."""
        self.calls += 1
        if self.error is not None:
            raise self.error
        self.taken.append(profile)
        return "id"


class Bench:
    """A publisher on a cache of its own."""

    def __init__(self, cache: Path) -> None:
        """See the class."""
        self.spool = Spool(cache)
        self.store = Store()
        self.log = Log()
        self.counters = StartCounters()
        self.publisher = Publisher(
            self.spool,
            self.store.publish,
            self.store.kept.append,
            self.counters,
            self.log,  # type: ignore[arg-type] # as much of a log as is used
        )

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        """Run ``body`` beside the publisher."""

        async def main() -> None:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.publisher.run)
                    await body()
                    nursery.cancel_scope.cancel()

        trio.run(main)

    def events(self) -> list[str]:
        """Return what was logged."""
        return [str(event["event"]) for event in self.log.events]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something."""
        while not condition():  # noqa: ASYNC110 # what it waits for has no event
            await trio.sleep(0.01)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_profile_is_published_and_gone(bench: Bench) -> None:
    async def body() -> None:
        await bench.publisher.add(_profile())
        await bench.until(lambda: bench.store.taken == [_profile()] and not bench.spool.waiting())

    bench.run(body)
    assert bench.events() == ["profile_published"]
    assert (bench.counters.published, bench.counters.waiting) == (1, 0)


def test_what_a_daemon_could_not_publish_the_next_one_does(bench: Bench, tmp_path: Path) -> None:
    Spool(tmp_path).add(_profile(3))

    async def body() -> None:
        await bench.until(lambda: bench.store.taken == [_profile(3)])

    bench.run(body)


def test_a_store_that_is_away_is_told_of_once_and_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "AGAIN_SECONDS", 0.02)
    bench.store.error = DeadlineError("away")

    async def body() -> None:
        await bench.publisher.add(_profile())
        await bench.until(lambda: bench.store.calls >= 3)
        assert bench.store.kept == [_profile()], "this host has it meanwhile, once"
        bench.store.error = StoreError("away in another way")
        await bench.until(lambda: bench.store.calls >= 6)
        bench.store.error = None
        await bench.until(lambda: not bench.spool.waiting())

    bench.run(body)
    assert bench.events() == ["profile_not_published", "profile_published"]


def test_of_a_store_that_may_only_be_read_nothing_is_expected(bench: Bench) -> None:
    bench.store.error = AccessError("denied")

    async def body() -> None:
        for number in range(3):
            await bench.publisher.add(_profile(number))
            await bench.until(lambda: not bench.spool.waiting())

    bench.run(body)
    assert bench.store.kept == [_profile(number) for number in range(3)]
    assert bench.events() == ["profile_not_published"]


def test_what_waits_is_bounded_and_the_oldest_goes(bench: Bench) -> None:
    for number in range(SPOOL_MAX + 5):
        bench.spool.add(_profile(number))
        for path in bench.spool.waiting():
            status = path.stat()
            os.utime(path, ns=(0, status.st_mtime_ns - 10**9))
    assert [bench.spool.read(path).accesses[0].object[0] for path in bench.spool.waiting()] == list(range(5, SPOOL_MAX + 5))


@pytest.mark.parametrize("data", [b"", b"nonsense", bytes(1 << 20)])
def test_what_is_damaged_is_dropped_and_the_rest_goes_on(bench: Bench, data: bytes) -> None:
    bench.spool.add(_profile())
    bad = bench.spool.waiting()[0].with_name("bad")
    bad.write_bytes(data)
    os.utime(bad, (0, 0))

    async def body() -> None:
        await bench.until(lambda: bench.store.taken == [_profile()] and not bench.spool.waiting())

    bench.run(body)
    assert bench.events() == ["profile_dropped", "profile_published"]


def test_a_bug_costs_one_profile(bench: Bench) -> None:
    bench.spool.add(_profile())
    bench.store.error = ZeroDivisionError()

    async def body() -> None:
        await bench.until(lambda: not bench.spool.waiting())
        bench.store.error = None
        await bench.publisher.add(_profile(1))
        await bench.until(lambda: bench.store.taken == [_profile(1)])

    bench.run(body)
    assert "publishing_bug" in bench.events()


def test_a_disk_that_is_full_costs_one_profile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def body() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(bench.spool, "add", add)
            await bench.publisher.add(_profile())
        await bench.publisher.add(_profile(1))
        await bench.until(lambda: bench.store.taken == [_profile(1)])

    bench.run(body)
    assert bench.events()[0] == "profile_not_kept"


def test_while_a_reader_waits_for_the_link_nothing_is_sent(tmp_path: Path) -> None:
    inner = open_store(f"file://{tmp_path}/store", create=True)
    store, log, counters = FaultyStore(inner), Log(), StartCounters()
    readers, asked = [True], [0]

    def busy() -> bool:
        asked[0] += 1
        return readers[0]

    publisher, known = publisher_of(tmp_path / "cache", store, counters, log, busy=busy)  # type: ignore[arg-type] # as much of a log

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher.run)
                await publisher.add(_profile())
                while asked[0] < 3:  # noqa: ASYNC110 # a thread has no event of ours
                    await trio.sleep(0.01)
                assert store.calls == []
                readers[0] = False
                while counters.waiting or not counters.published:  # noqa: ASYNC110 # likewise
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert fetch(inner, _MANIFEST, None) == _profile()
    assert known.load(_MANIFEST, None) == _profile(), "and this host has what the store says now"
    inner.close()


def test_errors_of_ours_alone_are_expected() -> None:
    assert all(issubclass(kind, ImageFSError) for kind in publishing._DAMAGED)
