"""A GET over the link: its bytes, what is sent again and when, how long it waits at most, and what a caller that gives up leaves."""

import random
import threading

import pytest
import trio

from imagefs.cache.link import Link, LinkCounters, Ticket
from imagefs.errors import AccessError, DeadlineError, ImageFSError, IntegrityError, NotFoundError, StoreError
from imagefs.store.base import ByteRange
from tests.cache.link_bench import DEADLINE, KIB, MIB, REFUSED, SMALL, Bench, Clock, Log, always, first_calls
from tests.cache.wire import FOREVER, Call, Outcome

pytestmark = pytest.mark.trio


async def test_a_get_gives_its_bytes(autojump_clock: Clock) -> None:
    bench = Bench(always(0.02))
    assert await bench.get(12345) == bytes(12345)
    assert bench.counters == LinkCounters(store_gets=1, store_bytes=12345)
    bench.assert_idle()


@pytest.mark.parametrize("error", [NotFoundError("no such key"), AccessError("no"), IntegrityError("ends early")])
async def test_what_is_not_retryable_is_final(autojump_clock: Clock, error: ImageFSError) -> None:
    bench = Bench(always(0.02, error))
    for _ in range(20):
        assert not await bench.tried()
    assert bench.errors == [error] * 20
    assert len(bench.wire.calls) == 20
    assert bench.link.state()["breaker"] == "closed", "a store that says no is there"
    assert bench.counters.failed_gets == 20


async def test_a_wrong_length_is_an_integrity_error(autojump_clock: Clock) -> None:
    bench = Bench(always(0.02, b"short"))
    with pytest.raises(IntegrityError):
        await bench.get()
    assert len(bench.wire.calls) == 1


async def test_what_is_retryable_is_retried(autojump_clock: Clock) -> None:
    bench = Bench(first_calls(3, (0.02, REFUSED)))
    await bench.get()
    assert bench.counters.retried_gets == 3
    assert bench.counters.store_gets == 4
    assert bench.counters.failed_gets == 0
    bench.assert_idle()


async def test_a_bug_in_the_store_is_an_error_of_ours(autojump_clock: Clock) -> None:
    bench = Bench(always(0.02, ValueError("bug")))
    with pytest.raises(StoreError, match="unexpected ValueError from the store: bug"):
        await bench.get(until=trio.current_time() + 1)
    bench.assert_idle()


@pytest.mark.parametrize("asked", [0.5, 3.0, 20.0])
async def test_retry_after_is_honoured(autojump_clock: Clock, asked: float) -> None:
    bench = Bench(first_calls(1, (0.25, StoreError("slow down", retry_after=asked))))
    await bench.get()
    waited = bench.wire.calls[1].at - bench.wire.calls[0].at - 0.25
    assert asked <= waited <= asked + 0.1


async def test_a_retry_that_would_come_too_late_is_not_waited_for(autojump_clock: Clock) -> None:
    error = StoreError("slow down", retry_after=60.0)
    bench = Bench(always(0.25, error))
    assert not await bench.tried()
    assert bench.errors == [error]
    assert bench.took == [pytest.approx(0.25)]


