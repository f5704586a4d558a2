"""The link's hedges: a GET that is slow for once is sent twice, and a link that is slow is not flooded."""

from collections.abc import Callable

import pytest
import trio

from imagefs.cache.link import Ticket
from tests.cache.link_bench import REFUSED, SMALL, Bench, Clock
from tests.cache.wire import Call, Outcome, Script

pytestmark = pytest.mark.trio


def _warmed(slow: Callable[[Call], bool], seconds: float = 1.5) -> Script:
    return lambda call: (seconds if slow(call) else 0.02 + 0.001 * (call.number % 10), None)


async def test_a_slow_get_is_sent_once_more(autojump_clock: Clock) -> None:
    bench = Bench(_warmed(lambda call: call.number == 40))
    for _ in range(41):
        assert await bench.tried()
    assert bench.took[-1] < 0.1
    assert (bench.counters.hedged_gets, bench.counters.hedge_wins) == (1, 1)
    assert bench.counters.store_gets == 42
    assert bench.counters.abandoned_threads == 1
    assert bench.counters.store_bytes == 41 * SMALL.end
    bench.assert_idle()


async def test_one_slow_get_in_thirty_is_hedged_each_time(autojump_clock: Clock) -> None:
    bench = Bench(_warmed(lambda call: call.number > 20 and call.number % 30 == 0, 0.5))
    for _ in range(400):
        assert await bench.tried()
    assert max(bench.took) < 0.1
    assert bench.counters.hedge_wins == bench.counters.hedged_gets == 13
    assert bench.counters.store_gets == 413


async def test_a_link_that_gets_slow_is_not_flooded_with_hedges(autojump_clock: Clock) -> None:
    bench = Bench(_warmed(lambda call: call.number >= 100, 0.5))
    for _ in range(300):
        assert await bench.tried()
    assert 1 <= bench.counters.hedged_gets <= 5
    assert bench.counters.hedge_wins == 0


async def test_when_all_gets_are_slow_few_are_hedged(autojump_clock: Clock) -> None:
    bench = Bench(_warmed(lambda call: call.number >= 40))
    for _ in range(40):
        await bench.tried()
    bench.link._control._pace.limit = 64
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(bench.tried)
    assert bench.counters.hedged_gets == 4, "what the budget had: 1, and a twentieth of 60"


async def test_prefetch_is_not_hedged_until_a_reader_waits_for_it(autojump_clock: Clock) -> None:
    bench = Bench(_warmed(lambda call: call.number == 40))
    for _ in range(40):
        await bench.tried()
    ticket = Ticket(demand=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: bench.get(ticket=ticket))
        await trio.sleep(0.5)
        assert bench.counters.hedged_gets == 0
        ticket.promote()
        await trio.sleep(0.1)
        assert bench.wire.in_flight == 0
    assert bench.counters.hedge_wins == 1


async def test_a_hedge_takes_no_place_from_others(autojump_clock: Clock) -> None:
    bench = Bench(_warmed(lambda call: call.number >= 40), most=2)
    for _ in range(40):
        await bench.tried()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(bench.tried)
        await trio.sleep(1.0)
        assert bench.wire.in_flight == 2
        assert bench.counters.hedged_gets == 0


async def test_when_a_hedge_fails_the_first_still_counts(autojump_clock: Clock) -> None:
    def script(call: Call) -> tuple[float, Outcome]:
        if call.number == 40:
            return (0.5, None)
        return (0.01, REFUSED) if call.number == 41 else (0.02, None)

    bench = Bench(script)
    for _ in range(41):
        assert await bench.tried()
    assert (bench.counters.hedged_gets, bench.counters.hedge_wins, bench.counters.retried_gets) == (1, 0, 0)
    assert bench.took[-1] == pytest.approx(0.5)
