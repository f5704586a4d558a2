"""What one read waited for, and what a profile did for it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imagefs.format.start import Start
from imagefs_cli.explain import waits
from imagefs_cli.explain.waits import IN_TIME, LATE, LOCAL, MISSED, NO_PROFILE, UNKNOWN, helped, overlap, split
from tests.explain.made import PROFILE, get, start, starts


def parts(**kinds: int) -> waits.Parts:
    return tuple(kinds.get(kind, 0) for kind in waits.KINDS)  # type: ignore[return-value]


def test_a_reader_who_asked_waited_for_each_step_of_its_get() -> None:
    found = start(reads=[(100, 1000, 0, 0, 10, 3, 0, 0)], gets=[get(110, 140, 640, 940, 1020)])
    assert split(found, found.reads[0], 100, 1100) == parts(
        queue=30,
        first_byte=500,
        transfer=300,
        decode=30,
        verify=10,
        other=10 + 40 + 80,  # deciding; between arrival and a thread; waking up
    )


def test_who_came_late_waited_for_the_rest_alone() -> None:
    one = start(gets=[get(0, 10, 510, 900, 980, kind=1, promoted=700)]).gets[0]
    assert overlap(one, 700, 1000) == parts(transfer=200, decode=30, verify=10, other=60)
    assert overlap(one, 950, 1000) == parts(decode=11, verify=3, other=16 + 20)
    assert overlap(one, 990, 1000) == parts(other=10)


def test_several_threads_that_decode_share_the_time_between_their_kinds() -> None:
    one = start(gets=[get(0, 0, 0, 100, 200, decode_cpu=150, verify_cpu=50)]).gets[0]
    assert overlap(one, 100, 200) == parts(decode=75, verify=25)


def test_what_has_not_come_is_waited_for() -> None:
    one = start(gets=[get(5, -1, -1, -1, -1)]).gets[0]
    assert overlap(one, 0, 100) == parts(other=5, queue=95)
    assert overlap(start(gets=[get(5, 10, -1, -1, -1)]).gets[0], 0, 100) == parts(other=5, queue=5, first_byte=90)


def test_where_the_first_byte_is_not_known_all_is_waiting_for_it() -> None:
    assert overlap(start(gets=[get(0, 10, 500, 500, 540)]).gets[0], 0, 540) == parts(queue=10, first_byte=490, decode=30, verify=10)


def test_other_tiers_wait_for_disk_or_nothing_of_the_store() -> None:
    found = start(reads=[(0, 50, 0, 0, 1, tier, 0, -1) for tier in range(4)])
    assert [split(found, read, 0, 50) for read in found.reads] == [parts(other=50), parts(other=50), parts(disk=50), parts(other=50)]


@given(starts(), st.integers(0, 500), st.integers(0, 500))
def test_the_parts_of_a_wait_add_up(found: Start, early: int, late: int) -> None:
    for read in found.reads:
        begin, end = sorted((read.at + early, read.at + late))
        mine = split(found, read, begin, end)
        assert sum(mine) == end - begin
        assert min(mine) >= 0


def test_what_a_profile_did() -> None:
    files: list[dict[str, Any]] = [{"path": "/known", "profiled": 100}, {"path": "/new"}]
    gets = [get(0, 1, 2, 3, 4), get(0, 1, 2, 3, 4, kind=1, promoted=2), get(0, 1, 2, 3, 4, kind=2, promoted=2)]
    reads = [
        (0, 0, 0, 0, 1, 1, 0, -1),
        (0, 0, 0, 0, 1, 3, 0, 1),
        (0, 0, 0, 0, 1, 3, 0, 0),
        (0, 0, 1, 0, 1, 3, 0, 0),
        (0, 0, 1, 0, 1, 3, 0, 2),
        (0, 0, 1, 0, 1, 1, 0, -1),
        (0, 0, 0, 0, 1, 0, 0, -1),
        (0, 0, 0, 0, 1, 2, 0, -1),
    ]
    with_one = start(reads=reads, gets=gets, files=files, profile=PROFILE)
    assert [helped(with_one, read, streamed=True) for read in with_one.reads] == [
        IN_TIME, LATE, MISSED, UNKNOWN, UNKNOWN, LOCAL, LOCAL, IN_TIME,
    ]  # fmt: skip
    without = start(reads=reads[2:4], gets=gets, files=files)
    assert [helped(without, read, streamed=False) for read in without.reads] == [NO_PROFILE, NO_PROFILE]
    # What a profile names and the disk has had all along was not prefetched.
    assert helped(with_one, with_one.reads[7], streamed=False) == LOCAL
