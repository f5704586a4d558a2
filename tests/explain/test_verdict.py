"""What to do next: each rule with a start that it is for."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from imagefs.format.start import Start
from imagefs_cli.explain.analysis import analyse
from imagefs_cli.explain.verdict import Known, Verdict, seconds
from tests.explain.made import PROFILE, Row, get, start

MS = 1000
KNOWN: list[dict[str, Any]] = [{"path": "/a", "size": 10**8, "profiled": 60000, "object": "0" * 64}]
NEW: list[dict[str, Any]] = [{"path": "/a", "size": 10**8, "object": "0" * 64}]


def waiting(gets: list[Row], files: Sequence[Mapping[str, Any]], tier: int = 3, **more: Any) -> Start:
    """Return a start of a second, in which one GET after the other is waited for until it is decoded."""
    reads = [(row[0], row[4] - row[0], 0, 0, 10, tier, 0, number) for number, row in enumerate(gets)]
    return start(reads=[*reads, (1000 * MS, 0, 0, 0, 1, 1, 0, -1)], gets=gets, files=files, **more)


def each(count: int, size: int = 100_000, **more: Any) -> list[Row]:
    """Return GETs one after the other, of 50 ms each: 5 queued, 30 for the first byte, 10 of transfer, 5 decoding."""
    return [
        get(at, at + 5 * MS, at + 35 * MS, at + 45 * MS, at + 50 * MS, **{"start": at, "end": at + size, "content": 3 * size, **more})
        for at in range(0, 50 * MS * count, 50 * MS)
    ]


def told(document: Start, known: Known | None = None) -> Verdict:
    return analyse(document, known).verdict


def test_nothing_was_read() -> None:
    assert told(start()).code == "nothing-read"


def test_all_is_the_programs_own_time() -> None:
    found = told(start(reads=[(0, 20 * MS, 0, 0, 1, 3, 0, -1), (1000 * MS, 0, 0, 0, 1, 1, 0, -1)]))
    assert found.code == "program"
    assert "0.98 s of 1.00 s are the program's own time" in found.sentence


def test_no_profile_yet() -> None:
    found = told(waiting(each(10), NEW))
    assert found.code == "start-again"
    assert "0.50 s of 1.00 s were waits for the store, 10 one after the other" in found.sentence


def test_a_profile_that_was_not_used() -> None:
    found = told(waiting(each(10), NEW), Known(earlier=4))
    assert found.code == "profile-unused"
    assert "4 earlier starts are recorded, and no profile was used" in found.sentence
    assert "1 earlier start is recorded" in told(waiting(each(10), NEW), Known(earlier=1)).sentence


def test_a_profile_that_came_late() -> None:
    gets = each(10, kind=1, promoted=20)
    found = told(waiting(gets, KNOWN, profile=PROFILE))
    assert found.code == "optimize"
    assert "`imagefs optimize app:1`: 10 of 10 GETs of the profile came late and cost 0.50 s" in found.sentence
    assert told(waiting(gets, KNOWN, profile=PROFILE, optimized={"from": "1" * 64})).code == "wait-prefetch"


def test_a_profile_of_another_program() -> None:
    assert told(waiting(each(10), NEW, profile=PROFILE)).code == "start-again-other"
    assert told(waiting(each(10), KNOWN, profile=PROFILE)).code == "prefetch-missed"


def test_a_full_link() -> None:
    """Bytes come all the time, from the first to the last wait."""
    busy = [
        get(at, at, at + MS, at + 95 * MS, at + 100 * MS, kind=1, promoted=at, start=10 * at, end=10 * at + 1_000_000)
        for at in range(0, 1000 * MS, 100 * MS)
    ]
    document = waiting(busy, KNOWN, profile=PROFILE)
    found = told(document)
    assert found.code == "bandwidth"
    assert "10.0 MB came at 10.6 MB/s" in found.sentence
    little = [{**KNOWN[0], "fetched": 12_000}]
    found = told(waiting([(*row[:10], 20_000, *row[11:]) for row in busy], little, profile=PROFILE, touched=[(0, 0, 10**8)]))
    assert found.code == "optimize-bandwidth"
    assert "only 6 % of what came was touched" in found.sentence


def test_decoding_is_what_takes_the_time() -> None:
    slow = [
        get(at, at, at + MS, at + 2 * MS, at + 50 * MS, decode_cpu=60 * MS, verify_cpu=20 * MS, start=at, end=at + 1)
        for at in range(0, 500 * MS, 50 * MS)
    ]
    found = told(waiting(slow, KNOWN, profile=PROFILE, host={"kernel": "6", "cpus": 2}))
    assert found.code == "decode-bound"
    assert "0.80 s of CPU time of 2 CPUs" in found.sentence


def test_a_store_that_fails() -> None:
    assert told(waiting(each(10, attempts=3), NEW)).code == "store-fails"
    assert told(waiting([*each(9), *each(1, attempts=3)], NEW)).code == "start-again"


def test_a_cache_that_is_too_small() -> None:
    again = each(10, size=10 << 20)
    found = told(waiting([(*row[:8], 0, 10 << 20, *row[10:]) for row in again], KNOWN, profile=PROFILE))
    assert found.code == "cache-small"
    assert "94.4 MB of 104.9 MB" in found.sentence


def test_a_slow_disk_and_a_slow_daemon() -> None:
    assert told(waiting(each(10), KNOWN, tier=2, profile=PROFILE)).code == "disk"
    assert told(waiting(each(10), KNOWN, tier=1, profile=PROFILE)).code == "daemon"


def test_many_gets_that_queue() -> None:
    gets = [
        get(at, at + 45 * MS, at + 47 * MS, at + 48 * MS, at + 50 * MS, kind=3, start=at, end=at + 1) for at in range(0, 500 * MS, 50 * MS)
    ]
    reads = [(row[0], row[4] - row[0], 0, 0, 10, 3, 0, number) for number, row in enumerate(gets)]
    assert told(start(reads=reads, gets=gets, files=KNOWN, profile=PROFILE)).code == "queue"


@pytest.mark.parametrize(
    ("before", "said"), [(None, "no start of that is kept"), (1500 * MS, "0.50 s less than the last start"), (10, "no gain in time")]
)
def test_what_optimize_gained(before: int | None, said: str) -> None:
    found = told(waiting(each(10), KNOWN, profile=PROFILE, optimized={"from": "ab" * 32, "expected_gain": {}}), Known(origin_us=before))
    assert "abababababab" in found.gain
    assert said in found.gain
    assert "Expected" not in found.gain
    assert told(waiting(each(1), NEW)).gain == ""


def test_what_was_expected_of_optimize() -> None:
    expected = {"gets_before": 494, "bytes_before": 178_000_000, "gets_after": 12, "bytes_after": 90_000_000}
    found = told(waiting(each(10), KNOWN, profile=PROFILE, optimized={"from": "ab" * 32, "expected_gain": expected}))
    assert "Expected were 12 GETs and 90.0 MB instead of 494 and 178.0 MB; it took 10 and 1.0 MB." in found.gain
    odd: object
    for odd in (None, [], "x", {**expected, "gets_after": "12"}, {**expected, "bytes_after": -1}):
        assert "Expected" not in told(waiting(each(10), KNOWN, optimized={"from": "ab" * 32, "expected_gain": odd})).gain


@pytest.mark.parametrize(
    ("us", "said"),
    [(0, "0 us"), (49, "49 us"), (400, "0.4 ms"), (9_940, "9.9 ms"), (10_400, "10 ms"), (99_949, "100 ms"), (2_345_678, "2.35 s")],
)
def test_times_for_people(us: int, said: str) -> None:
    assert seconds(us) == said
