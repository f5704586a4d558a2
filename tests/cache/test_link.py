"""The link against stores that are slow, refuse, throttle, hang, and come back: on a clock that jumps."""

import random
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from imagefs.cache.breaker import INTERVAL_MAX
from imagefs.cache.control import PATIENCE
from imagefs.cache.link import Link, LinkCounters, Ticket
from imagefs.errors import AccessError, DeadlineError, ImageFSError, IntegrityError, NotFoundError, StoreError
from imagefs.store.base import ByteRange
from tests.cache.wire import FOREVER, Call, Outcome, Script, SharedLink, Wire

KIB = 1024
MIB = 1024 * KIB
DEADLINE = 30.0
SMALL = ByteRange(0, 64 * KIB)

REFUSED = StoreError("connection refused")


@dataclass
class Log:
    """Remembers events."""

    events: list[dict[str, object]] = field(default_factory=list)
    broken: trio.Event = field(default_factory=trio.Event)

    def info(self, event: str, /, **fields: object) -> None:
        self.events.append({"event": event, **fields})
        if event == "store_unreachable":
            self.broken.set()

    def warning(self, event: str, /, **fields: object) -> None:
        self.info(event, **fields)

    def named(self, name: str) -> list[dict[str, object]]:
        return [event for event in self.events if event["event"] == name]


class Bench:
    """A link over a scripted wire, and how each GET of it went."""

    def __init__(
        self, script: Script, *, deadline: float = DEADLINE, most: int = 64, hang: float = 10.0, threads: int | None = None
    ) -> None:
        self.wire = Wire(script, hang)
        self.counters = LinkCounters()
        self.log = Log()
        self.link = Link(
            self.wire, self.counters, self.log, deadline=deadline, most=most, threads=threads, run=self.wire, rng=random.Random(7)
        )
        self.took: list[float] = []
        self.errors: list[ImageFSError] = []

    async def get(self, size: int = SMALL.end, *, demand: bool = True, ticket: Ticket | None = None, until: float | None = None) -> bytes:
        return bytes(await self.link.get("packs/p", ByteRange(0, size), ticket or Ticket(demand=demand), until=until))

    async def tried(self, size: int = SMALL.end, *, demand: bool = True, until: float | None = None) -> bool:
        """GET, and note how long it took, and the error."""
        began = trio.current_time()
        try:
            data = await self.get(size, demand=demand, until=until)
        except ImageFSError as error:
            self.errors.append(error)
            return False
        finally:
            self.took.append(trio.current_time() - began)
        assert len(data) == size
        return True

    def assert_idle(self) -> None:
        state = self.link.state()
        assert (state["in_flight"], state["waiting"], state["demand_waiting"]) == (0, 0, 0)
        assert not self.wire.in_flight


def _always(seconds: float, outcome: Outcome = None) -> Script:
    return lambda _call: (seconds, outcome)


def _first(count: int, first: tuple[float, Outcome], then: tuple[float, Outcome] = (0.02, None)) -> Script:
    return lambda call: first if call.number < count else then


def _until(at: float, first: tuple[float, Outcome], then: tuple[float, Outcome] = (0.02, None)) -> Script:
    """Behave in one way up to a time after the start of the test, then in another."""
    begin = trio.current_time()
    return lambda call: first if call.at - begin < at else then


async def _settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


pytestmark = pytest.mark.trio

Clock = trio.testing.MockClock


# -- one GET --------------------------------------------------------------------------------------------------------------------------


async def test_a_get_gives_its_bytes(autojump_clock: Clock) -> None:
    bench = Bench(_always(0.02))
    assert await bench.get(12345) == bytes(12345)
    assert bench.counters == LinkCounters(store_gets=1, store_bytes=12345)
    bench.assert_idle()


@pytest.mark.parametrize("error", [NotFoundError("no such key"), AccessError("no"), IntegrityError("ends early")])
async def test_what_is_not_retryable_is_final(autojump_clock: Clock, error: ImageFSError) -> None:
    bench = Bench(_always(0.02, error))
    for _ in range(20):
        assert not await bench.tried()
    assert bench.errors == [error] * 20
    assert len(bench.wire.calls) == 20
    assert bench.link.state()["breaker"] == "closed", "a store that says no is there"
    assert bench.counters.failed_gets == 20


async def test_a_wrong_length_is_an_integrity_error(autojump_clock: Clock) -> None:
    bench = Bench(_always(0.02, b"short"))
    with pytest.raises(IntegrityError):
        await bench.get()
    assert len(bench.wire.calls) == 1


async def test_what_is_retryable_is_retried(autojump_clock: Clock) -> None:
    bench = Bench(_first(3, (0.02, REFUSED)))
    await bench.get()
    assert bench.counters.retried_gets == 3
    assert bench.counters.store_gets == 4
    assert bench.counters.failed_gets == 0
    bench.assert_idle()


async def test_a_bug_in_the_store_is_an_error_of_ours(autojump_clock: Clock) -> None:
    bench = Bench(_always(0.02, ValueError("bug")))
    with pytest.raises(StoreError, match="unexpected ValueError from the store: bug"):
        await bench.get(until=trio.current_time() + 1)
    bench.assert_idle()


@pytest.mark.parametrize("asked", [0.5, 3.0, 20.0])
async def test_retry_after_is_honoured(autojump_clock: Clock, asked: float) -> None:
    bench = Bench(_first(1, (0.25, StoreError("slow down", retry_after=asked))))
    await bench.get()
    waited = bench.wire.calls[1].at - bench.wire.calls[0].at - 0.25
    assert asked <= waited <= asked + 0.1


