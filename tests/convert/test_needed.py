"""What a profile touches goes into frames in the order of need, once, and nothing else does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.planner import plan_runs
from imagefs.convert.needed import ALWAYS, SHARE_MIN, Copied, Joined, plan, start_of
from imagefs.convert.runs import runs_of
from imagefs.digest import digest_of
from imagefs.format.accesses import GRAIN
from imagefs.format.objectmap import FrameRow
from imagefs.format.profile import Access
from imagefs.store.base import ObjectStore
from imagefs.store.opening import open_store
from tests.convert.optimizing import FRAME, OTHER, Made, make, map_of, profile, whole


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


def test_small_objects_are_joined_in_the_order_of_need(store: ObjectStore) -> None:
    made = make(store, [[40_000, 40_000, 40_000], [40_000, 40_000], [3000, 4000]], [])
    one, two, three, four, five, six, _ = made.contents.values()
    order = [six, five, one, four, two, three]
    planned = plan(map_of(store, "test"), profile(whole(order)).accesses, frame_size=FRAME)
    assert [[m.digest for m in item.members] for item in planned.frames if isinstance(item, Joined)] == [
        [digest_of(data) for data in group] for group in ([six, five, one, four], [two, three])
    ]
    assert planned.moves[digest_of(one)] == {0: (0, len(six) + len(five))}
    assert planned.moves[digest_of(three)] == {0: (1, len(two))}
    assert planned.content == sum(map(len, order))


def test_of_a_large_object_only_the_frames_move_that_are_touched(store: ObjectStore) -> None:
    made = make(store, [[100, 100]], [(5 * FRAME + 77, False)])
    *_, large = made.contents.values()
    name = digest_of(large)
    touched = [Access(name, 4 * FRAME, 4 * FRAME + GRAIN, 1, ALWAYS), Access(name, FRAME + GRAIN, 2 * FRAME + GRAIN, 2, ALWAYS)]
    touched.append(Access(name, 5 * FRAME, 9 * FRAME, 3, ALWAYS))
    planned = plan(map_of(store, "test"), profile(touched).accesses, frame_size=FRAME)
    # The small ones are frame 0.
    assert planned.frames == [Copied(5, FRAME), Copied(2, FRAME), Copied(3, FRAME), Copied(6, 77)]
    assert planned.moves == {name: {4 * FRAME: (0, 0), FRAME: (1, 0), 2 * FRAME: (2, 0), 5 * FRAME: (3, 0)}}


def test_a_joined_frame_is_where_it_is_needed_first(store: ObjectStore) -> None:
    made = make(store, [[100, 100, 100]], [(2 * FRAME, False)])
    one, two, three, large = made.contents.values()
    planned = plan(map_of(store, "test"), profile(whole([one, large, two, three])).accesses, frame_size=FRAME)
    assert [type(item) for item in planned.frames] == [Joined, Copied, Copied]


def test_what_nearly_all_starts_need_comes_first_and_what_few_do_stays(store: ObjectStore) -> None:
    made = make(store, [[100, 100, 100, 100]], [])
    often, sometimes, rarely, _ = made.contents.values()
    accesses = [
        *whole([sometimes], share=ALWAYS - 1),
        *whole([often], share=ALWAYS),
        *whole([rarely], share=SHARE_MIN - 1),
        Access(OTHER, 0, GRAIN, 0, ALWAYS),
        Access(digest_of(often), GRAIN, 2 * GRAIN, 0, ALWAYS),
    ]
    planned = plan(map_of(store, "test"), profile(accesses).accesses, frame_size=FRAME)
    assert planned.moves == {digest_of(often): {0: (0, 0)}, digest_of(sometimes): {0: (1, 0)}}
    assert (planned.used, planned.rare, planned.foreign) == (2, 1, 2)


def test_what_is_touched_in_several_places_is_there_once(store: ObjectStore) -> None:
    made = make(store, [[GRAIN + 9, 100]], [(2 * FRAME, False)])
    small, _, large = made.contents.values()
    accesses = [Access(digest_of(data), place * GRAIN, (place + 1) * GRAIN, place, ALWAYS) for data in (small, large) for place in (0, 1)]
    planned = plan(map_of(store, "test"), profile(accesses).accesses, frame_size=FRAME)
    assert [item.length for item in planned.frames] == [len(small), FRAME]
    assert planned.content == len(small) + FRAME


def test_an_object_with_a_frame_of_its_own_is_copied(store: ObjectStore) -> None:
    made = make(store, [[100, 100], [5000]], [])
    *_, alone = made.contents.values()
    planned = plan(map_of(store, "test"), profile(whole([alone])).accesses, frame_size=FRAME)
    assert planned.frames == [Copied(1, 5000)]


def test_holes_do_not_move(store: ObjectStore) -> None:
    made = make(store, [[100, 100]], [(4 * FRAME, True)])
    *_, large = made.contents.values()
    planned = plan(map_of(store, "test"), profile(whole([large])).accesses, frame_size=FRAME)
    assert planned.moves[digest_of(large)].keys() == {0, 2 * FRAME, 3 * FRAME}


def test_a_start_is_counted_from_what_it_touches(store: ObjectStore) -> None:
    made: Made = make(store, [[100, 100], [100, 100]], [(5 * FRAME, False)])
    one, *_, large = made.contents.values()
    name = digest_of(large)
    objects = map_of(store, "test")
    accesses = [
        *whole([one]),
        Access(name, 0, GRAIN, 9, ALWAYS),
        Access(name, FRAME, 2 * FRAME, 9, ALWAYS),
        Access(name, 3 * FRAME, 4 * FRAME, 9, 1),
    ]
    frames = [objects.frame(number) for number in (0, 2, 3)]
    assert start_of(objects, profile(accesses).accesses) == (2, sum(frame.stored for frame in frames))


FRAMES = st.builds(FrameRow, st.just(b"f"), st.integers(0, 3), st.integers(0, 4000), st.integers(1, 2000), st.just(2000), st.just(1))


@given(st.lists(FRAMES, unique=True), st.integers(1, 5000), st.integers(0, 500))
def test_gets_are_those_that_the_planner_makes(frames: list[FrameRow], limit: int, gap: int) -> None:
    planned = sorted((run.pack, run.start, run.end) for run in plan_runs(((frame, frame) for frame in frames), limit=limit, gap=gap))
    assert sorted(run[:3] for run in runs_of(enumerate(frames), limit=limit, gap=gap)) == planned
