"""The Start document: read back, bounded, and each index checked before anybody follows it."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from imagefs.errors import ImageFSError, IntegrityError, LimitError, UnsupportedError
from imagefs.format import start as format_
from imagefs.format.start import MAX_START, compressed, decode, decode_head, encode
from tests.explain.documents import document

SMALL = document(60)


def data(change: Callable[[dict[str, Any]], object] = lambda _: None) -> bytes:
    """Return a document after a change."""
    made = json.loads(json.dumps(SMALL))
    change(made)
    return json.dumps(made).encode()


def test_it_is_read_back_plain_and_compressed() -> None:
    start = decode(data())
    assert len(start.reads) == len(SMALL["reads"])
    assert list(start.gets[0].__struct_fields__) == [
        "queued", "sent", "first", "arrived", "decoded", "decode_cpu", "verify_cpu", "pack", "start", "end", "content", "kind",
        "promoted", "attempts",
    ]  # fmt: skip
    assert decode(encode(start)) == start
    assert decode(compressed(encode(start))) == start
    assert json.loads(encode(start))["reads"] == SMALL["reads"]


def test_the_head_is_read_without_the_events() -> None:
    head = decode_head(compressed(data(lambda made: made.update(reads="nonsense"))))
    assert (head.ref, head.mountpoint, head.ended) == ("torch:2.9", "/mnt/torch", "quiet")


def test_later_versions_of_the_format_may_have_more() -> None:
    def more(made: dict[str, Any]) -> None:
        made["new"] = {"deep": [1, 2]}
        made["gets"] = [[*row, 7, "x"] for row in made["gets"]]
        made["files"][0]["new"] = None

    assert decode(data(more)) == decode(data())


def test_what_is_optional_may_be_left_out() -> None:
    start = decode(b'{"format":1,"kind":"start","manifest":"%s","began":1.5,"seconds":0,"ended":"quiet"}' % (b"0" * 64))
    assert (start.files, start.reads, start.profile, start.host.cpus) == ([], [], None, 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda made: made.update(format=2), UnsupportedError),
        (lambda made: made.update(kind="profile"), UnsupportedError),
        (lambda made: made.update(manifest="../" + "0" * 61), IntegrityError),
        (lambda made: made.update(began=-1), IntegrityError),
        (lambda made: made.update(seconds=1e300), IntegrityError),
        (lambda made: made.pop("manifest"), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(2, len(made["files"])), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(2, -1), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(5, 4), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(6, 2), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(6, -2), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(7, len(made["gets"])), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(3, made["reads"][0][4] + 1), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(0, 2**60), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(1, -1), IntegrityError),
        (lambda made: made["reads"][0].__setitem__(1, 1.5), IntegrityError),
        (lambda made: made["reads"][0].pop(), IntegrityError),
        (lambda made: made["gets"][0].__setitem__(7, 2), IntegrityError),
        (lambda made: made["gets"][0].__setitem__(11, 4), IntegrityError),
        (lambda made: made["gets"][0].__setitem__(9, made["gets"][0][8] - 1), IntegrityError),
        (lambda made: made["opens"][0].__setitem__(1, 10**6), IntegrityError),
        (lambda made: made["opens"][0].__setitem__(3, 2), IntegrityError),
        (lambda made: made["touched"].append([10**6, 0, 1]), IntegrityError),
        (lambda made: made["touched"].append([0, 2, 1]), IntegrityError),
        (lambda made: made["processes"][0].update(parent=2), IntegrityError),
        (lambda made: made["files"][0].update(profiled=65536), IntegrityError),
        (lambda made: made["files"][0].update(object="xyz"), IntegrityError),
        (lambda made: made["packs"].append("short"), IntegrityError),
    ],
)
def test_what_is_not_sound_is_refused(change: Callable[[dict[str, Any]], object], expected: type[ImageFSError]) -> None:
    with pytest.raises(expected):
        decode(data(change))


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"format":1,"kind":"start","x":' + b"[" * 100_000,
        b'{"format":1e400}',
        data()[:-2],
        data() + b"{}",
        compressed(data())[:40],
        b"\x28\xb5\x2f\xfd" + b"\0" * 40,
        zstandard.ZstdCompressor().compress(b"nonsense"),
    ],
)
def test_what_is_no_document_is_said_to_be_none(hostile: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode(hostile)
    with pytest.raises(IntegrityError):
        decode_head(hostile)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(b" " * (MAX_START + 1))
    assert len(bomb) < 100_000
    with pytest.raises(LimitError):
        decode(bomb)
    monkeypatch.setattr(format_, "MAX_START", 100)
    with pytest.raises(LimitError):
        decode(data())
    tracemalloc.start()
    with pytest.raises(LimitError):
        decode(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_what_the_recorder_may_keep_at_most_is_within_the_bound() -> None:
    """All columns full, with numbers and names as long as they come."""
    wide = 120_000_000
    row = sum(len(f"{wide}") + 1 for _ in range(4 + 8 + 14 + 3))
    file = len(json.dumps({"path": "x" * 200, "object": "0" * 64, "size": wide, "profiled": 65535, "fetched": wide}))
    assert 65536 * (row + file) < MAX_START
