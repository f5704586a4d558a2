"""The limit, fed with what links would give."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.pace import HOLD, LEAST, START, Pace

SIZE = 1024 * 1024


def _run(pace: Pace, rate: float, each: float, gets: int, now: float = 100.0) -> float:
    """Deliver so many GETs, as a link of ``rate`` GETs a second would that gives each at most ``each`` a second; return the time."""
    for _ in range(gets):
        now += 1 / min(rate, each * pace.limit)
        pace.delivered(SIZE, now - pace.limit / min(rate, each * pace.limit), now, full=True)
    return now


@pytest.mark.parametrize("knee", [2, 5, 12, 30, 60])
def test_the_limit_comes_to_where_more_brings_nothing(knee: int) -> None:
    pace = Pace(64, slow=5.0)
    now = _run(pace, knee * 10.0, 10.0, 4000)
    seen = []
    for _ in range(4000):
        now = _run(pace, knee * 10.0, 10.0, 1, now)
        seen.append(pace.limit)
    usual = sorted(seen)[len(seen) // 2]
    assert 0.8 * knee <= usual <= 1.7 * knee


def test_a_link_that_saturates_softly_is_used_well() -> None:
    """Each GET more brings less than the one before, as where the wait for the first byte is hidden by the others."""
    pace = Pace(64, slow=5.0)
    now = 100.0
    shares = []
    for _ in range(8000):
        share = pace.limit / (pace.limit + 2)
        shares.append(share)
        now += 0.01 / share
        pace.delivered(SIZE, now - 0.1, now, full=True)
    assert sum(shares[4000:]) / 4000 > 0.85


def test_growth_is_quick_where_it_pays() -> None:
    pace = Pace(64, slow=5.0)
    _run(pace, 1e9, 10.0, 200)
    assert pace.limit == 64


def test_gets_that_take_long_are_not_made_more() -> None:
    """The link would even give more bytes, but each GET would run into its time."""
    pace = Pace(64, slow=5.0)
    now = 100.0
    for _ in range(1000):
        now += 4.0 / pace.limit
        pace.delivered(SIZE, now - 4.0, now, full=True)
    assert pace.limit == START


def test_a_limit_that_holds_nobody_back_does_not_grow() -> None:
    pace = Pace(64, slow=5.0)
    for number in range(1000):
        pace.delivered(SIZE, 99.0 + number, 100.0 + number, full=False)
    assert pace.limit == START


def test_throttling_halves_once_for_all_gets_under_way() -> None:
    pace = Pace(64, slow=5.0)
    now = _run(pace, 1e9, 10.0, 200)
    assert pace.throttled(now - 0.5, now)
    assert pace.limit == 32
    for _ in range(30):
        assert not pace.throttled(now - 0.5, now + 0.1)
    assert pace.limit == 32
    assert pace.throttled(now + 0.2, now + 0.3)
    assert pace.limit == 16


def test_after_a_halving_the_limit_rests() -> None:
    pace = Pace(64, slow=5.0)
    now = _run(pace, 1e9, 10.0, 200)
    pace.throttled(now, now)
    later = _run(pace, 1e9, 10.0, int(HOLD * 300), now)
    assert later - now < HOLD
    assert pace.limit == 32
    _run(pace, 1e9, 10.0, 2000, later)
    assert pace.limit == 64


def test_one_stalled_connection_is_not_the_link() -> None:
    pace = Pace(64, slow=5.0)
    pace.delivered(SIZE, 101.0, 101.9, full=False)
    assert not pace.stalled(100.0, 102.0)
    assert pace.stalled(102.0, 104.0)
    assert pace.limit == START // 2


def test_a_restart_does_not_begin_with_more_than_at_first() -> None:
    pace = Pace(64, slow=5.0)
    _run(pace, 1e9, 10.0, 200)
    pace.restart()
    assert pace.limit == START


@given(
    st.integers(2, 64),
    st.lists(st.tuples(st.sampled_from("dddddfts"), st.integers(0, 8 * SIZE), st.floats(0.0, 5.0), st.floats(0.0, 20.0)), max_size=300),
)
def test_the_limit_stays_within_its_bounds(most: int, events: list[tuple[str, int, float, float]]) -> None:
    pace = Pace(most, slow=5.0)
    now = 100.0
    for kind, size, step, took in events:
        now += step
        before = pace.limit
        if kind == "d":
            pace.delivered(size, now - took, now, full=True)
        elif kind == "f":
            pace.delivered(size, now - took, now, full=False)
            assert pace.limit == before
        elif kind == "t":
            assert pace.throttled(now - took, now) is (pace.limit < before)
        else:
            assert pace.stalled(now - took, now) is (pace.limit < before)
        assert LEAST <= pace.limit <= most
