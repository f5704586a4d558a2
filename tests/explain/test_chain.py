"""The critical path: what the length of a start consists of."""

import time

import msgspec
from hypothesis import given, settings

from imagefs.format.start import Start, decode
from imagefs_cli.explain.chain import NOBODY, Segment, critical_path, ended
from tests.explain.documents import document
from tests.explain.made import start, starts


def waited(at: int, wait: int, process: int = 0, tier: int = 3) -> tuple[int, ...]:
    return (at, wait, 0, 0, 1, tier, process, -1)


def test_one_process_that_reads_and_thinks() -> None:
    found = start(reads=[waited(100, 50), waited(200, 30)], opens=[(300, 0, 0, 1)])
    assert critical_path(found) == [
        Segment(0, 100, -1, NOBODY),  # before it was seen for the first time
        Segment(100, 150, 0, 0),
        Segment(150, 200, -1, 0),
        Segment(200, 230, 1, 0),
        Segment(230, 300, -1, 0),
    ]


def test_of_threads_that_wait_at_once_the_one_that_ends_last_counts() -> None:
    found = start(reads=[waited(0, 100), waited(10, 40), waited(60, 90), waited(70, 20)])
    assert critical_path(found) == [Segment(0, 60, 0, 0), Segment(60, 150, 2, 0)]


def test_a_process_waits_for_what_it_started_and_what_came_and_went() -> None:
    #  p0: read 0-10, starts p1, which reads 20-60 and 70-90; p0 reads 100-110.
    found = start(reads=[waited(0, 10), waited(20, 40, 1), waited(70, 20, 1), waited(100, 10)], processes=[(-1,), (0,)])
    assert critical_path(found) == [
        Segment(0, 10, 0, 0),
        Segment(10, 20, -1, 0),
        Segment(20, 60, 1, 1),
        Segment(60, 70, -1, 1),
        Segment(70, 90, 2, 1),
        Segment(90, 100, -1, 0),
        Segment(100, 110, 3, 0),
    ]


def test_a_process_beside_does_not_count() -> None:
    found = start(reads=[waited(0, 10), waited(5, 500, 1), waited(600, 10)], processes=2)
    assert [segment.read for segment in critical_path(found)] == [0, -1, 2]
    # One that it started, and that goes on beside it, neither.
    found = start(reads=[waited(0, 10), waited(5, 500, 1), waited(300, 300)], processes=[(-1,), (0,)])
    assert [segment.read for segment in critical_path(found)] == [0, -1, 2]


def test_before_a_process_began_its_parent_counts() -> None:
    found = start(reads=[waited(0, 30), waited(50, 30, 1)], processes=[(-1,), (0,)])
    assert critical_path(found) == [Segment(0, 30, 0, 0), Segment(30, 50, -1, 0), Segment(50, 80, 1, 1)]


def test_the_parent_counts_and_not_who_else_was_there() -> None:
    found = start(reads=[waited(0, 10), waited(20, 25, 1), waited(50, 30, 2)], processes=[(-1,), (-1,), (0,)])
    assert critical_path(found) == [Segment(0, 10, 0, 0), Segment(10, 50, -1, 0), Segment(50, 80, 2, 2)]
    # Where the parent is not known, who did something last before.
    found = start(reads=[waited(0, 10), waited(20, 25, 1), waited(50, 30, 2)], processes=3)
    assert [segment.process for segment in critical_path(found)] == [0, 0, 1, 1, 2]


def test_nothing_read_has_no_path() -> None:
    assert critical_path(start()) == []
    assert critical_path(start(opens=[(40, 0, -1, 1)])) == [Segment(0, 40, -1, NOBODY)]


@given(starts())
@settings(max_examples=300)
def test_the_path_covers_the_start_without_gaps_and_overlaps(found: Start) -> None:
    segments = critical_path(found)
    assert sum(segment.end - segment.begin for segment in segments) == ended(found)
    at = 0
    for segment in segments:
        assert segment.begin == at < segment.end
        at = segment.end
        if segment.read >= 0:
            read = found.reads[segment.read]
            assert read.at <= segment.begin
            assert segment.end <= read.at + read.wait
            assert segment.process == read.process


def test_parents_that_are_each_others_end() -> None:
    opens = [(at, 0, process, 0) for process in range(50) for at in (10, 90)]
    found = start(opens=opens, processes=[((number + 1) % 50,) for number in range(50)])
    assert sum(segment.end - segment.begin for segment in critical_path(found)) == 90


def test_many_processes_and_many_gaps_take_no_long() -> None:
    """A shell that starts 4,000 programs, and reads between them: it must not look at all of them for each gap."""
    reads = [waited(10 * number, 1) for number in range(8000)]
    reads += [waited(20 * number + 3, 4, 1 + number) for number in range(4000)]
    found = start(reads=reads, processes=[(-1,), *[(0,)] * 4000])
    begin = time.perf_counter()
    path = critical_path(found)
    assert time.perf_counter() - begin < 2
    assert sum(segment.read >= 0 for segment in path) == 12000


def test_a_hundred_thousand_events_are_taken_in_seconds() -> None:

    found = decode(msgspec.json.encode(document(100_000)))
    begin = time.perf_counter()
    path = critical_path(found)
    assert time.perf_counter() - begin < 5
    assert sum(segment.end - segment.begin for segment in path) == ended(found)
