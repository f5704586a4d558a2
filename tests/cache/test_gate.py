"""The gate, driven by hypothesis against a model that keeps lists."""

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from imagefs.cache.gate import INSIDE, OUT, WAITING, Gate, Ticket

OWNERS = 3


class GateMachine(RuleBasedStateMachine):
    """Any order of coming, leaving, promoting, resizing and refusing."""

    tickets = Bundle("tickets")

    @initialize(limit=st.integers(2, 9), ceiling=st.integers(0, 16))
    def start(self, limit: int, ceiling: int) -> None:
        self.gate = Gate(limit, ceiling)
        self.known: list[Ticket] = []  # in the order in which they came into their class

    def waiting(self, *, demand: bool) -> list[Ticket]:
        return [ticket for ticket in self.known if ticket.state == WAITING and ticket.demand is demand]

    def inside(self, *, demand: bool) -> list[Ticket]:
        return [ticket for ticket in self.known if ticket.state == INSIDE and ticket.demand is demand]

    def watched(self, act: str, *args: Ticket) -> None:
        """Do something, and look at whom it let in."""
        queues = {demand: self.waiting(demand=demand) for demand in (True, False)}
        before = set(self.inside(demand=True) + self.inside(demand=False))
        getattr(self.gate, act)(*args)
        for demand, queue in queues.items():
            left = [ticket for ticket in queue if ticket not in args]
            entered = [ticket for ticket in left if ticket.state == INSIDE]
            for owner in range(OWNERS):
                theirs = [ticket for ticket in left if ticket.owner == owner]
                assert [ticket for ticket in entered if ticket.owner == owner] == theirs[: sum(t.owner == owner for t in entered)], (
                    "first come, first served"
                )
            if entered and not demand:
                assert not self.waiting(demand=True), "prefetch entered while demand waits"
        entered_prefetch = [ticket for ticket in self.inside(demand=False) if ticket not in before]
        if entered_prefetch:
            assert self.gate.in_flight <= self.gate.limit - self.gate.reserve
        if set(self.inside(demand=True) + self.inside(demand=False)) - before:
            assert self.gate.in_flight <= self.gate.ceiling
            assert len(self.inside(demand=True)) <= self.gate.limit
            assert self.gate.in_flight <= max(self.gate.limit, len(self.inside(demand=False))) + self.gate.reserve

    @rule(target=tickets, demand=st.booleans(), owner=st.integers(0, OWNERS - 1))
    def come(self, demand: bool, owner: int) -> Ticket:
        ticket = Ticket(demand=demand, owner=owner)
        self.known.append(ticket)
        self.watched("enter", ticket)
        return ticket

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: Ticket) -> None:
        self.watched("leave", ticket)
        assert ticket.state == OUT
        self.known.remove(ticket)

    @rule(ticket=tickets)
    def promote(self, ticket: Ticket) -> None:
        queue = self.waiting(demand=True)
        was_demand, waited = ticket.demand, ticket.state == WAITING
        ticket.promote()
        assert ticket.wanted.is_set()
        if was_demand:
            assert self.waiting(demand=True) == queue
        elif ticket.state == WAITING:
            # Behind the demand that was there, and before what comes later.
            self.known.remove(ticket)
            self.known.append(ticket)
            assert self.waiting(demand=True)[-1] is ticket
        elif waited:
            before = [other for other in queue if other.owner == ticket.owner]
            assert all(other.state == INSIDE for other in before), "it overtook demand of its owner that was there before"

    @rule(limit=st.integers(2, 12), ceiling=st.integers(0, 24))
    def resize(self, limit: int, ceiling: int) -> None:
        self.gate.resize(limit, ceiling)

    @rule(demand=st.booleans())
    def refuse(self, demand: bool) -> None:
        prefetch, others = self.waiting(demand=False), self.waiting(demand=True)
        self.gate.refuse(demand=demand)
        assert all(ticket.state == OUT for ticket in prefetch)
        assert demand or all(ticket.state in {WAITING, INSIDE} for ticket in others)

    @invariant()
    def counts_are_right(self) -> None:
        gate = self.gate
        assert gate.demand == len(self.inside(demand=True))
        assert gate.prefetch == len(self.inside(demand=False))
        assert gate.demand_waiting == len(self.waiting(demand=True))
        assert gate.waiting == gate.demand_waiting + len(self.waiting(demand=False))

    @invariant()
    def nobody_waits_who_could_enter(self) -> None:
        gate = self.gate
        if gate.in_flight >= gate.ceiling:
            return
        if self.waiting(demand=True):
            assert gate.demand >= gate.reserve
            assert gate.in_flight >= gate.limit
        elif self.waiting(demand=False):
            assert gate.in_flight >= gate.limit - gate.reserve

    @invariant()
    def who_is_not_waiting_is_awake(self) -> None:
        for ticket in self.known:
            assert ticket.state == WAITING or ticket._called.is_set()