async def test_news_of_the_breaker_cut_no_pause_short(autojump_clock: Clock) -> None:
    bench = Bench(first_calls(1, (0.0, StoreError("slow down", retry_after=4.0))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.get)
        for _ in range(10):
            await trio.sleep(0.3)
            bench.link._control.news.unpark_all()
    assert bench.wire.calls[1].at - bench.wire.calls[0].at >= 4.0


@pytest.mark.parametrize("seconds", [0.5, 5.0, 30.0, 100.0])
async def test_no_wait_goes_past_until(autojump_clock: Clock, seconds: float) -> None:
    bench = Bench(always(FOREVER))
    began = trio.current_time()
    with pytest.raises(DeadlineError):
        await bench.get(until=began + seconds)
    assert trio.current_time() - began <= seconds + 1e-6
    bench.assert_idle()


async def test_time_that_is_over_sends_nothing(autojump_clock: Clock) -> None:
    bench = Bench(always(0.02))
    with pytest.raises(DeadlineError):
        await bench.get(until=trio.current_time())
    assert not bench.wire.calls
    assert bench.counters.failed_gets == 1


async def test_a_stalled_connection_costs_seconds_and_not_the_deadline(autojump_clock: Clock) -> None:
    bench = Bench(lambda call: (FOREVER if call.number == 40 else 0.02, None))
    for _ in range(41):
        assert await bench.tried(demand=False)  # prefetch is not hedged
    assert bench.took[-1] == pytest.approx(2.0, abs=0.2)
    assert bench.counters.timed_out_gets == 1
    assert bench.counters.abandoned_threads == 1


async def test_a_link_that_got_slow_still_brings_large_gets(autojump_clock: Clock) -> None:
    """Attempts that are given up are given more time, or nothing would ever arrive."""
    bench = Bench(lambda call: (0.05 if call.number < 40 else 6.0, None))
    for _ in range(41):
        assert await bench.tried(8 * MIB, demand=False)
    assert bench.took[-1] < DEADLINE
    for _ in range(80):
        assert await bench.tried(8 * MIB, demand=False)
    assert bench.took[-1] == pytest.approx(6.0), "what is usual now is learnt"


async def test_the_state_is_plain_data(autojump_clock: Clock) -> None:
    bench = Bench(always(0.02))
    for _ in range(10):
        await bench.tried()
    assert bench.link.state() == {
        "breaker": "closed",
        "open_for_s": None,
        "silent_for_s": 0.0,
        "last_error": None,
        "concurrency": 8,
        "in_flight": 0,
        "prefetch_in_flight": 0,
        "waiting": 0,
        "demand_waiting": 0,
        "abandoned_threads": 0,
        "free_threads": 128,
        "bytes_per_second": SMALL.end,
        "latency": [{"up_to_bytes": 64 * KIB, "gets": 10, "p50_ms": 20.0, "p95_ms": 20.0}],
    }


# -- cancelling -----------------------------------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_leaves_nothing_behind(autojump_clock: Clock) -> None:
    """Cancel at many times: at the gate, in a thread, before a retry, while the breaker is open."""
    begin = trio.current_time()

    def script(call: Call) -> tuple[float, Outcome]:
        number, now = call.number, call.at - begin
        if 20 < now < 40:
            return (FOREVER, None) if number % 3 else (0.1, REFUSED)
        return (0.7 if number % 2 else 0.3, REFUSED if number % 5 == 0 else None)

    bench = Bench(script, most=2, hang=1.0)
    rng = random.Random(3)
    cancelled = 0

    async def impatient(index: int) -> None:
        nonlocal cancelled
        await trio.sleep(index * 0.15)
        with trio.move_on_after(rng.uniform(0, 4)) as scope:
            await bench.tried(demand=bool(index % 2))
        cancelled += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for index in range(400):
            nursery.start_soon(impatient, index)
    assert cancelled > 100
    bench.assert_idle()
    counters = bench.counters
    assert counters.store_gets == len(bench.wire.calls)
    assert bench.link.state()["breaker"] == "closed"
    await trio.sleep(20)
    assert bench.link.state()["abandoned_threads"] == 0
    assert await bench.tried()


async def test_a_real_thread_that_hangs_is_left_behind() -> None:
    release = threading.Event()

    class Store:
        def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
            assert byte_range is not None
            assert key != "hang" or release.wait(30)
            return bytes(byte_range.end)

    link = Link(Store(), LinkCounters(), Log(), deadline=20)
    with trio.fail_after(30):
        with trio.move_on_after(0.1) as scope:
            await link.get("hang", SMALL, Ticket(demand=True))
        assert scope.cancelled_caught
        assert link.state()["abandoned_threads"] == 1
        assert await link.get("packs/p", SMALL, Ticket(demand=True)) == bytes(SMALL.end)
        release.set()
        while link.state()["abandoned_threads"]:  # noqa: ASYNC110 # nothing tells the trio thread that another one has ended
            await trio.sleep(0.001)
