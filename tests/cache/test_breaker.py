"""The breaker, step by step and as a state machine."""

import itertools
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imagefs.cache.breaker import FAILURES, FORGET, INTERVAL_MAX, Breaker
from imagefs.errors import StoreError

PATIENCE = 5.0


def _breaker() -> Breaker:
    return Breaker(random.Random(1), patience=PATIENCE)


def _opened(at: float = 10.0) -> Breaker:
    breaker = _breaker()
    breaker.failed(0.0, 1.0, "refused")
    breaker.failed(1.0, 2.0, "refused")
    assert breaker.failed(2.0, at, "refused")
    return breaker


def test_a_burst_of_failures_is_a_store_that_restarts() -> None:
    breaker = _breaker()
    for _ in range(100):
        assert not breaker.failed(0.0, 0.1, "refused")
    assert not breaker.failed(4.0, PATIENCE - 0.01, "refused")
    assert breaker.failed(4.0, PATIENCE, "refused")
    assert breaker.is_open


def test_few_failures_open_nothing() -> None:
    breaker = _breaker()
    for at in range(FAILURES - 1):
        assert not breaker.failed(0.0, PATIENCE + at, "hangs")
    assert not breaker.is_open


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker = _breaker()
    breaker.failed(0.0, 1.0, "refused")
    breaker.failed(0.0, 2.0, "refused")
    breaker.answered(9.0)
    # What hung since before the answer proves no silence from then on.
    for _ in range(10):
        assert not breaker.failed(0.0, 10.0, "refused")
    assert breaker.failed(0.0, 9.0 + PATIENCE, "refused")


def test_failures_that_lie_far_apart_are_not_one_outage() -> None:
    breaker = _breaker()
    for turn in range(10):
        now = turn * (FORGET + 1)
        assert not breaker.failed(now, now, "refused")


def test_a_store_that_says_when_is_given_that_time() -> None:
    breaker = _breaker()
    for _ in range(10):
        assert not breaker.failed(0.0, 0.0, "slow down", retry_after=7.0)
    assert not breaker.failed(0.0, PATIENCE + 6.9, "slow down", retry_after=7.0)
    assert breaker.failed(0.0, PATIENCE + 7.0, "slow down", retry_after=7.0)
    assert not breaker.allows(PATIENCE + 13.9, demand=True), "nor is it probed sooner"
    assert breaker.allows(PATIENCE + 14.0, demand=True)


def test_while_open_one_demand_get_an_interval_goes_through() -> None:
    breaker = _opened(at=10.0)
    assert not breaker.allows(10.7, demand=True)
    assert breaker.allows(11.0, demand=True)
    assert not breaker.allows(11.0, demand=False)
    probe = breaker.begin()
    assert probe is not None
    assert not breaker.allows(11.0, demand=True)
    assert breaker.wait(11.0) == float("inf")
    breaker.failed(11.0, 12.0, "refused", probe=probe)
    assert breaker.wait(12.0) > 1.5, "the interval grows"
    assert breaker.answered(13.0)
    assert breaker.allows(13.0, demand=False)
    assert breaker.begin() is None


def test_a_probe_that_is_withdrawn_leaves_the_turn() -> None:
    breaker = _opened(at=10.0)
    probe = breaker.begin()
    assert probe is not None
    breaker.withdraw(probe)
    assert breaker.allows(11.0, demand=True)
    second = breaker.begin()
    breaker.withdraw(probe)
    assert not breaker.allows(11.0, demand=True), "an old probe takes nothing from the new one"
    assert second is not None


def test_the_interval_has_an_end() -> None:
    breaker = _opened(at=10.0)
    now = 10.0
    waits = []
    for _ in range(12):
        waits.append(breaker.wait(now))
        now += waits[-1]
        breaker.failed(now, now, "refused", probe=breaker.begin())
    assert waits[0] <= 1.0
    assert all(before < after for before, after in itertools.pairwise(waits[:5]))
    assert max(waits) <= INTERVAL_MAX
    assert min(waits[6:]) >= 0.8 * INTERVAL_MAX


def test_the_refusal_says_since_when_and_why() -> None:
    refusal = _opened(at=10.0).refusal(42.0)
    assert isinstance(refusal, StoreError)
    assert refusal.message == "the store has not answered for 42 s, last: refused"
    assert refusal.retry_after is None


class BreakerMachine(RuleBasedStateMachine):
    """Any order of events, against what was promised."""

    @initialize(seed=st.integers())
    def start(self, seed: int) -> None:
        self.breaker = Breaker(random.Random(seed), patience=PATIENCE)
        self.now = 100.0
        self.answered_at = float("-inf")
        self.failures = 0
        self.probe: object | None = None

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(took=st.floats(0.0, 10.0), retry_after=st.sampled_from([0.0, 0.0, 3.0]))
    def fail(self, took: float, retry_after: float) -> None:
        was_open = self.breaker.is_open
        opened = self.breaker.failed(self.now - took, self.now, "refused", retry_after=retry_after)
        self.failures += 1
        assert opened is (self.breaker.is_open and not was_open)
        if opened:
            assert self.failures >= FAILURES
            assert self.now - self.answered_at >= PATIENCE

    @rule()
    def answer(self) -> None:
        was_open = self.breaker.is_open
        assert self.breaker.answered(self.now) is was_open
        self.failures = 0
        self.answered_at = self.now
        self.probe = None
        assert self.breaker.allows(self.now, demand=False)

    @precondition(lambda self: self.breaker.is_open and self.breaker.allows(self.now, demand=True))
    @rule()
    def begin(self) -> None:
        assert self.probe is None, "never two probes at once"
        self.probe = self.breaker.begin()
        assert self.probe is not None

    @precondition(lambda self: self.probe is not None)
    @rule(failed=st.booleans())
    def end(self, failed: bool) -> None:
        assert self.probe is not None
        if failed:
            self.breaker.failed(self.now, self.now, "refused", probe=self.probe)
            assert not self.breaker.allows(self.now, demand=True)
        else:
            self.breaker.withdraw(self.probe)
            assert self.breaker.allows(self.now, demand=True)
        self.probe = None

    @invariant()
    def a_turn_always_comes(self) -> None:
        if self.breaker.is_open and self.probe is None:
            wait = self.breaker.wait(self.now)
            assert 0 <= wait <= INTERVAL_MAX
            assert self.breaker.allows(self.now + wait + 1e-6, demand=True)
            assert not self.breaker.allows(self.now + 1000, demand=False)


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
