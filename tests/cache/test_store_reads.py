"""In which order GETs come to the link, and what a GET that is made once more goes as."""

import pytest
import trio

from imagefs.cache.fetcher import Fetcher
from imagefs.cache.flights import Flight, Flights
from imagefs.cache.gate import Gate, Ticket
from imagefs.cache.layout import parts_of
from imagefs.cache.pieces import Frames
from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, StoreError
from imagefs.format.objectmap import Extent
from imagefs.store.base import ByteRange
from tests.cache.far_bench import KIB, LATER, RTT, SOON, Bench, noise, pack, small_files
from tests.fuse.images import FRAME, Maker, Row

pytestmark = pytest.mark.usefixtures("threads_take_no_time")


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Ticket, bool]]:
    """Tickets in the order in which they came to the gate, and whether they came as demand."""
    found: list[tuple[Ticket, bool]] = []
    enter = Gate.enter

    def spy(self: Gate, ticket: Ticket) -> None:
        found.append((ticket, ticket.demand))
        enter(self, ticket)

    monkeypatch.setattr(Gate, "enter", spy)
    return found


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[list[Ticket]]:
    """The tickets of each set of GETs, in the order in which they are wanted."""
    found: list[list[Ticket]] = []
    depart = Flights.depart

    def spy(self: Flights, wanted: Frames, *, demand: bool, limit: int = 8 << 20) -> list[Flight]:
        flights = depart(self, wanted, demand=demand, limit=limit)
        found.append([ticket for _, ticket in flights])
        return flights

    monkeypatch.setattr(Flights, "depart", spy)
    return found


def _scattered(maker: Maker, count: int, seed: int) -> bytes:
    """Make an object each frame of which is in a pack of its own, so that each takes a GET; the last one wanted lies in the first pack."""
    data = noise(count * 64 * KIB, seed)
    pieces = [data[at : at + 64 * KIB] for at in range(0, len(data), 64 * KIB)]
    first = maker.frames
    for piece in reversed(pieces):
        maker._pack([piece])
    extents = [Extent(index * 64 * KIB, 64 * KIB, first + count - 1 - index, 0) for index in range(count)]
    maker.rows[digest_of(data)] = Row(digest_of(data), len(data), extents)
    return data


@pytest.mark.parametrize("demand", [False, True], ids=["prefetch", "demand"])
def test_gets_that_start_together_come_to_the_link_in_their_order(
    maker: Maker, came: list[tuple[Ticket, bool]], left: list[list[Ticket]], demand: bool
) -> None:
    """Of eight places the last eight of twelve GETs took all, every other time: what was wanted first came last."""
    objects = [_scattered(maker, 12, seed) for seed in range(10)]
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        for data in objects:
            came.clear()
            left.clear()
            fetcher._start(parts_of(bench.record(data), 0, len(data), bench.ram), demand=demand)
            await trio.sleep(LATER)
            assert len(left[0]) == 12
            assert [ticket for ticket, _ in came if ticket in left[0]] == left[0]
            bench.assert_tidy(fetcher)

    bench.run(body)


def test_demand_comes_to_the_link_before_the_prefetch_that_starts_with_it(maker: Maker, came: list[tuple[Ticket, bool]]) -> None:
    pairs = [(noise(FRAME, seed), noise(FRAME, seed + 100)) for seed in range(10)]
    for number, pair in enumerate(pairs):
        for which, data in enumerate(pair):
            maker.file(f"{number}.{which}", data)
    bench = Bench(maker)

    async def body(fetcher: Fetcher) -> None:
        bench.lookup.neighbours.spend(1 << 40)  # nothing comes along
        for ahead, wanted in pairs:
            came.clear()
            fetcher._start(parts_of(bench.record(ahead), 0, FRAME, bench.ram), demand=False)
            fetcher._start(parts_of(bench.record(wanted), 0, FRAME, bench.ram), demand=True)
            await trio.sleep(SOON)
            assert [demand for _, demand in came] == [True, False]
            await trio.sleep(LATER)

    bench.run(body)