TestGate = GateMachine.TestCase
TestGate.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def _inside(gate: Gate, count: int, *, demand: bool) -> list[Ticket]:
    tickets = [Ticket(demand=demand) for _ in range(count)]
    for ticket in tickets:
        gate.enter(ticket)
    return tickets


def test_demand_goes_over_the_limit_where_prefetch_fills_it() -> None:
    gate = Gate(8, 100)
    _inside(gate, 20, demand=False)
    assert gate.prefetch == 6, "prefetch leaves the reserve free"
    gate.resize(4, 100)
    first, second = _inside(gate, 2, demand=True)
    assert first.state == INSIDE, "the reserve of a limit of 4 is one place"
    assert second.state == WAITING
    assert gate.in_flight == 7


def test_owners_take_turns() -> None:
    gate = Gate(2, 100)
    inside = _inside(gate, 2, demand=True)
    greedy = [Ticket(demand=True, owner="greedy") for _ in range(50)]
    for ticket in greedy:
        gate.enter(ticket)
    modest = [Ticket(demand=True, owner="modest") for _ in range(3)]
    for ticket in modest:
        gate.enter(ticket)
    entered: list[object] = []
    while gate.demand_waiting:
        gate.leave(inside.pop(0))
        inside += [ticket for ticket in greedy + modest if ticket.state == INSIDE and ticket not in inside]
        entered.append(inside[-1].owner)
    assert entered[:6] == ["greedy", "modest"] * 3
    assert entered[6:] == ["greedy"] * 47


def test_demand_alone_stays_within_the_limit() -> None:
    gate = Gate(8, 100)
    _inside(gate, 20, demand=True)
    assert gate.demand == 8


def test_a_promoted_ticket_overtakes_prefetch() -> None:
    gate = Gate(2, 100)
    first, second, third = _inside(gate, 3, demand=False)
    assert (first.state, second.state, third.state) == (INSIDE, WAITING, WAITING)
    third.promote()
    assert third.state == INSIDE, "it takes the place that is kept for demand"
    gate.leave(first)
    assert second.state == WAITING, "with one in flight of two, the other place is demand's"
    gate.leave(third)
    assert second.state == INSIDE


def test_promoted_tickets_stand_behind_the_demand_that_waits() -> None:
    gate = Gate(2, 100)
    inside = _inside(gate, 2, demand=True)
    before, after = Ticket(demand=True), Ticket(demand=True)
    promoted = Ticket(demand=False)
    gate.enter(before)
    gate.enter(promoted)
    promoted.promote()
    gate.enter(after)
    for ticket in (before, promoted, after):
        assert ticket.state == WAITING
        gate.leave(inside.pop(0))
        assert ticket.state == INSIDE
        inside.append(ticket)


@pytest.mark.trio
async def test_a_waiter_is_called(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate(2, 100)
    tickets = _inside(gate, 3, demand=True)
    seen: list[bool] = []

    async def wait() -> None:
        seen.append(await tickets[2].called())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not seen
        gate.leave(tickets[0])
    assert seen == [True]
    gate.leave(tickets[2])

    refused = Ticket(demand=False)
    gate.enter(refused)
    gate.refuse(demand=False)
    assert await refused.called() is (refused.state == INSIDE)
