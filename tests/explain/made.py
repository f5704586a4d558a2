"""Small Start documents by hand, and any that are sound, for hypothesis."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from imagefs.format.start import Start, decode, encode

PACK = "c0" * 32
Row = tuple[int, ...]


def start(
    *,
    reads: Sequence[Row] = (),
    gets: Sequence[Row] = (),
    opens: Sequence[Row] = (),
    files: Sequence[Mapping[str, Any]] | int = 3,
    processes: Sequence[tuple[int]] | int = 1,
    **more: Any,
) -> Start:
    """Return a start. ``files`` and ``processes`` may be how many; ``processes`` else their parents."""

    named = [{"path": f"/app/{number}", "size": 1000} for number in range(files)] if isinstance(files, int) else files
    parents: Sequence[tuple[int]] = [(-1,)] * processes if isinstance(processes, int) else processes
    document = {
        "format": 1,
        "kind": "start",
        "manifest": "5a" * 32,
        "ref": "app:1",
        "mountpoint": "/mnt",
        "mode": "fuse",
        "began": 1.0,
        "seconds": 9.0,
        "ended": "quiet",
        "files": named,
        "processes": [{"pid": 100 + number, "command": f"/bin/p{number} x", "parent": parent} for number, (parent,) in enumerate(parents)],
        "packs": [PACK],
        "opens": opens,
        "reads": reads,
        "gets": gets,
        **more,
    }
    return decode(msgspec.json.encode(document))


def get(queued: int, sent: int, first: int, arrived: int, decoded: int, **more: int) -> Row:
    """Return a GET of 1,000 bytes, three times that as content, that took 30 us of zstd and 10 of BLAKE3."""
    row = {
        "queued": queued, "sent": sent, "first": first, "arrived": arrived, "decoded": decoded, "decode_cpu": 30, "verify_cpu": 10,
        "pack": 0, "start": 0, "end": 1000, "content": 3000, "kind": 0, "promoted": -1, "attempts": 1, **more,
    }  # fmt: skip
    return tuple(row.values())


PROFILE: dict[str, Any] = {"starts": 5, "accesses": 3, "bytes": 3000, "stored": 1000, "key": {"entry": "p0", "label": "", "gpu": ""}}


@st.composite
def starts(draw: st.DrawFn) -> Start:
    """Any document that is read: its times need not make sense."""
    times = st.integers(-1000, 3000)
    size = draw(st.integers(0, 3))
    files = [
        {"path": draw(st.sampled_from(["", "/a", "/a/b", "/a/b/c", "rel/x"])), "size": 500, "profiled": draw(st.sampled_from([0, 9]))}
        for _ in range(3)
    ]
    people = draw(st.integers(0, 4))
    parents = [(draw(st.integers(-1, people - 1)),) for _ in range(people)]
    gets = [
        get(
            *(draw(times) for _ in range(5)),
            kind=draw(st.integers(0, 3)),
            promoted=draw(times),
            decode_cpu=draw(st.integers(0, 500)),
            verify_cpu=draw(st.integers(0, 500)),
            attempts=draw(st.integers(0, 3)),
            pack=draw(st.integers(-1, 0)),
        )
        for _ in range(size)
    ]
    who = st.integers(-1, people - 1)
    reads = [
        (
            draw(times),
            draw(st.integers(0, 900)),
            draw(st.integers(0, 2)),
            10,
            400,
            draw(st.integers(0, 3)),
            draw(who),
            draw(st.integers(-1, size - 1)),
        )
        for _ in range(draw(st.integers(0, 12)))
    ]
    opens = [(draw(times), draw(st.integers(0, 2)), draw(who), draw(st.integers(0, 1))) for _ in range(draw(st.integers(0, 6)))]
    profile = draw(st.sampled_from([None, PROFILE]))
    return start(reads=reads, gets=gets, opens=opens, files=files, processes=parents, profile=profile)


def again(document: Start) -> Start:
    """Return a document as somebody else reads it."""
    return decode(encode(document))
