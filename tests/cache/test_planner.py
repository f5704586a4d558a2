"""The planner: every wanted frame once, first things first, no GET larger than allowed, and no more fetched along than is worth it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.planner import Run, plan_runs
from imagefs.format.objectmap import FrameRow


def _frame(pack: int, offset: int, stored: int) -> FrameRow:
    return FrameRow(bytes(32), pack, offset, stored, stored, 0)


def _ranges(runs: list[Run[int]]) -> list[tuple[int, int, int]]:
    return [(run.pack, run.start, run.end) for run in runs]


def test_adjacent_frames_are_one_get_and_others_are_not() -> None:
    frames = [_frame(0, 0, 10), _frame(0, 10, 5), _frame(0, 20, 5), _frame(1, 25, 5)]
    assert _ranges(plan_runs(enumerate(frames))) == [(0, 0, 15), (0, 20, 25), (1, 25, 30)]


def test_a_frame_larger_than_the_limit_is_a_get_of_its_own() -> None:
    runs = plan_runs(enumerate([_frame(0, 0, 5), _frame(0, 5, 50), _frame(0, 55, 5)]), limit=20)
    assert _ranges(runs) == [(0, 0, 5), (0, 5, 55), (0, 55, 60)]


def test_a_small_gap_is_fetched_along_and_counts_towards_the_limit() -> None:
    frames = [_frame(0, 0, 10), _frame(0, 14, 10), _frame(0, 29, 10)]
    assert _ranges(plan_runs(enumerate(frames), gap=3)) == [(0, 0, 10), (0, 14, 24), (0, 29, 39)]
    assert _ranges(plan_runs(enumerate(frames), gap=4)) == [(0, 0, 24), (0, 29, 39)]
    assert _ranges(plan_runs(enumerate(frames), gap=5)) == [(0, 0, 39)]
    assert _ranges(plan_runs(enumerate(frames), gap=5, limit=23)) == [(0, 0, 10), (0, 14, 24), (0, 29, 39)]


def test_neighbours_that_different_objects_want_come_in_one_get() -> None:
    wanted = [(("a", 0), _frame(0, 10, 5)), (("a", 1), _frame(3, 0, 5)), (("b", 0), _frame(0, 5, 5)), (("c", 7), _frame(0, 15, 5))]
    near, far = plan_runs(wanted)
    assert (near.pack, near.start, near.end) == (0, 5, 20)
    assert [tag for tag, _ in near.frames] == [("a", 0), ("b", 0), ("c", 7)]
    assert far.frames == [wanted[1]]


def test_a_frame_that_several_want_is_fetched_once_for_all_of_them() -> None:
    shared, other = _frame(0, 0, 10), _frame(0, 10, 10)
    (run,) = plan_runs([("a", shared), ("b", other), ("c", shared)])
    assert (run.start, run.end) == (0, 20)
    assert run.grouped() == [(shared, ["a", "c"]), (other, ["b"])]
    assert run.frames == [("a", shared), ("c", shared), ("b", other)]


def test_frames_that_overlap_in_a_hostile_map_are_all_inside_their_run() -> None:
    long, inner, same_place = _frame(0, 0, 100), _frame(0, 10, 5), _frame(0, 0, 7)
    (run,) = plan_runs(enumerate([long, inner, same_place]))
    assert (run.start, run.end) == (0, 100)
    assert len(run.grouped()) == 3


_PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100), st.integers(1, 30)))


@given(_PLACES, st.integers(1, 60), st.integers(0, 20))
def test_every_frame_is_in_one_run_with_all_who_want_it(places: list[tuple[int, int, int]], limit: int, gap: int) -> None:
    wanted = [(tag, _frame(*place)) for tag, place in enumerate(places)]
    runs = plan_runs(wanted, limit=limit, gap=gap)
    assert sorted(item for run in runs for item in run.frames) == sorted(wanted)
    groups = [group for run in runs for group in run.grouped()]
    assert len(groups) == len({frame for _, frame in wanted})
    assert dict(groups) == {frame: [tag for tag, other in wanted if other == frame] for _, frame in wanted}


@given(_PLACES, st.integers(1, 60), st.integers(0, 20))
def test_a_run_is_bounded_and_holds_its_frames_and_only_small_gaps(places: list[tuple[int, int, int]], limit: int, gap: int) -> None:
    for run in plan_runs([(tag, _frame(*place)) for tag, place in enumerate(places)], limit=limit, gap=gap):
        frames = sorted({frame for _, frame in run.frames}, key=lambda frame: frame.offset)
        assert {frame.pack for frame in frames} == {run.pack}
        assert run.end - run.start <= limit or len(frames) == 1
        assert run.start == frames[0].offset
        position = run.start
        for frame in frames:
            assert frame.offset - position <= gap
            position = max(position, frame.offset + frame.stored)
        assert run.end == position


@given(_PLACES, st.integers(1, 60), st.integers(0, 20))
def test_what_is_waited_for_first_comes_first(places: list[tuple[int, int, int]], limit: int, gap: int) -> None:
    runs = plan_runs([(tag, _frame(*place)) for tag, place in enumerate(places)], limit=limit, gap=gap)
    firsts = [min(tag for tag, _ in run.frames) for run in runs]
    assert firsts == sorted(firsts)
    for run in runs:
        firsts = [tags[0] for _, tags in run.grouped()]
        assert firsts == sorted(firsts)


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 60), st.randoms(use_true_random=False))
def test_no_two_gets_could_have_been_one(sizes: list[int], limit: int, random: object) -> None:
    """Frames back to back, wanted in any order: neighbouring runs are apart only because of the limit."""
    frames, offset = [], 0
    for size in sizes:
        frames.append(_frame(0, offset, size))
        offset += size
    random.shuffle(frames)  # type: ignore[attr-defined] # random.Random
    runs = sorted(plan_runs(enumerate(frames), limit=limit), key=lambda run: run.start)
    for left, right in pairwise(runs):
        first = min((frame for _, frame in right.frames), key=lambda frame: frame.offset)
        assert left.end == right.start
        assert first.offset + first.stored - left.start > limit
