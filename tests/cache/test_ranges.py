"""Sets of ranges against a set of numbers."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.ranges import RangeSet

_RANGES = st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 60), st.integers(0, 60)), max_size=30)


@given(steps=_RANGES, start=st.integers(0, 60), end=st.integers(0, 60))
def test_it_is_a_set_of_numbers(steps: list[tuple[str, int, int]], start: int, end: int) -> None:
    ranges, model = RangeSet(), set[int]()
    for step, low, high in steps:
        numbers = set(range(low, high))
        if step == "add":
            assert ranges.add(low, high) == len(numbers - model)
            model |= numbers
        else:
            assert ranges.remove(low, high) == len(numbers & model)
            model -= numbers
        assert {n for a, b in ranges for n in range(a, b)} == model
        assert ranges.total == len(model)
    listed = list(ranges)
    assert all(a < b for a, b in listed)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(listed)), "ranges that touch are one"
    assert ranges.covers(start, end) == (set(range(start, end)) <= model)
    again = RangeSet.decode(ranges.encode())
    assert (list(again), again.total) == (listed, ranges.total)


@pytest.mark.parametrize("data", [b"x", bytes(16), RangeSet([(5, 6)]).encode() * 2, RangeSet([(5, 9)]).encode()[8:] + bytes(8)])
def test_what_is_no_set_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a set"):
        RangeSet.decode(data)
