"""How much of each file GETs brought: by the object map, from the ranges of packs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagefs.cache import start_fetched
from imagefs.cache.start_fetched import UNKNOWN, note_fetched
from imagefs.digest import digest_of
from imagefs.format.objectmap import EXTENT_SIZE, ObjectMap, build_object_map
from imagefs.store.opening import open_store
from tests.fuse.images import FRAME, Maker, noise

LARGE = noise(3 * FRAME + 100, 1)
HOLEY = noise(FRAME, 2) + bytes(FRAME) + noise(FRAME, 3)
SMALL = {"a": noise(500, 4), "b": noise(700, 5)}


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Maker]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    made = Maker(store)
    made.file("large", LARGE)
    made.file("holey", HOLEY, hole=(FRAME, 2 * FRAME))
    made.shared(SMALL)
    yield made
    store.close()


def objects(maker: Maker) -> ObjectMap:
    return ObjectMap(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs))


def document(maker: Maker, ranges: list[tuple[int, int, int, int]]) -> dict[str, Any]:
    """Return what is needed of a document; ``ranges`` are pack, first and last frame (exclusive), and when it arrived."""
    gets = []
    for pack, first, last, arrived in ranges:
        frames = maker.packs[pack][3]
        gets.append([0, 0, 0, arrived, 0, 0, 0, pack, frames[first].offset, frames[last - 1].offset + frames[last - 1].stored])
    contents = [LARGE, HOLEY, *SMALL.values()]
    files = [{"object": digest_of(content).hex()} for content in contents]
    return {"packs": [digest.hex() for digest, _, _, _ in maker.packs], "gets": gets, "files": [*files, {"object": ""}]}


def fetched(maker: Maker, ranges: list[tuple[int, int, int, int]]) -> list[int]:
    made = document(maker, ranges)
    note_fetched(made, objects(maker))
    return [file["fetched"] for file in made["files"]]


def test_of_each_file_what_lies_in_the_frames_that_came(maker: Maker) -> None:
    assert fetched(maker, []) == [0, 0, 0, 0, 0]
    assert fetched(maker, [(0, 1, 3, 50)]) == [2 * FRAME, 0, 0, 0, 0]
    assert fetched(maker, [(0, 3, 4, 50), (0, 0, 1, 9)]) == [FRAME + 100, 0, 0, 0, 0]
    # A hole comes from nowhere; what shares a frame comes together.
    assert fetched(maker, [(1, 0, 2, 50), (2, 0, 1, 50)]) == [0, 2 * FRAME, 500, 700, 0]
    # Two GETs that follow each other, and one that comes again.
    assert fetched(maker, [(0, 0, 2, 1), (0, 2, 4, 2), (0, 1, 3, 3)]) == [len(LARGE), 0, 0, 0, 0]


def test_what_has_not_arrived_and_half_a_frame_do_not_count(maker: Maker) -> None:
    assert fetched(maker, [(0, 0, 4, -1)]) == [0, 0, 0, 0, 0]
    made = document(maker, [(0, 0, 2, 50)])
    made["gets"][0][9] -= 1
    note_fetched(made, objects(maker))
    assert made["files"][0]["fetched"] == FRAME


def test_an_object_of_another_map_and_one_of_too_many_extents_are_not_known(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = document(maker, [(0, 0, 4, 50)])
    made["files"][1]["object"] = "0" * 64
    monkeypatch.setattr(start_fetched, "EXTENTS_MAX", 4)
    note_fetched(made, objects(maker))
    assert [file["fetched"] for file in made["files"]] == [len(LARGE), UNKNOWN, UNKNOWN, UNKNOWN, 0]


def test_a_map_that_is_not_sound_gives_no_figure(maker: Maker) -> None:
    raw = bytearray(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs))
    sound = ObjectMap(bytes(raw))
    at = sound._extents_at
    raw[at : at + EXTENT_SIZE * sound.extent_count] = b"\xff" * (EXTENT_SIZE * sound.extent_count)
    made = document(maker, [(0, 0, 4, 50)])
    note_fetched(made, ObjectMap(bytes(raw)))
    assert {file["fetched"] for file in made["files"][:4]} == {UNKNOWN}
