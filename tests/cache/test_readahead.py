"""Read-ahead: in time for who reads in order, little for who does not, and no byte twice."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagefs.cache.layout import WINDOW
from imagefs.cache.readahead import COST, GRAIN, MOST, NOTHING, Readahead

MIB = 1024 * 1024
KIB = 1024


def _sequential(size: int, request: int, most: int = MOST) -> list[tuple[int, int, tuple[int, int]]]:
    """Read all of an object in order; return the requests, each with the range it asked for ahead."""
    state = Readahead(most)
    requests = [(offset, min(offset + request, size)) for offset in range(0, size, request)]
    return [(offset, end, state.advance(offset, end, size)) for offset, end in requests]


def test_the_grain_is_the_window_of_the_layout() -> None:
    assert GRAIN == WINDOW


def test_the_window_grows_to_most_and_is_asked_for_in_large_aligned_parts() -> None:
    size = 1024 * MIB + 12345
    ranges = [(end, ahead) for _, end, ahead in _sequential(size, MIB) if ahead != NOTHING]
    distances = [ahead[1] - end for end, ahead in ranges]
    assert max(distances) <= MOST
    for end, (start, stop) in ranges:
        if end >= 16 * MIB:
            # The last one too: an end that would be a small GET of its own came with the one before.
            assert stop - start >= GRAIN
            assert stop % GRAIN == 0 or stop == size
        if 128 * MIB <= end < size - MOST:
            assert stop - start >= MOST // 4
            assert stop - end >= MOST - GRAIN
    # 64 MiB are ahead before as much again was read twice over.
    assert next(end for end, ahead in ranges if ahead[1] - end > MOST // 2) <= 64 * MIB


def test_the_first_megabytes_are_not_waited_for_one_request_at_a_time() -> None:
    asked = [ahead for _, _, ahead in _sequential(64 * MIB, 128 * KIB) if ahead != NOTHING]
    assert asked[0] == (256 * KIB, 768 * KIB)
    assert len(asked) < 24


@given(st.integers(1, 300 * MIB), st.integers(64 * KIB, 2 * MIB))
def test_a_sequential_reader_waits_only_at_the_start_and_nothing_is_asked_twice(size: int, request: int) -> None:
    asked = demanded = 0
    for offset, end, (start, stop) in _sequential(size, request):
        if end > asked:
            demanded += end - max(asked, offset)
            asked = end
        if stop > start:
            assert end <= start
            assert start == asked
            assert stop <= size
            asked = stop
    assert asked == size
    assert demanded <= max(2 * request, 128 * KIB + request)


@given(st.lists(st.permutations(range(4)), min_size=4, max_size=40), st.sampled_from([128 * KIB, 512 * KIB, MIB]))
def test_requests_that_overtake_each_other_are_still_a_sequential_reader(orders: list[list[int]], request: int) -> None:
    state = Readahead()
    size = 4 * request * len(orders) + MIB
    present: list[tuple[int, int]] = []
    late = 0
    for group, order in enumerate(orders):
        for slot in order:
            offset = (4 * group + slot) * request
            covered = any(start <= offset and offset + request <= stop for start, stop in present)
            late += group >= 3 and not covered
            ahead = state.advance(offset, offset + request, size)
            if ahead != NOTHING:
                assert not present or ahead[0] >= present[-1][1]
                present.append(ahead)
                present = _merged(present)
    assert not late


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in ranges:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


_REQUESTS = st.lists(
    st.one_of(
        st.tuples(st.just("jump"), st.integers(0, 400 * MIB), st.integers(1, 2 * MIB)),
        st.tuples(st.just("step"), st.integers(-5 * MIB, 5 * MIB), st.integers(1, 2 * MIB)),
        st.tuples(st.just("next"), st.just(0), st.integers(1, 2 * MIB)),
    ),
    max_size=60,
)


@given(_REQUESTS, st.integers(1, 400 * MIB), st.integers(1, 128 * MIB))
def test_whatever_the_reader_does_ranges_lie_ahead_in_the_object_and_cost_little(
    requests: list[tuple[str, int, int]], size: int, most: int
) -> None:
    state = Readahead(most)
    position = read = cost = 0
    for kind, where, length in requests:
        offset = min(max(where if kind == "jump" else position + where, 0), size - 1)
        position = end = min(offset + length, size)
        read += end - offset
        start, stop = state.advance(offset, end, size)
        if (start, stop) == NOTHING:
            continue
        assert end <= start < stop <= size
        # Up to 4 MiB behind the furthest request; and an object's end is taken along.
        assert stop - end <= 4 * MIB + most + max(1, min(GRAIN, most // 4))
        cost += stop - start
    assert cost <= COST * read


@given(st.lists(st.integers(0, 1023), min_size=2, max_size=50, unique=True), st.integers(1, 4 * MIB))
def test_a_reader_that_jumps_is_read_ahead_nothing(places: list[int], length: int) -> None:
    state = Readahead()
    size = 1024 * 16 * MIB
    assert {state.advance(place * 16 * MIB, place * 16 * MIB + length, size) for place in places} == {NOTHING}


@pytest.mark.parametrize("at", [700 * MIB, 905 * MIB + 17, 10 * MIB])
def test_after_a_jump_the_second_request_in_order_is_enough(at: int) -> None:
    state = Readahead()
    size = 1024 * MIB
    for offset in range(0, 200 * MIB, MIB):
        state.advance(offset, offset + MIB, size)
    assert state.advance(at, at + MIB, size) == NOTHING
    first, last = state.advance(at + MIB, at + 2 * MIB, size)
    # It begins anew with a small window: what it had before is not kept.
    assert first == at + 2 * MIB
    assert MIB <= last - first <= 2 * MIB


def test_what_was_read_before_a_jump_buys_nothing_after_it() -> None:
    state = Readahead()
    size = 4096 * MIB
    for offset in range(0, 500 * MIB, MIB):
        state.advance(offset, offset + MIB, size)
    cost = 0
    for step in range(64):
        start, stop = state.advance(1024 * MIB + 4 * MIB * step, 1024 * MIB + 4 * MIB * step + 64 * KIB, size)
        cost += stop - start
    assert cost <= COST * 64 * 64 * KIB


def test_requests_that_arrive_in_reverse_are_counted_from_where_the_first_byte_is() -> None:
    state = Readahead()
    assert state.advance(MIB, 2 * MIB, 64 * MIB) == NOTHING
    assert state.advance(0, MIB, 64 * MIB) == (2 * MIB, 4 * MIB)


def test_a_late_request_does_not_move_the_reader_back() -> None:
    state = Readahead()
    assert state.advance(0, 64 * KIB, 64 * MIB) == NOTHING
    assert state.advance(4 * MIB, 4 * MIB + 32 * KIB, 64 * MIB) == NOTHING
    assert state.advance(3 * MIB, 3 * MIB + 64 * KIB, 64 * MIB)[0] == 4 * MIB + 32 * KIB


def test_a_look_at_the_first_kilobytes_is_no_reader_yet() -> None:
    state = Readahead()
    ranges = [state.advance(offset, offset + 4 * KIB, 64 * MIB) for offset in range(0, 124 * KIB, 4 * KIB)]
    assert set(ranges) == {NOTHING}
    assert state.advance(124 * KIB, 128 * KIB, 64 * MIB) == (128 * KIB, 384 * KIB)


def test_two_looks_with_much_between_them_are_no_reader() -> None:
    state = Readahead()
    assert state.advance(0, 4 * KIB, 64 * MIB) == NOTHING
    assert state.advance(2 * MIB, 2 * MIB + 4 * KIB, 64 * MIB) == NOTHING


def test_reading_the_same_bytes_again_asks_for_no_more() -> None:
    state = Readahead()
    size = 1024 * MIB
    furthest = 0
    for _ in range(100):
        for offset in range(0, 2 * MIB, MIB):
            furthest = max(furthest, state.advance(offset, offset + MIB, size)[1])
    assert furthest <= 4 * MIB


def test_small_steps_over_much_are_not_worth_reading_what_lies_between() -> None:
    state = Readahead()
    size = 4096 * MIB
    asked = 0
    for offset in range(0, size, MIB):
        start, stop = state.advance(offset, offset + 4 * KIB, size)
        asked += stop - start
    assert asked <= COST * 4 * KIB * 4096


@given(st.lists(st.integers(1, 2 * MIB), min_size=1, max_size=200))
@example([256 * KIB] * 400)
@example([64 * KIB] * 50)
def test_the_shortcut_for_requests_in_order_changes_nothing(lengths: list[int]) -> None:
    size = sum(lengths)
    quick, slow = Readahead(16 * MIB), Readahead(16 * MIB)
    offset = 0
    for length in lengths:
        slow._calm = 0
        assert quick.advance(offset, offset + length, size) == slow.advance(offset, offset + length, size)
        offset += length
