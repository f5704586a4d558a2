"""How far a profile is trusted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.prefetch_trust import ENOUGH, LEAST, MIB, MOST, SLACK, START, UNSEEN, Trust

LATENCY = 0.02


def arrive(trust: Trust, stored: int, seconds: float = LATENCY, *, sent: float = 0.0) -> None:
    trust.arrived(stored, sent, sent + seconds, LATENCY)


def test_more_and_more_may_be_under_way_while_it_arrives_in_time() -> None:
    trust = Trust()
    assert trust.window == START
    arrive(trust, START)
    assert trust.window == 2 * START
    for _ in range(100):
        arrive(trust, START)
    assert trust.window == MOST


@pytest.mark.parametrize("rate", [10e6, 40e6, 200e6, 400e6])
def test_on_any_link_there_is_as_much_under_way_as_it_brings_in_a_moment(rate: float) -> None:
    trust = Trust()
    for moment in range(200):
        arrive(trust, trust.window // 2, LATENCY + trust.window / rate, sent=10.0 * moment)
    assert trust.window == LEAST or 0.5 < trust.window / (rate * SLACK) < 2


def test_of_what_was_under_way_together_one_cuts_it() -> None:
    trust = Trust()
    for _ in range(10):
        arrive(trust, START)
    before = trust.window
    for number in range(10):
        trust.arrived(MIB, 5.0, 6.0 + number, LATENCY)
    assert trust.window == before // 2
    trust.arrived(MIB, 5.9, 5.95, LATENCY)
    assert trust.window == before // 2, "nor does it grow by what was sent before"
    trust.arrived(MIB, 6.0, 6.02, LATENCY)
    assert trust.window == before // 2 + MIB


def test_each_frame_that_is_missed_and_not_known_halves_it() -> None:
    trust = Trust()
    trust.unknown(1)
    assert trust.window == START // 2
    trust.unknown(20)
    assert trust.window == LEAST


def test_a_profile_of_another_program_is_doubted_as_soon_as_there_is_enough_to_tell() -> None:
    trust = Trust()
    for _ in range(ENOUGH - 1):
        trust.unknown(1)
        assert not trust.is_doubted
    trust.unknown(1)
    assert trust.is_doubted


def test_what_both_programs_begin_with_is_no_reason_to_go_on() -> None:
    trust = Trust()
    trust.known(1000)
    missed = 0
    while not trust.is_doubted:
        trust.unknown(1)
        missed += 1
        assert missed < 300


@pytest.mark.parametrize("fetched", [400, 2000])
def test_a_few_misses_say_nothing_where_much_was_fetched_that_the_kernel_may_read_by_itself(fetched: int) -> None:
    trust = Trust()
    trust.fetched(fetched)
    for _ in range(fetched // UNSEEN - 1):
        trust.unknown(1)
        assert not trust.is_doubted


def test_doubt_ends_when_the_program_comes_to_what_the_profile_knows() -> None:
    trust = Trust()
    trust.unknown(16)
    assert trust.is_doubted
    trust.known(15)
    assert trust.is_doubted
    trust.known(1)
    assert not trust.is_doubted


def test_who_is_known_to_be_another_program_is_not_believed_until_he_wants_what_the_profile_knows() -> None:
    trust = Trust()
    trust.doubt()
    assert trust.is_doubted
    trust.known(ENOUGH - 1)
    assert trust.is_doubted, "what all programs begin with"
    trust.known(1)
    assert not trust.is_doubted


def test_a_program_that_was_helped_is_helped_on_whatever_it_is_called() -> None:
    trust = Trust()
    trust.known(ENOUGH)
    trust.unknown(1)
    trust.doubt()
    assert not trust.is_doubted


def test_what_nobody_waits_for_is_a_reason_for_doubt_and_leaves_the_link_as_it_is() -> None:
    trust = Trust()
    trust.strange(ENOUGH)
    assert trust.is_doubted
    assert trust.window == START


def test_another_profile_is_not_judged_by_the_one_before() -> None:
    trust = Trust()
    trust.fetched(100 * UNSEEN)
    trust.unknown(1000)
    trust.renew()
    assert (trust.is_doubted, trust.window) == (False, LEAST), "the window is the link's matter"
    trust.unknown(ENOUGH)
    assert trust.is_doubted


@given(st.lists(st.tuples(st.sampled_from(["arrived", "known", "unknown"]), st.integers(0, 64 * MIB), st.floats(0, 100)), max_size=100))
def test_the_window_stays_within_its_bounds(story: list[tuple[str, int, float]]) -> None:
    trust = Trust()
    now = 0.0
    for what, count, seconds in story:
        if what == "arrived":
            trust.fetched(count >> 18)
            trust.arrived(count, now, now + seconds, None if count % 2 else LATENCY)
            now += seconds / 2
        elif what == "known":
            trust.known(count)
        else:
            trust.unknown(count)
        assert LEAST <= trust.window <= MOST


@given(st.lists(st.permutations([True, True, *[False] * 18]), max_size=20))
def test_a_profile_that_knows_nine_tenths_is_never_doubted(blocks: list[list[bool]]) -> None:
    trust = Trust()
    for block in blocks:
        for unknown in block:
            (trust.unknown if unknown else trust.known)(1)
            assert not trust.is_doubted
