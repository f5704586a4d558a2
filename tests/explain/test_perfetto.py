"""A trace for Perfetto holds what the analysis found, in a form that its importer takes without an error."""

import msgspec
import pytest
from hypothesis import given

from imagefs.format.start import TIERS, Start, decode
from imagefs_cli.explain.analysis import analyse
from imagefs_cli.explain.perfetto import trace
from tests.explain.documents import HALF, document
from tests.explain.made import get, start, starts
from tests.explain.trace_format import Trace


def test_a_start_as_a_trace() -> None:
    found = Trace(
        trace(
            analyse(
                start(
                    opens=[(90, 0, 0, 0), (95, 1, 1, 1)],
                    reads=[(100, 1000, 0, 0, 4096, 3, 0, 0), (150, 940, 2, 0, 10, 3, 0, 0), (1200, 0, 1, 0, 100, 1, 0, -1)],
                    gets=[get(100, 150, 650, 950, 1000), get(120, 150, 1150, 1150, 1190, kind=2), get(1190, -1, -1, -1, -1)],
                    processes=[(-1,), (0,)],
                )
            )
        )
    )
    assert set(found.groups.values()) == {"critical path", "GETs: demand", "GETs: along", "/bin/p0 x (100)", "/bin/p1 x (101)", "link"}
    path = [one for one in found.slices if found.groups[one.group] == "critical path"]
    assert [(one.name, one.begin, one.end) for one in path if one.depth == 0] == [
        ("program", 90, 100),
        ("/app/0", 100, 1100),
        ("program", 1100, 1200),
    ]
    assert [one.name for one in path if one.depth == 1] == ["queue", "first_byte", "transfer", "decode", "verify", "other"]
    # Two reads that overlap are on two tracks of their process, and an arrow leads to each from its GET.
    assert [(source.category, target.name) for source, target in found.arrows] == [("get", "/app/0"), ("get", "/app/2")]
    assert found.arrows[0][1].track != found.arrows[1][1].track
    demand = next(one for one in found.slices if one.category == "get" and one.args.get("outcome") == "asked")
    assert (demand.args["readers"], demand.args["wait_us"]) == (2, 1940)
    opened = [(event["name"], event["ts"], event["args"]["native"]) for event in found.events if event["ph"] == "i"]
    assert opened == [
        ("open /app/0", 90, False),
        ("open /app/1", 95, True),
    ]
    counts = [event["args"] for event in found.events if event["ph"] == "C" and event["name"] == "GETs"]
    assert max(count["in flight"] for count in counts) == 2
    assert counts[-1] == {"in flight": 0, "at the gate": 0}


@given(starts())
def test_any_start_makes_a_sound_trace(any_start: Start) -> None:
    found = Trace(trace(analyse(any_start)))
    read = [one for one in found.slices if found.groups[one.group] != "critical path" and one.category in TIERS]
    assert len(read) == len(any_start.reads)


@pytest.mark.parametrize("events", [1000, 100_000])
def test_large_starts(events: int) -> None:
    made = decode(msgspec.json.encode(document(events, profile=HALF)))
    found = Trace(trace(analyse(made)))
    length = max(one.end for one in found.slices if found.groups[one.group] == "critical path")
    assert length == round(made.seconds * 1e6)
    waits = sum(read.get >= 0 for read in made.reads)
    assert len(found.arrows) == waits > 0


def test_a_trace_that_would_be_misread_is_noticed() -> None:
    good = msgspec.json.decode(trace(analyse(start(reads=[(0, 50, 0, 0, 1, 1, 0, -1)]))))
    slices = [event for event in good["traceEvents"] if event["ph"] == "X"]
    for change in ({"dur": -1}, {"name": ""}, {"pid": 77}, {"ts": 0.5}):
        with pytest.raises(AssertionError):
            Trace(msgspec.json.encode({**good, "traceEvents": [*good["traceEvents"], {**slices[0], **change}]}))
    overlapping = {**slices[0], "ts": slices[0]["ts"] + 10, "dur": slices[0]["dur"]}
    with pytest.raises(AssertionError):
        Trace(msgspec.json.encode({**good, "traceEvents": [*good["traceEvents"], overlapping]}))
