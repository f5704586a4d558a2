"""What of a Start becomes its profile: what was seen, and of what was not, the best that is known."""

import pytest

from imagefs.cache.start_profile import WHOLE_MAX, needed, profile_of
from imagefs.cache.starts import RAM, Facts, Start
from imagefs.format.accesses import GRAIN
from imagefs.format.profile import Access, Key, Profile

_MANIFEST = "ab" * 32
_LARGE = 100 * GRAIN


@pytest.fixture
def start() -> Start:
    return Start(Facts(_MANIFEST, label="L", entry=["python", "-m", "x"], gpu="H200"), clock=lambda: 50.0)


def _name(number: int) -> bytes:
    return bytes([number]) * 32


def _rows(profile: Profile | None) -> list[tuple[int, int, int, int]]:
    assert profile is not None
    return [(access.object[0], access.start // GRAIN, access.end // GRAIN, access.at) for access in profile.accesses]


def test_what_was_read_is_in_it_to_the_grain(start: Start) -> None:
    start.read(start.file(_name(1), _LARGE), (5 * GRAIN + 1, 7 * GRAIN), RAM, 51.0, thread=1)
    start.read(start.file(_name(2), 10), (0, 10), RAM, 50.5, thread=1)
    start.read(start.file(77, 10), (0, 10), RAM, 50.5, thread=1)
    profile = profile_of(start, {}, None)
    assert _rows(profile) == [(2, 0, 1, 500), (1, 5, 7, 1000)]
    assert profile is not None
    assert (profile.manifest, profile.key, profile.starts) == (_MANIFEST, Key("python -m x", "L", "H200"), 1)


def test_without_an_access_there_is_none(start: Start) -> None:
    assert profile_of(start, {}, None) is None
    start.opened(start.file(5, 10), 1, native=True)
    start.opened(start.file(_name(1), 0), 1, native=True)
    start.opened(start.file(_name(2), _LARGE), 1, native=False)
    assert profile_of(start, {}, None) is None


def test_of_what_was_opened_and_not_seen_the_small_counts_whole(start: Start) -> None:
    for number, size in ((1, WHOLE_MAX), (2, WHOLE_MAX + 1)):
        start.opened(start.file(_name(number), size), 1, native=True, at=52.0)
    assert _rows(profile_of(start, {}, None)) == [(1, 0, 16, 2000)]


def test_what_the_page_cache_has_counts(start: Start) -> None:
    file = start.file(_name(1), _LARGE)
    start.opened(file, 1, native=True)
    assert needed(start) == {file: (_name(1), _LARGE)}
    assert _rows(profile_of(start, {file: [(3 * GRAIN, 5 * GRAIN)]}, None)) == [(1, 3, 5, 0)]
    assert profile_of(start, {file: []}, None) is None, "opened, and nothing of it"
    assert _rows(profile_of(start, {file: [(0, _LARGE)]}, None)) == [(1, 0, 100, 0)]


def test_a_page_cache_that_has_all_says_less_than_earlier_starts(start: Start) -> None:
    file = start.file(_name(1), _LARGE)
    start.opened(file, 1, native=True, at=51.0)
    earlier = Profile(_MANIFEST, Key(), 3, [Access(_name(1), 0, GRAIN, 100, 65535), Access(_name(1), 9 * GRAIN, 10 * GRAIN, 300, 9000)])
    wanted = [(1, 0, 1, 1000), (1, 9, 10, 1200)]
    assert _rows(profile_of(start, {file: [(0, _LARGE)]}, earlier)) == wanted
    assert _rows(profile_of(start, {}, earlier)) == wanted, "and one that cannot be asked says nothing"
    assert _rows(profile_of(start, {file: [(GRAIN, 2 * GRAIN)]}, earlier)) == [(1, 1, 2, 1000)]


def test_a_profile_of_another_image_or_beyond_the_end_does_no_harm(start: Start) -> None:
    file = start.file(_name(1), GRAIN + 5)
    start.opened(file, 1, native=False, unseen=True)
    earlier = Profile("cd" * 32, Key(), 1, [Access(_name(1), 0, 50 * GRAIN, 0, 1), Access(_name(9), 0, GRAIN, 0, 1)])
    assert _rows(profile_of(start, {}, earlier)) == [(1, 0, 2, 0)]


def test_what_was_seen_in_part_is_made_whole_by_what_is_known(start: Start) -> None:
    """The kernel had pages of it before: what it asked for is not all that was read."""
    file = start.file(_name(1), _LARGE)
    start.opened(file, 1, native=False, unseen=True)
    start.read(file, (0, 2 * GRAIN), RAM, 50.2, thread=1)
    earlier = Profile(_MANIFEST, Key(), 1, [Access(_name(1), GRAIN, 4 * GRAIN, 100, 65535)])
    assert {grain for _, first, last, _ in _rows(profile_of(start, {}, earlier)) for grain in range(first, last)} == {0, 1, 2, 3}


def test_what_was_seen_from_its_beginning_is_not_added_to(start: Start) -> None:
    file = start.file(_name(1), _LARGE)
    start.opened(file, 1, native=False)
    start.read(file, (0, GRAIN), RAM, 50.0, thread=1)
    earlier = Profile(_MANIFEST, Key(), 1, [Access(_name(1), GRAIN, 4 * GRAIN, 100, 65535)])
    assert _rows(profile_of(start, {}, earlier)) == [(1, 0, 1, 0)], "or it would never fade"
