"""What a start tells: sums of which the answers are known, and sums that have to add up for any document."""

import json

import msgspec
import pytest
from hypothesis import given

from imagefs.format.start import STORE, Start, decode
from imagefs_cli.explain import usage
from imagefs_cli.explain.analysis import analyse, outcome
from imagefs_cli.explain.report import document as report
from imagefs_cli.explain.waits import HELP, KINDS, LATE, NO_PROFILE, NOTHING, plus
from tests.explain.documents import FULL, HALF, NONE, document
from tests.explain.documents import LATE as LATE_PROFILE
from tests.explain.made import PROFILE, get, start, starts


def test_a_start_of_which_the_answers_are_known() -> None:
    files = [
        {"path": "/app/lib/a.so", "size": 5000, "profiled": 0, "fetched": 3000},
        {"path": "/app/lib/sub/b", "size": 100, "fetched": 100},
        {"path": "/app/c", "size": 100},
    ]
    found = analyse(
        start(
            files=files,
            opens=[(5, 0, 0, 0), (7, 2, 1, 1)],
            reads=[(100, 1000, 0, 0, 4096, 3, 0, 0), (1200, 0, 1, 0, 100, 1, 0, -1), (300, 100, 1, 0, 50, 2, 1, -1)],
            gets=[get(100, 150, 650, 950, 1000), get(100, 150, 1150, 1150, 1190, kind=2, start=1000, end=1500, content=1000)],
            processes=[(-1,), (0,)],
            touched=[(0, 0, 4096), (1, 0, 100), (2, 50, 200)],
        )
    )
    assert (found.before_us, found.length_us, found.program_us) == (5, 1195, 195)
    assert dict(zip(KINDS, found.path, strict=True)) == {
        "queue": 50, "first_byte": 500, "transfer": 300, "decode": 30, "verify": 10, "disk": 0, "other": 110,
    }  # fmt: skip
    assert (found.total.reads, found.total.wait_us, found.total.path_us) == (3, 1100, 1000)
    assert [(total.reads, total.wait_us) for total in found.tiers] == [(0, 0), (1, 0), (1, 100), (1, 1000)]
    assert found.help[NO_PROFILE].path_us == 1000
    assert [total.reads for total in found.processes] == [2, 1, 0]
    assert found.native_opens == 1
    assert [use.touched for use in found.files] == [4096, 100, 50]
    assert [(use.first_us, use.process) for use in found.files] == [(5, 0), (300, 1), (7, 1)]
    waits = {path: total.wait_us for path, total in found.directories.items()}
    assert waits == {"/app/lib/sub": 100, "/app/lib": 1100, "/app": 1100, "/": 1100}
    assert (found.bytes.stored, found.bytes.content, found.bytes.twice) == (1500, 4000, 0)
    assert (found.bytes.touched, found.bytes.touched_of_fetched) == (4246, 3100)
    assert found.bytes.by_kind == {"demand": 1000, "profile": 0, "along": 500, "ahead": 0}
    assert (found.gets[0].readers, found.gets[0].wait_us, found.gets[1].readers) == (1, 1000, 0)
    assert [outcome(found.start, index) for index in range(2)] == ["asked", "ahead"]


@given(starts())
def test_all_sums_add_up(document: Start) -> None:
    found = analyse(document)
    assert found.program_us + sum(found.path) == found.length_us
    assert found.program_us >= 0
    assert sum(step.length_us for step in found.steps) == sum(found.path)
    reads = len(document.reads)
    for sums in (found.tiers, found.help, found.processes, [use.sum for use in found.files]):
        assert sum(total.reads for total in sums) == reads
        assert sum(total.wait_us for total in sums) == found.total.wait_us == sum(read.wait for read in document.reads)
        assert sum(total.path_us for total in sums) == found.total.path_us == sum(found.path)
        added = NOTHING
        for total in sums:
            assert sum(total.parts) == total.wait_us
            added = plus(added, total.parts)
        assert added == found.total.parts
    named = sum(use.sum.wait_us for use in found.files if document.files[use.index].path.startswith("/"))
    assert found.directories.get("/", type(found.total)()).wait_us == named
    for get_, use in zip(document.gets, found.gets, strict=True):
        assert use.path_us <= use.wait_us
        assert get_.arrived != -1 or outcome(document, document.gets.index(get_)) == "under way"
    # What is printed for programs is what was added up, whatever the document.
    told = json.loads(json.dumps(report(found)))
    assert sum(told["critical_path"]["waits"].values()) + told["critical_path"]["program_us"] == told["length_us"]
    assert sum(row["wait_us"] for row in told["files"]) == told["total"]["wait_us"]