async def test_a_retry_that_would_come_too_late_is_not_waited_for(autojump_clock: Clock) -> None:
    error = StoreError("slow down", retry_after=60.0)
    bench = Bench(_always(0.25, error))
    assert not await bench.tried()
    assert bench.errors == [error]
    assert bench.took == [pytest.approx(0.25)]


async def test_news_of_the_breaker_cut_no_pause_short(autojump_clock: Clock) -> None:
    bench = Bench(_first(1, (0.0, StoreError("slow down", retry_after=4.0))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.get)
        for _ in range(10):
            await trio.sleep(0.3)
            bench.link._control.news.unpark_all()
    assert bench.wire.calls[1].at - bench.wire.calls[0].at >= 4.0


@pytest.mark.parametrize("seconds", [0.5, 5.0, 30.0, 100.0])
async def test_no_wait_goes_past_until(autojump_clock: Clock, seconds: float) -> None:
    bench = Bench(_always(FOREVER))
    began = trio.current_time()
    with pytest.raises(DeadlineError):
        await bench.get(until=began + seconds)
    assert trio.current_time() - began <= seconds + 1e-6
    bench.assert_idle()


async def test_time_that_is_over_sends_nothing(autojump_clock: Clock) -> None:
    bench = Bench(_always(0.02))
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


async def test_a_cancelled_probe_leaves_the_turn(autojump_clock: Clock) -> None:
    bench = Bench(_always(FOREVER))
    await _break(bench)
    await trio.sleep(1)
    with trio.move_on_after(0.1) as scope:
        await bench.get()
    assert scope.cancelled_caught
    sent = len(bench.wire.calls)
    with trio.move_on_after(0.1) as scope:
        await bench.get()
    assert scope.cancelled_caught, "this one is the probe"
    assert len(bench.wire.calls) == sent + 1


# -- the breaker ----------------------------------------------------------------------------------------------------------------------


async def _break(bench: Bench, readers: int = 8) -> None:
    """Have readers meet a store that does not answer until the breaker opens, and leave."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(readers):
                nursery.start_soon(bench.tried)
            await bench.log.broken.wait()
            nursery.cancel_scope.cancel()


async def test_a_black_hole_costs_each_reader_at_most_the_deadline_and_later_ones_nothing(autojump_clock: Clock) -> None:
    bench = Bench(_always(FOREVER))
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
    bench = Bench(_always(FOREVER))
    assert not await bench.tried()
    assert bench.link.state()["breaker"] == "open"
    assert bench.took[0] <= DEADLINE + 1e-6


async def test_a_short_outage_fails_no_reader_that_was_there(autojump_clock: Clock) -> None:
    """They wait on, and give the probes."""
    bench = Bench(_until(12, (0.01, REFUSED)))
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
    bench = Bench(_until(PATIENCE - 1, (0.0, REFUSED)))
    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(bench.tried)
    assert not bench.errors
    assert bench.counters.breaker_opens == 0


async def test_when_the_store_is_back_all_works_within_a_probe_interval(autojump_clock: Clock) -> None:
    bench = Bench(_until(120, (0.01, REFUSED)))
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
    bench = Bench(_always(FOREVER))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(lambda: bench.tried(demand=False))
        await bench.log.broken.wait()
        opened = trio.current_time()
        await _settle()
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
        await _settle()
        await _break(bench)
        await _settle()
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


# -- threads --------------------------------------------------------------------------------------------------------------------------


async def test_when_all_threads_hang_gets_fail_and_say_so(autojump_clock: Clock) -> None:
    """Also then nothing waits for a place that will not come."""
    bench = Bench(_until(100, (FOREVER, None)), threads=4, most=2, hang=200.0)
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
    bench = Bench(_always(FOREVER), threads=2, most=2, hang=FOREVER)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as impatient:
                for _ in range(2):
                    impatient.start_soon(bench.get)
                await _settle()
                for _ in range(5):
                    nursery.start_soon(bench.tried)
                await _settle()
                assert bench.link.state()["waiting"] == 5
    assert bench.took == [pytest.approx(0.5)] * 5
    assert all("2 GETs hang" in error.message for error in bench.errors)


async def test_threads_that_hang_stay_bounded(autojump_clock: Clock) -> None:
    bench = Bench(_always(FOREVER), most=8, hang=FOREVER)
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


# -- demand and prefetch --------------------------------------------------------------------------------------------------------------


async def test_demand_overtakes_prefetch_that_waits(autojump_clock: Clock) -> None:
    bench = Bench(_always(1.0))
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(lambda: bench.get(demand=False))
        await trio.sleep(0.5)
        began = trio.current_time()
        await bench.get()
        assert trio.current_time() - began == pytest.approx(1.0), "a place is kept for it"
        nursery.cancel_scope.cancel()


async def test_a_promoted_get_enters_at_once(autojump_clock: Clock) -> None:
    bench = Bench(_always(1.0))
    ticket = Ticket(demand=False)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(lambda: bench.get(demand=False))
        await _settle()
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


# -- hedging --------------------------------------------------------------------------------------------------------------------------


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


# -- how many at once -----------------------------------------------------------------------------------------------------------------


def _shared(link: SharedLink) -> Bench:
    bench = Bench(_always(0.0))
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


# -- the rest -------------------------------------------------------------------------------------------------------------------------


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


async def test_the_state_is_plain_data(autojump_clock: Clock) -> None:
    bench = Bench(_always(0.02))
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