@pytest.mark.parametrize("when", [None, SOON, RTT + SOON], ids=["nobody", "before it is made again", "while it is made again"])
def test_a_get_is_made_again_as_what_its_flight_is(maker: Maker, came: list[tuple[Ticket, bool]], when: float | None) -> None:
    """What was fetched along and is wrong was got again as demand, before what readers wait for."""
    frames = [small_files(4, 20 * KIB, seed) for seed in range(2)]
    pack(maker, *frames)
    bench = Bench(maker)
    bad = bench.lookup.objects.frame(1)

    def damage(_key: str, byte_range: ByteRange, got: bytes) -> bytes:
        return bytes(len(got)) if (byte_range.start, len(bench.store.gets)) == (bad.offset, 2) else got

    async def body(fetcher: Fetcher) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, fetcher, frames[0][0])
            if when is not None:
                await trio.sleep(when)
                nursery.start_soon(bench.read, fetcher, frames[1][0])
                await trio.sleep(SOON / 4)
                assert came[1][0].demand
        await trio.sleep(LATER)
        assert [demand for _, demand in came] == [True, False, when == SOON]
        assert came[1][0] is came[2][0]
        bench.assert_tidy(fetcher)

    bench.store.hook = damage
    bench.run(body)
    assert bench.counters.verify_failures == 1
    assert bench.counters.prefetch_bytes == 80 * KIB
    assert not bench.log.events


def test_frames_that_are_wrong_wherever_they_lie_are_got_again_by_one_get_after_the_other(maker: Maker) -> None:
    data = noise(28 * FRAME)
    maker.file("f", data)
    bench = Bench(maker)
    bench.store.hook = lambda _key, _range, got: bytes(len(got)) if len(bench.store.gets) == 1 else got

    async def body(fetcher: Fetcher) -> None:
        bench.lookup.neighbours.spend(1 << 40)  # nothing comes along
        await bench.read(fetcher, data)
        assert len(bench.store.gets) == 1 + 28
        bench.assert_tidy(fetcher)

    bench.run(body)
    assert bench.counters.verify_failures == 28


def test_that_what_nobody_waits_for_cannot_be_got_again_is_not_held_against_it(maker: Maker) -> None:
    frames = [small_files(4, 20 * KIB, seed) for seed in range(2)]
    pack(maker, *frames)
    bench = Bench(maker)

    def damage(_key: str, _range: ByteRange, got: bytes) -> bytes:
        if len(bench.store.gets) > 2:
            raise StoreError("away")
        return bytes(len(got)) if len(bench.store.gets) == 2 else got

    async def body(fetcher: Fetcher) -> None:
        await bench.read(fetcher, frames[0][0])
        await trio.sleep(60)
        bench.assert_tidy(fetcher)
        bench.store.hook = lambda _key, _range, got: got
        await bench.read(fetcher, frames[1][0])

    bench.store.hook = damage
    bench.run(body)
    assert not [event for event in bench.log.events if event["event"] == "frame_failed"]


def test_what_the_store_does_not_have_all_of_is_remembered_also_if_nobody_waits_for_it(maker: Maker) -> None:
    frames = [small_files(4, 20 * KIB, seed) for seed in range(2)]
    pack(maker, *frames)
    bench = Bench(maker)
    bad = bench.lookup.objects.frame(1)
    bench.store.hook = lambda _key, byte_range, got: got[:-1] if byte_range.end == bad.offset + bad.stored else got

    async def body(fetcher: Fetcher) -> None:
        await bench.read(fetcher, frames[0][0])
        await trio.sleep(LATER)
        assert len(bench.store.gets) == 3
        with pytest.raises(IntegrityError):
            await bench.read(fetcher, frames[1][0])
        assert len(bench.store.gets) == 3
        bench.assert_tidy(fetcher)

    bench.run(body)
    assert [event["event"] for event in bench.log.events] == ["frame_failed"]