@pytest.mark.parametrize("profile", [NONE, FULL, HALF, LATE_PROFILE])
def test_what_was_made_up_is_understood(profile: str) -> None:
    found = analyse(decode(msgspec.json.encode(document(2000, profile=profile))))
    assert found.link.latency_us == pytest.approx(20_000, rel=0.05)
    assert found.link.bytes_per_second == pytest.approx(200e6, rel=0.05)
    asked = {name: total.path_us for name, total in zip(HELP, found.help, strict=True)}
    if profile == NONE:
        assert asked["no_profile"] > 0.9 * sum(found.path)
    if profile == HALF:
        assert asked["unknown"] > asked["late"] + asked["missed"]
    if profile == LATE_PROFILE:
        assert found.help[LATE].path_us > 0.8 * sum(found.path)
        assert found.path[0] > 300_000


def test_what_is_fetched_again_is_seen() -> None:
    gets = [get(0, 0, 1, 2, 3), get(5, 5, 6, 7, 8, start=500, end=1500), get(9, 9, -1, -1, -1)]
    found = analyse(start(gets=gets))
    assert (found.bytes.stored, found.bytes.twice) == (2000, 500)
    assert outcome(found.start, 2) == "under way"


def test_a_busy_link_is_seen_through_gets_that_overlap() -> None:
    # Four of 1,000 bytes at once, then nothing; bytes come from 100 to 500 us.
    gets = [get(0, 0, 100, 200 + 100 * number, 510) for number in range(4)]
    link = usage.link(start(gets=gets), 1000)
    assert (link.busy_us, link.bytes_per_second) == (400, 10_000_000)
    # Only what had come by then counts.
    assert usage.link(start(gets=gets[3:]), 300).bytes_per_second == 2_500_000


def test_latency_is_that_of_a_link_that_is_free() -> None:
    gets = [get(0, 0, 30, 400, 410), *(get(0, 0, 20 + number, 400, 410) for number in range(1, 20))]
    assert usage.link(start(gets=gets), 1000).latency_us == 23
    # Where first bytes are not known, that of small GETs; one that was sent twice tells nothing.
    gets = [get(0, 0, 25, 25, 26), get(0, 0, 1, 1, 2, attempts=2), get(0, 0, 12, 12, 13, end=1 << 20)]
    assert usage.link(start(gets=gets), 1000).latency_us == 25
    assert usage.link(start(gets=[get(0, 0, 900, 900, 901, end=1 << 20)]), 1000).latency_us == 900
    assert usage.link(start(), 1000).latency_us is None


def test_a_read_that_was_not_told_to_be_touched_is() -> None:
    found = start(reads=[(0, 0, 0, 100, 300, 1, 0, -1), (0, 0, 0, 200, 5000, 1, 0, -1)], touched=[(0, 0, 150)])
    assert usage.touched(found) == [1000, 0, 0]


def test_profiles_that_were_used_are_named() -> None:
    told = report(analyse(start(profile=PROFILE)))
    assert told["profile"]["used"] == {"starts": 5, "bytes": 3000}
    assert told["files"][0]["fetched"] is None


def test_columns_of_the_report_name_the_store() -> None:
    found = analyse(start(reads=[(0, 9, 1, 0, 5, STORE, 0, 0)], gets=[get(0, 1, 2, 3, 4)]))
    step = report(found)["critical_path"]["longest"][0]
    assert (step["path"], step["tier"], step["get"], step["length_us"]) == ("/app/1", "store", 0, 9)
