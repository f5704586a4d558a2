"""The gate before the store: who may have a GET in flight now, and who is next. Pure: no I/O, no clock, nothing awaited.

Demand is a GET that a reader waits for; prefetch is every other one.

Invariants:

- demand goes before prefetch: no prefetch enters while demand waits; within a class images take turns, and of one image it is first come,
  first served (``imagefs.cache.turns``): a mount that wants very much leaves the others their share of the link;
- prefetch enters only while ``reserve`` places stay free. Where prefetch holds them all the same (the limit shrank), demand may go over
  the limit by the reserve. So demand never has less than the reserve for itself, and at most ``limit`` places;
- with what hangs in threads that were given up, there are never more GETs than threads: ``ceiling`` bounds what is in flight;
- whoever can enter has entered: each change admits at once, so no wake-up can be lost. While somebody waits, somebody is in flight, or
  the ceiling is 0: then :meth:`Gate.refuse` is how those who wait learn of it.

A ticket belongs to one GET at a time, and the gate to the trio thread. What does not live here: how large the limit is
(``imagefs.cache.pace``).
"""

from collections.abc import Hashable
from typing import Final

import trio

from imagefs.cache.gets import Get
from imagefs.cache.turns import Turns

OUT: Final = 0
"""Not at the gate: not come yet, gone, or refused."""

WAITING: Final = 1
INSIDE: Final = 2

_WIDE: Final = 8  # from this limit on, two places are kept for demand


class Ticket:
    """One GET's place in the queue. It starts as demand or as prefetch, and may become demand at any time."""

    __slots__ = ("_called", "_gate", "ahead", "get", "owner", "state", "took", "wanted")

    def __init__(self, *, demand: bool, owner: Hashable = None) -> None:
        """``demand``: a reader waits for it already. ``owner`` is whose it is, of those who take turns: an image."""
        self.owner = owner
        self.state = OUT
        self.ahead = not demand
        """Whether it began as prefetch, whatever it is now."""
        self.wanted = trio.Event()
        """Set from when on a reader waits for it."""
        self.get: Get | None = None
        """Where it is noted how it goes, while a Start runs."""
        self.took = 0.0
        """Seconds of the attempt that brought it, without what it waited before."""
        self._called = trio.Event()
        self._gate: Gate | None = None
        if demand:
            self.wanted.set()

    @property
    def demand(self) -> bool:
        """Whether a reader waits for it."""
        return self.wanted.is_set()

    def promote(self) -> None:
        """Make it demand: a reader now waits for it. Harmless where it is demand, or done, already."""
        if self.demand:
            return
        if self.get is not None:
            self.get.is_promoted()
        gate = self._gate
        if gate is None:
            self.wanted.set()
        else:
            gate.promote(self)

    async def called(self) -> bool:
        """Wait for the gate's answer; return whether it entered. Whatever comes of it, the gate must be left."""
        if self.state == WAITING:
            await self._called.wait()
        return self.state == INSIDE

    def stand(self, gate: "Gate | None", state: int) -> None:
        """Take the gate's word for where it is, and wake who waits for that. For the gate alone."""
        self._gate = gate
        self.state = state
        if state == WAITING:
            self._called = trio.Event()
        else:
            self._called.set()


class Gate:
    """Counts the GETs in flight, and keeps the two queues."""

    __slots__ = ("_demand", "_prefetch", "ceiling", "demand", "limit", "prefetch")

    def __init__(self, limit: int, ceiling: int) -> None:
        """``limit`` is how many GETs are wanted in flight, ``ceiling`` how many there can be."""
        self.limit = limit
        self.ceiling = ceiling
        self.demand = 0
        """Demand GETs in flight."""
        self.prefetch = 0
        """Prefetch GETs in flight."""
        self._demand: Turns[Ticket] = Turns()
        self._prefetch: Turns[Ticket] = Turns()

    @property
    def in_flight(self) -> int:
        """GETs that have entered and not left."""
        return self.demand + self.prefetch

    @property
    def waiting(self) -> int:
        """Tickets in both queues."""
        return len(self._demand) + len(self._prefetch)

    @property
    def demand_waiting(self) -> int:
        """Tickets in the queue of demand."""
        return len(self._demand)

    def is_wanted_by_others(self, owner: Hashable) -> bool:
        """Say whether a GET waits that is somebody else's than ``owner``'s."""
        return self._demand.has_other(owner) or self._prefetch.has_other(owner)

    @property
    def reserve(self) -> int:
        """Places that prefetch leaves free."""
        return 1 if self.limit < _WIDE else 2

    @property
    def is_free(self) -> bool:
        """Whether one more may enter without going over the limit or before somebody who waits."""
        return not self.waiting and self.in_flight < min(self.limit, self.ceiling)

    def enter(self, ticket: Ticket) -> None:
        """Let a ticket in, or put it at the end of its queue."""
        assert ticket.state == OUT, "a ticket is for one GET at a time"
        ticket.stand(self, WAITING)
        (self._demand if ticket.demand else self._prefetch).add(ticket.owner, ticket)
        self._admit()

    def leave(self, ticket: Ticket) -> None:
        """Take a ticket away, from inside or from the queue; one that is neither is left alone."""
        if ticket.state == INSIDE:
            if ticket.demand:
                self.demand -= 1
            else:
                self.prefetch -= 1
        elif ticket.state == WAITING:
            (self._demand if ticket.demand else self._prefetch).remove(ticket.owner, ticket)
        ticket.stand(None, OUT)
        self._admit()

    def promote(self, ticket: Ticket) -> None:
        """Make a prefetch ticket demand: behind the demand that waits, or among the demand in flight."""
        if ticket.state == INSIDE:
            self.prefetch -= 1
            self.demand += 1
        elif ticket.state == WAITING:
            self._prefetch.remove(ticket.owner, ticket)
            self._demand.add(ticket.owner, ticket)
        ticket.wanted.set()
        self._admit()

    def resize(self, limit: int, ceiling: int) -> None:
        """Change the bounds. Who is in flight stays so."""
        self.limit = limit
        self.ceiling = ceiling
        self._admit()

    def refuse(self, *, demand: bool) -> None:
        """Send away the prefetch that waits, and with ``demand`` all that waits."""
        queues = (self._prefetch, self._demand) if demand else (self._prefetch,)
        for queue in queues:
            while queue:
                queue.pop().stand(None, OUT)
        self._admit()

    def _admit(self) -> None:
        while self._demand and self._demand_may_enter():
            self._demand.pop().stand(self, INSIDE)
            self.demand += 1
        while self._prefetch and not self._demand and self.in_flight < min(self.limit - self.reserve, self.ceiling):
            self._prefetch.pop().stand(self, INSIDE)
            self.prefetch += 1

    def _demand_may_enter(self) -> bool:
        left = max(0, self.limit - self.prefetch)
        return self.demand < min(self.limit, left + self.reserve) and self.in_flight < self.ceiling
