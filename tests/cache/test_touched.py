"""What is touched, in grains: compared with plain sets."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache import touched
from imagefs.cache.touched import Touched
from imagefs.format.accesses import GRAIN

_SIZE = 300 * GRAIN
_READS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, _SIZE - 1), st.integers(1, 70 * GRAIN), st.integers(0, 10**6)), max_size=40)


@given(_READS)
def test_each_grain_is_there_once_with_its_first_time(reads: list[tuple[int, int, int, int]]) -> None:
    found = Touched()
    first: dict[tuple[int, int], int] = {}
    for file, start, length, at in reads:
        places = [(file, grain) for grain in range(start // GRAIN, -(-(start + length) // GRAIN))]
        assert found.add(file, start, start + length, at) == any(place not in first for place in places)
        for place in places:
            first.setdefault(place, at)
    said: dict[tuple[int, int], int] = {}
    for at, file, start, end in found:
        assert start % GRAIN == end % GRAIN == 0
        for grain in range(start // GRAIN, end // GRAIN):
            assert (file, grain) not in said, "ranges do not overlap"
            said[file, grain] = at
    assert said.keys() == first.keys()
    assert all(0 <= first[place] - said[place] <= touched._AT_ONCE for place in first), (
        "early by a moment at most, where reads follow each other"
    )


@given(_READS)
def test_merged_it_is_by_file_and_within_the_files(reads: list[tuple[int, int, int, int]]) -> None:
    found = Touched()
    sizes = [_SIZE, _SIZE - 7, 5 * GRAIN + 1, 1]
    for file, start, length, at in reads:
        if start < sizes[file]:
            found.add(file, start, min(start + length, sizes[file]), at)
    rows = list(found.merged(sizes))
    assert rows == sorted(rows)
    for (file, start, end), following in zip(rows, [*rows[1:], (9, 0, 0)], strict=False):
        assert start < end <= sizes[file]
        assert following[0] != file or following[1] > end


def test_a_reader_in_order_is_one_range() -> None:
    found = Touched()
    for number in range(1000):
        found.add(0, number * 131072, (number + 1) * 131072, number)
    assert [tuple(found_range) for found_range in found] == [(0, 0, 0, 1000 * 131072)]


def test_more_than_the_bound_is_not_taken_and_nothing_else_changes(monkeypatch: object) -> None:
    found = Touched()
    for number in range(touched.RANGES_MAX):
        assert found.add(number, 0, 1, 0)
    assert not found.add(touched.RANGES_MAX, 0, 1, 0)
    assert len(found) == touched.RANGES_MAX
    assert not found.add(5, 0, 1, 0), "known as before"


def test_a_copy_is_not_touched_by_what_comes() -> None:
    found = Touched()
    found.add(0, 0, 1, 0)
    other = copy.copy(found)
    found.add(1, 0, 1, 0)
    assert len(other) == 1
    assert other.add(1, 0, 1, 5)
    assert len(found) == 2
