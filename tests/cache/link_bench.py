"""A link over a scripted wire, for the tests of the link: scripts that stores behave by, and how each GET went."""

import random
from dataclasses import dataclass, field

import trio
import trio.testing

from imagefs.cache.link import Link, LinkCounters, Ticket
from imagefs.errors import ImageFSError, StoreError
from imagefs.store.base import ByteRange
from tests.cache.wire import Outcome, Script, Wire

KIB = 1024
MIB = 1024 * KIB
DEADLINE = 30.0
SMALL = ByteRange(0, 64 * KIB)

REFUSED = StoreError("connection refused")

Clock = trio.testing.MockClock


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


def always(seconds: float, outcome: Outcome = None) -> Script:
    return lambda _call: (seconds, outcome)


def first_calls(count: int, first: tuple[float, Outcome], then: tuple[float, Outcome] = (0.02, None)) -> Script:
    return lambda call: first if call.number < count else then


def until_then(at: float, first: tuple[float, Outcome], then: tuple[float, Outcome] = (0.02, None)) -> Script:
    """Behave in one way up to a time after the start of the test, then in another."""
    begin = trio.current_time()
    return lambda call: first if call.at - begin < at else then


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def open_breaker(bench: Bench, readers: int = 8) -> None:
    """Have readers meet a store that does not answer until the breaker opens, and leave."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(readers):
                nursery.start_soon(bench.tried)
            await bench.log.broken.wait()
            nursery.cancel_scope.cancel()
