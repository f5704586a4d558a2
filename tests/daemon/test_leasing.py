"""A daemon's lease: named is what is shown, nobody waits, and a store that takes none is let be."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from imagefs.daemon.leasing import MountLease
from imagefs.errors import AccessError, StoreError
from imagefs.store.leases import leases
from imagefs.store.opening import open_store
from tests.cache.test_fetcher import Log
from tests.store.faulty import Fault, FaultyStore

A, B = "ab" * 32, "cd" * 32
LOOK = 0.01


class Bench:
    """A daemon's lease in a store of its own, and what that was asked for."""

    def __init__(self, root: Path) -> None:
        """See the class."""
        self.inner = open_store(f"file://{root}/store", create=True)
        self.store = FaultyStore(self.inner)
        self.path = root / "lease"
        self.shown: set[str] = set()
        self.busy = False
        self.asked = 0
        self.log = Log()
        self.looks = 0

    def lease(self, **options: Any) -> MountLease:
        """Return one, as a worker makes it."""
        return MountLease(
            self.store,
            self.path,
            self.look,
            self.log,  # type: ignore[arg-type] # as much of a log as is used
            busy=self.is_busy,
            **({"look": LOOK} | options),
        )

    def is_busy(self) -> bool:
        """Say whether somebody reads."""
        self.asked += 1
        return self.busy

    def look(self) -> set[str]:
        """Return what is shown."""
        self.looks += 1
        return set(self.shown)

    def run(self, lease: MountLease, body: Callable[[], Awaitable[None]]) -> None:
        """Run ``body`` beside the lease."""

        async def main() -> None:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lease.run)
                    await body()
                    nursery.cancel_scope.cancel()

        trio.run(main)

    def named(self) -> list[list[str]]:
        """Return what the leases of the store name."""
        return [lease.document.manifests for lease in leases(self.inner) if lease.document is not None]

    def writes(self) -> int:
        """Return how often a lease was written, or tried to."""
        return sum(op == "replace" for op, _ in self.store.calls)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something."""
        while not condition():  # noqa: ASYNC110 # what it waits for has no event
            await trio.sleep(0.005)

    async def after_looks(self, count: int = 3) -> None:
        """Wait until it has been looked so often from now on."""
        then = self.looks + count
        await self.until(lambda: self.looks >= then)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.inner.close()


def test_it_names_what_is_shown_and_goes_with_that(bench: Bench) -> None:
    async def body() -> None:
        await bench.after_looks()
        assert bench.store.calls == []
        bench.shown = {A}
        await bench.until(lambda: bench.named() == [[A]])
        bench.shown = {A, B}
        await bench.until(lambda: bench.named() == [[A, B]])
        # What is not shown any more is no reason to write.
        bench.shown = {B}
        await bench.after_looks()
        assert (bench.writes(), bench.named()) == (2, [[A, B]])
        assert bench.path.exists()
        bench.shown = set()
        await bench.until(lambda: bench.named() == [] and not bench.path.exists())
        bench.shown = {B}
        await bench.until(lambda: bench.named() == [[B]])

    bench.run(bench.lease(), body)
    assert {key for _, key in bench.store.calls} == {bench.store.calls[0][1]}


def test_it_is_renewed_before_it_ends(bench: Bench) -> None:
    bench.shown = {A}

    async def body() -> None:
        await bench.until(lambda: bench.writes() == 2)
        begun = trio.current_time()
        await bench.until(lambda: bench.writes() == 3)
        assert 0.2 < trio.current_time() - begun < 3

    bench.run(bench.lease(life=3), body)


def test_it_is_dropped_for_good(bench: Bench) -> None:
    bench.shown = {A}
    lease = bench.lease()

    async def body() -> None:
        await bench.until(lambda: bench.named() == [[A]])
        await lease.drop()
        assert (bench.named(), bench.path.exists()) == ([], False)
        bench.shown = {A, B}
        await lease._keep_up()
        assert bench.writes() == 1

    bench.run(lease, body)


@pytest.mark.parametrize("shown", [set[str](), {A, B}])
def test_the_next_worker_goes_on_with_it(shown: set[str], bench: Bench) -> None:
    bench.shown = {A}
    first = bench.lease()

    async def before() -> None:
        await bench.until(bench.path.exists)
        first.leave()
        bench.shown = {A, B}
        await first._keep_up()
        assert bench.writes() == 1

    bench.run(first, before)
    bench.shown = shown

    async def after() -> None:
        await bench.until(lambda: bench.named() == [sorted(shown)] * bool(shown))

    bench.run(bench.lease(), after)
    assert len({key for _, key in bench.store.calls}) == 1


@pytest.mark.parametrize("kept", [b"", b"\xff", b"../../refs/test/latest", b"A" * 32])
def test_a_damaged_word_of_a_worker_before_is_nothing(kept: bytes, bench: Bench) -> None:
    bench.path.write_bytes(kept)
    bench.shown = {A}

    async def body() -> None:
        await bench.until(lambda: bench.named() == [[A]])

    bench.run(bench.lease(), body)
    assert all(key.startswith("leases/") and len(key) == 39 for _, key in bench.store.calls)


def test_a_store_that_may_only_be_read_is_let_be(bench: Bench) -> None:
    bench.store.faults = [Fault("replace", error=AccessError("denied"))]
    bench.shown = {A}
    lease = bench.lease(again=LOOK)

    async def body() -> None:
        await bench.until(lambda: bool(bench.log.events))
        bench.shown = {A, B}
        for _ in range(5):
            await trio.sleep(LOOK)
            await lease._keep_up()
        assert bench.writes() == 1

    bench.run(lease, body)
    assert bench.log.events == [{"event": "lease_not_written", "error": "denied"}]
    assert not bench.path.exists()


def test_a_store_that_is_away_is_told_of_once_and_asked_again(bench: Bench) -> None:
    bench.store.faults = [Fault("replace", times=3, error=StoreError("away"))]
    bench.shown = {A}

    async def body() -> None:
        await bench.until(lambda: bench.named() == [[A]])

    bench.run(bench.lease(again=LOOK), body)
    assert bench.log.events == [{"event": "lease_not_written", "error": "away"}]


def test_it_waits_for_who_reads(bench: Bench) -> None:
    bench.busy = True
    bench.shown = {A}

    async def body() -> None:
        await bench.until(lambda: bench.asked >= 3)
        assert (bench.looks, bench.writes()) == (1, 0)
        # It names what is shown when it is written.
        bench.shown = {A, B}
        bench.busy = False
        await bench.until(lambda: bench.named() == [[A, B]])
        assert bench.writes() == 1

    bench.run(bench.lease(), body)


def test_a_store_that_hangs_does_not_keep_the_daemon(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.daemon.leasing._FAREWELL_SECONDS", 0.1)
    bench.shown = {A}
    lease = bench.lease()
    release, hangs = trio.Event(), trio.Event()

    def hang() -> None:
        trio.from_thread.run_sync(hangs.set)
        trio.from_thread.run(release.wait)

    bench.store.faults = [Fault("replace", before=hang)]

    async def body() -> None:
        await hangs.wait()
        await lease.drop()
        assert bench.named() == []
        release.set()

    bench.run(lease, body)


def test_a_bug_is_told_and_ends_nothing(bench: Bench) -> None:
    bench.store.faults = [Fault("replace", times=1, error=ValueError("a bug"))]
    bench.shown = {A}

    async def body() -> None:
        await bench.until(lambda: bench.named() == [[A]])

    bench.run(bench.lease(again=LOOK), body)
    assert bench.log.events == [{"event": "lease_bug"}]
