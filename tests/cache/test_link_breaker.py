"""The link's breaker, over stores that are gone, come back, flap, or throttle: who waits, who fails at once, who is the probe."""

import pytest
import trio

from imagefs.cache.breaker import INTERVAL_MAX
from imagefs.cache.control import PATIENCE
from imagefs.errors import StoreError
from tests.cache.link_bench import DEADLINE, REFUSED, Bench, Clock, always, open_breaker, settle, until_then
from tests.cache.wire import FOREVER, Call, Outcome

pytestmark = pytest.mark.trio


async def test_a_black_hole_costs_each_reader_at_most_the_deadline_and_later_ones_nothing(autojump_clock: Clock) -> None:
    bench = Bench(always(FOREVER))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(bench.tried)
        await bench.log.broken.wait()
        assert trio.current_time() - began < 15
        # Those who come now fail at once; a few of them are the probe, and cost an attempt each.
        for _ in range(100):
            nursery.start_soon(bench.tried)
            await trio.sleep(0.1)
    assert len(bench.took) == 164
    assert max(bench.took) <= DEADLINE + 1e-6
    later = sorted(bench.took)
    assert later[95] == 0.0, "of those who came later, nearly all failed at once"
    assert bench.counters.breaker_opens == 1
    assert bench.wire.peak <= 8
    assert len(bench.log.named("store_unreachable")) == 1
    assert bench.counters.failed_gets == 164
    bench.assert_idle()


async def test_a_lone_reader_opens_the_breaker_within_its_deadline(autojump_clock: Clock) -> None:
    bench = Bench(always(FOREVER))
    assert not await bench.tried()
    assert bench.link.state()["breaker"] == "open"
    assert bench.took[0] <= DEADLINE + 1e-6


async def test_a_short_outage_fails_no_reader_that_was_there(autojump_clock: Clock) -> None:
    """They wait on, and give the probes."""
    bench = Bench(until_then(12, (0.01, REFUSED)))
    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(bench.tried)
        await trio.sleep(PATIENCE + 6)
        assert bench.link.state()["breaker"] == "open"
        sent = len(bench.wire.calls)
    assert not bench.errors
    assert max(bench.took) < 12 + INTERVAL_MAX
    assert len(bench.log.named("store_back")) == 1
    assert sent < 64 * 12, "a store that refuses is not hammered"


async def test_a_blink_is_not_an_outage(autojump_clock: Clock) -> None:
    bench = Bench(until_then(PATIENCE - 1, (0.0, REFUSED)))
    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(bench.tried)
    assert not bench.errors
    assert bench.counters.breaker_opens == 0


async def test_when_the_store_is_back_all_works_within_a_probe_interval(autojump_clock: Clock) -> None:
    bench = Bench(until_then(120, (0.01, REFUSED)))
    began = trio.current_time()
    first_success = None
    while trio.current_time() - began < 160:
        if await bench.tried():
            first_success = first_success or trio.current_time() - began
        elif first_success:
            pytest.fail("it failed again")
        await trio.sleep(0.1)
    assert first_success is not None
    assert 120 <= first_success <= 120 + INTERVAL_MAX + 0.2
    probes = [call for call in bench.wire.calls if 60 < call.at - began < 120]
    assert 3 <= len(probes) <= 6, "one an interval"


async def test_waiting_prefetch_fails_when_the_breaker_opens(autojump_clock: Clock) -> None:
    bench = Bench(always(FOREVER))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(lambda: bench.tried(demand=False))
        await bench.log.broken.wait()
        opened = trio.current_time()
        await settle()
        assert bench.link.state()["waiting"] == 0
        assert len(bench.errors) >= 13
        assert "has not answered" in bench.errors[0].message
        assert not await bench.tried(demand=False)
        assert bench.took[-1] == 0.0
        await trio.sleep(1.0)
        assert not await bench.tried(demand=False), "prefetch is no probe"
        nursery.cancel_scope.cancel()
    assert opened - bench.wire.calls[0].at < 15


async def test_prefetch_before_a_retry_fails_when_the_breaker_opens(autojump_clock: Clock) -> None:
    later = StoreError("later", retry_after=25.0)
    bench = Bench(lambda call: (0.0, [REFUSED, later][call.number]) if call.number < 2 else (FOREVER, None))
    assert not await bench.tried(until=trio.current_time() + 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: bench.tried(demand=False))
        await settle()
        await open_breaker(bench)
        await settle()
        assert ["has not answered" in error.message for error in bench.errors] == [False, True]
        assert bench.took[1] < 15
        nursery.cancel_scope.cancel()


async def test_a_flapping_store_serves_in_between(autojump_clock: Clock) -> None:
    begin = trio.current_time()

    def script(call: Call) -> tuple[float, Outcome]:
        return (0.01, REFUSED) if int((call.at - begin) / 20) % 2 else (0.02, None)

    bench = Bench(script)
    served: dict[int, int] = {}

    async def reader() -> None:
        while trio.current_time() - begin < 160:
            phase = int((trio.current_time() - begin) / 20)
            if await bench.tried():
                served[phase] = served.get(phase, 0) + 1
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(reader)
    assert all(served.get(phase, 0) > 100 for phase in range(0, 8, 2)), served
    assert bench.counters.breaker_opens == 4
    assert len(bench.log.events) <= 8, "logged are changes of state only"
    bench.assert_idle()


async def test_a_store_that_throttles_is_not_given_up(autojump_clock: Clock) -> None:
    """It serves four at a time and turns the rest away."""

    def script(call: Call) -> tuple[float, Outcome]:
        return (0.01, StoreError("slow down", retry_after=0.5)) if call.in_flight > 4 else (0.1, None)

    bench = Bench(script)

    async def reader() -> None:
        for _ in range(30):
            assert await bench.tried()

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(reader)
    assert not bench.errors
    assert bench.counters.breaker_opens == 0
    assert bench.counters.retried_gets < 0.3 * bench.counters.store_gets
    assert bench.log.named("store_concurrency_halved")[0] == {"event": "store_concurrency_halved", "concurrency": 4, "reason": "throttled"}


async def test_a_cancelled_probe_leaves_the_turn(autojump_clock: Clock) -> None:
    bench = Bench(always(FOREVER))
    await open_breaker(bench)
    await trio.sleep(1)
    with trio.move_on_after(0.1) as scope:
        await bench.get()
    assert scope.cancelled_caught
    sent = len(bench.wire.calls)
    with trio.move_on_after(0.1) as scope:
        await bench.get()
    assert scope.cancelled_caught, "this one is the probe"
    assert len(bench.wire.calls) == sent + 1
