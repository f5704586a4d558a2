"""The link's gate: demand before prefetch, how many GETs at once on links of every speed, and threads that hang."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from imagefs.cache.link import Ticket
from tests.cache.link_bench import KIB, MIB, Bench, Clock, always, settle, until_then
from tests.cache.wire import FOREVER, SharedLink

pytestmark = pytest.mark.trio


async def test_demand_overtakes_prefetch_that_waits(autojump_clock: Clock) -> None:
    bench = Bench(always(1.0))
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(lambda: bench.get(demand=False))
        await trio.sleep(0.5)
        began = trio.current_time()
        await bench.get()
        assert trio.current_time() - began == pytest.approx(1.0), "a place is kept for it"
        nursery.cancel_scope.cancel()


async def test_a_promoted_get_enters_at_once(autojump_clock: Clock) -> None:
    bench = Bench(always(1.0))
    ticket = Ticket(demand=False)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(lambda: bench.get(demand=False))
        await settle()
        done = trio.Event()

        async def last() -> None:
            await bench.get(ticket=ticket)
            done.set()

        nursery.start_soon(last)
        await trio.sleep(0.5)
        began = trio.current_time()
        ticket.promote()
        await done.wait()
        assert trio.current_time() - began == pytest.approx(1.0)
        nursery.cancel_scope.cancel()


# -- how many at once -----------------------------------------------------------------------------------------------------------------


def _shared(link: SharedLink) -> Bench:
    bench = Bench(always(0.0))
    bench.wire.link = link
    return bench


async def _flood(bench: Bench, seconds: float, size: int, body: Callable[[], Awaitable[None]] | None = None) -> tuple[float, float]:
    """Prefetch as fast as the link lets, for so long; return bytes a second, and the mean limit, of the second half."""
    assert bench.wire.link is not None
    async with trio.open_nursery() as nursery:

        async def prefetch() -> None:
            while True:
                # What queues for long is not late: nobody waits for it.
                await bench.get(size, demand=False, until=FOREVER)

        nursery.start_soon(bench.wire.link.run)
        for _ in range(100):
            nursery.start_soon(prefetch)
        if body is not None:
            nursery.start_soon(body)
        await trio.sleep(seconds / 2)
        moved, limits = bench.wire.moved, []
        for _ in range(100):
            await trio.sleep(seconds / 200)
            limits.append(bench.link._control._pace.limit)
        moved = bench.wire.moved - moved
        nursery.cancel_scope.cancel()
    return moved / (seconds / 2), sum(limits) / 100


@pytest.mark.parametrize("seed", range(2))
async def test_the_limit_grows_to_what_the_link_needs(autojump_clock: Clock, seed: int) -> None:
    """Forty connections fill this link: eight at once would leave most of it unused."""
    bench = _shared(SharedLink(2000 * MIB, 50 * MIB, seed=seed))
    rate, limit = await _flood(bench, 20, 8 * MIB)
    assert rate > 0.85 * 2000 * MIB
    assert limit > 35


@pytest.mark.parametrize("seed", range(2))
async def test_prefetch_fills_a_link_and_demand_is_still_fast(autojump_clock: Clock, seed: int) -> None:
    """On a link that few GETs fill, more of them only make each slower: the limit stays small."""
    bench = _shared(SharedLink(200 * MIB, 100 * MIB, seed=seed))

    async def reader() -> None:
        while True:
            await trio.sleep(0.5)
            await bench.tried(256 * KIB)

    rate, limit = await _flood(bench, 60, 8 * MIB, reader)
    assert limit < 32
    assert rate > 0.85 * 200 * MIB
    assert sorted(bench.took)[len(bench.took) // 2] < 0.05
    assert max(bench.took) < 0.2, "demand never waits for prefetch to end: only the latency and its share of the link"
    assert bench.counters.demand_wait_ms == 0


@pytest.mark.parametrize("rate", [5, 20])
@pytest.mark.parametrize("seed", range(2))
async def test_a_slow_link_is_not_taken_for_one_that_is_gone(autojump_clock: Clock, rate: int, seed: int) -> None:
    """GETs that only take long because many share the link must not be given up, or count as an outage."""
    bench = _shared(SharedLink(rate * MIB, rate * MIB, seed=seed))

    async def reader() -> None:
        while True:
            await trio.sleep(1)
            assert await bench.tried(256 * KIB)

    moved, limit = await _flood(bench, 300, 8 * MIB, reader)
    assert moved > 0.85 * rate * MIB
    assert limit < 8
    assert bench.counters.breaker_opens == 0
    assert bench.counters.failed_gets == 0
    assert bench.counters.timed_out_gets <= 8
    assert max(bench.took) < 5


async def test_the_limit_follows_a_link_that_changes(autojump_clock: Clock) -> None:
    link = SharedLink(2000 * MIB, 50 * MIB)
    bench = _shared(link)
    _, many = await _flood(bench, 20, 8 * MIB)
    link.change(200 * MIB, 200 * MIB)
    rate, few = await _flood(bench, 200, 8 * MIB)
    assert few < many / 2
    assert rate > 0.85 * 200 * MIB
    assert bench.counters.breaker_opens == 0
    assert bench.counters.failed_gets == 0


# -- threads --------------------------------------------------------------------------------------------------------------------------


async def test_when_all_threads_hang_gets_fail_and_say_so(autojump_clock: Clock) -> None:
    """Also then nothing waits for a place that will not come."""
    bench = Bench(until_then(100, (FOREVER, None)), threads=4, most=2, hang=200.0)
    began = trio.current_time()
    while bench.link.state()["free_threads"]:
        with trio.move_on_after(0.3):
            await bench.get()
    state = bench.link.state()
    assert state["abandoned_threads"] == 4
    assert not await bench.tried()
    assert "4 GETs hang in the store" in bench.errors[0].message
    assert bench.took == [0.0]
    assert bench.log.named("store_threads_exhausted") == [{"event": "store_threads_exhausted", "abandoned": 4}]
    await trio.sleep_until(began + 250)
    assert await bench.tried()
    assert len(bench.log.named("store_threads_back")) == 1


async def test_who_waits_at_the_gate_learns_that_all_threads_hang(autojump_clock: Clock) -> None:
    bench = Bench(always(FOREVER), threads=2, most=2, hang=FOREVER)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as impatient:
                for _ in range(2):
                    impatient.start_soon(bench.get)
                await settle()
                for _ in range(5):
                    nursery.start_soon(bench.tried)
                await settle()
                assert bench.link.state()["waiting"] == 5
    assert bench.took == [pytest.approx(0.5)] * 5
    assert all("2 GETs hang" in error.message for error in bench.errors)


async def test_threads_that_hang_stay_bounded(autojump_clock: Clock) -> None:
    bench = Bench(always(FOREVER), most=8, hang=FOREVER)
    most = 0

    async def reader() -> None:
        nonlocal most
        while True:
            await bench.tried()
            most = max(most, bench.wire.in_flight + bench.wire.abandoned)
            await trio.sleep(0.5)

    with trio.move_on_after(600):
        async with trio.open_nursery() as nursery:
            for _ in range(32):
                nursery.start_soon(reader)
    assert 8 < most <= 16
