"""A Start: what it keeps, when it is over, what its document says; whatever a program does."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache import start_parts
from imagefs.cache.gets import NEVER, Get, Kind
from imagefs.cache.starts import EVENTS_MAX, RAM, STORE, Facts, Process, Start, Starts, tell
from imagefs.format.accesses import GRAIN

_MANIFEST = "ab" * 32
_OBJECT = b"o" * 32


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        """It is some time."""
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start(clock: Clock) -> Start:
    return Start(Facts(_MANIFEST), clock=clock)


def test_the_document_has_what_happened(start: Start, clock: Clock) -> None:
    clock.now += 1
    file = start.file(_OBJECT, 200_000, nid=40)
    start.opened(file, 7, native=False)
    get = Get("cd" * 32, 10, 30, 200_000, Kind.AHEAD)
    start.fetching(get)
    clock.now += 0.5
    start.read(file, (0, 131072), STORE, clock.now - 0.25, thread=7, get=get)
    start.processes[7] = Process(7, "python -c x", 1)
    start.finish()
    clock.now += 100
    document = json.loads(json.dumps(start.document("quiet", {file: "/usr/x"})))
    assert document["files"] == [{"path": "/usr/x", "object": _OBJECT.hex(), "size": 200_000, "profiled": 0}]
    assert document["opens"] == [[1_000_000, 0, 0, 0]]
    assert document["reads"] == [[1_250_000, 250_000, 0, 0, 131072, STORE, 0, 0]]
    assert document["touched"] == [[0, 0, 131072]]
    assert document["processes"] == [{"pid": 7, "command": "python -c x", "parent": -1}]
    assert document["packs"] == ["cd" * 32]
    assert document["gets"][0][1:5] == [-1, -1, -1, -1]
    assert document["gets"][0][7:] == [0, 10, 30, 200_000, 3, -1, 0]
    assert (document["seconds"], document["ended"]) == (1.5, "quiet")
    assert (document["format"], document["kind"], document["manifest"]) == (1, "start", _MANIFEST)


def test_it_is_quiet_when_nothing_new_is_accessed(start: Start, clock: Clock) -> None:
    clock.now += 60
    assert start.is_over() == "", "nothing was accessed yet"
    file = start.file(_OBJECT, 10 * GRAIN)
    for _ in range(4):
        clock.now += 3
        start.opened(file, 1, native=False)
        start.read(file, (0, GRAIN), RAM, clock.now, thread=1)
    assert start.is_over() == "quiet", "the same again is nothing new"
    start.read(file, (GRAIN, GRAIN + 1), RAM, clock.now, thread=1)
    assert start.is_over() == ""
    clock.now += 4.9
    assert start.is_over() == ""
    clock.now += 0.2
    assert start.is_over() == "quiet"


def test_it_ends_at_the_limit_whatever_happens(start: Start, clock: Clock) -> None:
    for number in range(130):
        clock.now += 1
        start.opened(start.file(number, 1), 1, native=True)
    assert start.is_over() == "limit"


def test_who_reads_nothing_leaves_an_empty_document(start: Start, clock: Clock) -> None:
    clock.now += 121
    assert start.is_over() == "limit"
    document = start.document("limit")
    assert [document[name] for name in ("files", "opens", "reads", "gets", "touched", "processes")] == [[], [], [], [], [], []]


def test_what_is_more_than_the_bounds_is_counted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_parts, "EVENTS_MAX", 10)
    file = start.file(_OBJECT, 1 << 40)
    for number in range(25):
        start.opened(file, number, native=False)
        start.read(file, (number * GRAIN, number * GRAIN + 1), RAM, 1000.0, thread=number)
    start.lose(3)
    document = start.document("limit")
    assert document["lost"] == {"opens": 18, "reads": 15, "gets": 0}
    assert (len(document["opens"]), len(document["reads"])) == (10, 10)
    assert document["touched"] == [[0, 0, 25 * GRAIN]], "what is touched is known all the same"


def test_more_files_threads_and_gets_than_the_bounds(start: Start) -> None:
    for number in range(EVENTS_MAX + 5):
        start.read(start.file(number, 1), (0, 1), RAM, 1000.0, thread=number)
    for _ in range(EVENTS_MAX + 2):
        start.fetching(Get("", 0, 1, 1, Kind.ALONG))
    document = start.document("limit")
    assert document["lost"] == {"opens": 0, "reads": 5, "gets": 2}
    assert len(document["processes"]) == 4096
    assert document["reads"][-1][6] == -1, "one of too many threads is nobody"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1 << 42), st.integers(1, 1 << 21), st.integers(-3, 10)), max_size=60))
def test_random_reads_give_a_document_that_holds_together(reads: list[tuple[int, int, int, int]]) -> None:
    clock = Clock()
    start = Start(Facts(_MANIFEST), clock=clock)
    for number, offset, length, seconds in reads:
        file = start.file(bytes([number]) * 32, 1 << 43)
        start.read(file, (offset, offset + length), RAM, clock.now + seconds, thread=number)
    document = start.document("running")
    assert all(row[0] >= 0 for row in document["reads"]), "times never come before the mount"
    covered = {(row[0], grain) for row in document["touched"] for grain in range(row[1] // GRAIN, -(-row[2] // GRAIN))}
    wanted = {(row[2], grain) for row in document["reads"] for grain in range(row[3] // GRAIN, -(-row[4] // GRAIN))}
    assert covered == wanted


def test_an_open_that_the_daemon_was_asked_for_is_told_once(start: Start, clock: Clock) -> None:
    file = start.file(_OBJECT, 100)
    start.asked(file, 5, unseen=False)
    clock.now += 0.2
    start.opened(file, 5, native=True)
    start.opened(file, 6, native=True)
    assert start.document("running")["opens"] == [[0, 0, 0, 0], [200_000, 0, 1, 1]]


def test_what_nobody_who_watches_has_told_of_is_an_open_all_the_same(start: Start) -> None:
    file = start.file(_OBJECT, 100)
    start.asked(file, 5, unseen=False)
    start.asked(file, 6, unseen=False)
    assert len(start.copy().document("running")["opens"]) == 2
    start.finish()
    assert [row[2] for row in start.document("quiet")["opens"]] == [0, 1]


def test_what_the_kernel_had_before_is_known_as_unseen(start: Start, clock: Clock) -> None:
    native, again, cold = (start.file(bytes([number]) * 32, 100) for number in range(3))
    start.opened(native, 1, native=True)
    start.opened(again, 1, native=False, unseen=True)
    start.opened(cold, 1, native=False)
    clock.now += 1
    start.opened(cold, 1, native=False, unseen=True)
    assert set(start.unseen) == {native, again}, "that of which all reads were seen is no riddle the second time"


def test_who_is_known_to_come_through_the_mount_is_the_first_of_all(start: Start) -> None:
    assert (start.first, start.is_sure) == (-1, True)
    start.who(7)
    assert (start.first, start.is_sure) == (7, True)
    watched = Start(Facts(_MANIFEST, watched=True))
    told: list[int] = []
    watched.noticed = lambda: told.append(watched.first)
    watched.who(7)
    assert (watched.first, watched.is_sure) == (7, False), "it may have read through another mount"
    watched.came(8)
    watched.came(9)
    assert (watched.first, watched.is_sure, watched.threads) == (8, True, [7, 8, 9])
    assert told == [7, 7, 8, 8]


def test_of_what_the_kernel_has_the_first_open_is_told(start: Start) -> None:
    told: list[bytes] = []
    start.opened_here = told.append
    native, asked, inline = start.file(_OBJECT, 100), start.file(b"a" * 32, 100), start.file(5, 5)
    start.opened(native, 1, native=True)
    start.opened(native, 2, native=True)
    start.opened(inline, 1, native=True)
    start.asked(asked, 1, unseen=False)
    start.opened(asked, 1, native=True)
    assert told == [_OBJECT], "of the other one the reads are seen"
    start.copy().opened(start.file(b"b" * 32, 100), 1, native=True)
    assert told == [_OBJECT]


def test_threads_of_one_process_are_one(start: Start) -> None:
    file = start.file(_OBJECT, 100)
    for thread in (11, 12, 13):
        start.opened(file, thread, native=False)
    start.processes[11] = start.processes[12] = Process(11, "java", 13)
    start.processes[13] = Process(13, "sh", 1)
    document = start.document("running")
    assert document["processes"] == [{"pid": 11, "command": "java", "parent": 1}, {"pid": 13, "command": "sh", "parent": -1}]
    assert [row[2] for row in document["opens"]] == [0, 0, 1]


def test_a_copy_stays_as_it_is(start: Start, clock: Clock) -> None:
    file = start.file(_OBJECT, 10 * GRAIN)
    start.read(file, (0, 1), RAM, clock.now, thread=1)
    other = start.copy()
    before = other.document("running")
    start.read(start.file(5, 5), (0, 1), RAM, clock.now, thread=2)
    start.facts.entry.append("x")
    start.facts.label = "y"
    clock.now += 5
    assert other.document("running") == before


class Record:
    """As much of the record of an object as is needed."""

    def __init__(self, *starts: Start) -> None:
        """See the class."""
        self.digest, self.size, self.opener, self.starts = _OBJECT, 1000, 9, starts


def test_starts_hear_of_what_is_theirs(clock: Clock) -> None:
    starts = Starts()
    one, other, kernel = (Start(Facts(name, mode=mode), clock=clock) for name, mode in (("1", "fuse"), ("2", "fuse"), ("1", "kernel")))
    for start in (one, other, kernel):
        starts.begin(start)
    assert starts.of_image("1") == (one,)
    assert starts.of_object(_OBJECT) == (), "no object map, no object"
    get = Get("", 0, 1, 1, Kind.DEMAND)
    starts.fetching("1", get)
    assert [len(start.document("running")["gets"]) for start in (one, other, kernel)] == [1, 0, 1]
    tell(Record(one, other), (0, 10), STORE, clock.now, get)
    assert [len(start.document("running")["gets"]) for start in (one, other)] == [1, 1], "who waits for another's GET hears of it"
    starts.end(one)
    starts.end(one)
    assert starts.running == (other, kernel)


def test_a_get_is_filled_in_as_it_goes() -> None:
    get = Get("", 0, 1, 1, Kind.ALONG)
    assert {get.sent, get.first, get.arrived, get.decoded, get.promoted} == {NEVER}
    get.is_promoted()
    get.is_sent()
    get.is_sent()
    get.has_arrived()
    get.is_decoded()
    assert get.queued <= get.promoted <= get.sent <= get.first <= get.arrived <= get.decoded
    assert get.attempts == 2
