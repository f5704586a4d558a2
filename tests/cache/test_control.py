"""What the link learns, and what it tells the log."""

import random
from dataclasses import dataclass, field

import pytest

from imagefs.cache.breaker import FAILURES
from imagefs.cache.control import ATTEMPT_MIN, HEDGE_MIN, PATIENCE, Control, LinkCounters
from imagefs.cache.gate import OUT, WAITING, Ticket
from imagefs.cache.pace import START
from imagefs.errors import DeadlineError, StoreError
from tests.cache.wire import Wire

MIB = 1024 * 1024
LATE = DeadlineError("late")


@dataclass
class Log:
    """Remembers the names of events."""

    names: list[str] = field(default_factory=list)

    def info(self, event: str, /, **_fields: object) -> None:
        self.names.append(event)

    def warning(self, event: str, /, **_fields: object) -> None:
        self.names.append(event)


def _control(log: Log | None = None, *, deadline: float = 30.0) -> Control:
    wire = Wire(lambda _call: (0.0, None))
    return Control(LinkCounters(), log or Log(), wire, random.Random(1), deadline=deadline, most=64, threads=128)


def _arrive(control: Control, count: int, seconds: float, now: float = 100.0) -> None:
    for _ in range(count):
        control.arrived(MIB, now - seconds, now, hedge_began=None)


def test_an_attempt_has_four_times_what_is_usual() -> None:
    control = _control()
    _arrive(control, 64, 1.5)
    assert control.seconds_for(MIB, 0, demand=True) == 6.0
    assert control.seconds_for(MIB, 1, demand=True) == 12.0
    _arrive(control, 64, 0.01)
    assert control.seconds_for(MIB, 0, demand=True) == ATTEMPT_MIN
    _arrive(control, 64, 9.0)
    assert control.seconds_for(MIB, 0, demand=True) == 10.0, "there is time for another one"
    assert control.seconds_for(MIB, 0, demand=False) == 30.0


def test_an_attempt_of_which_nothing_is_known_shares_a_slow_link() -> None:
    control = _control()
    assert control.seconds_for(8 * MIB, 0, demand=True) == ATTEMPT_MIN + 8
    for _ in range(8):
        control.gate.enter(Ticket(demand=True))
    assert control.seconds_for(MIB, 0, demand=True) == ATTEMPT_MIN + 8
    assert control.seconds_for(8 * MIB, 0, demand=True) == 15.0
    assert control.seconds_for(8 * MIB, 0, demand=False) == 30.0
    assert _control(deadline=3.0).seconds_for(8 * MIB, 0, demand=True) == 1.5


def test_what_was_given_up_counts_with_the_time_it_had() -> None:
    """Or a link that gets slow would look fast for as long as all is given up on it."""
    control = _control()
    _arrive(control, 60, 0.01)
    for _ in range(4):
        control.unanswered(MIB, 100.0, 102.0, LATE, None)
    assert control.seconds_for(MIB, 0, demand=True) == 8.0


def test_a_hedge_that_wins_does_not_make_the_link_look_fast() -> None:
    control = _control()
    for _ in range(32):
        control.arrived(MIB, 99.0, 100.0, hedge_began=99.9)
    assert control.figures.quantile(MIB, 0.95) == 1.0
    assert control.figures.quantile(MIB, 0.5) == pytest.approx(0.1)
    assert control.counters.hedge_wins == 32


def test_nothing_is_slow_until_it_is_known_or_where_the_store_is_local() -> None:
    control = _control()
    assert control.slow_after(MIB) is None
    _arrive(control, 64, 0.0001)
    assert control.slow_after(MIB) == HEDGE_MIN
    _arrive(control, 64, 1.0)
    assert control.slow_after(MIB) == 1.25


def test_after_an_outage_all_is_learnt_anew_and_the_log_tells_both_ends() -> None:
    log = Log()
    control = _control(log)
    control._pace.limit = 40
    _arrive(control, 64, 0.5)
    for _ in range(FAILURES + 3):
        control.unanswered(MIB, 100.0, 100.0 + PATIENCE, StoreError("refused"), None)
    assert control.breaker.is_open
    assert control.counters.breaker_opens == 1
    control.answered(120.0)
    assert log.names == ["store_unreachable", "store_back"]
    assert control._pace.limit == START, "a store that comes back is not met with all at once"
    assert control.figures.quantile(MIB, 0.95) is None


def test_prefetch_that_waits_is_refused_when_the_breaker_opens() -> None:
    control = _control()
    tickets = [Ticket(demand=number < 20) for number in range(40)]
    for ticket in tickets:
        control.gate.enter(ticket)
    for _ in range(FAILURES):
        control.unanswered(MIB, 100.0, 100.0 + PATIENCE, StoreError("refused"), None)
    assert all(ticket.state == OUT for ticket in tickets[20:])
    assert tickets[19].state == WAITING, "demand waits on"


def test_halving_again_and_again_is_told_now_and_then() -> None:
    log = Log()
    control = _control(log)
    for second in range(100):
        control._pace.limit = 32
        control.unanswered(MIB, float(second), second + 0.5, StoreError("slow down", retry_after=1.0), None)
        control.answered(second + 0.9)
    assert log.names.count("store_concurrency_halved") == 4
