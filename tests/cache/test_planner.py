"""The planner: every frame once, in order, and no GET larger than allowed."""

from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.planner import plan_runs
from imagefs.format.objectmap import FrameRow


def _frame(pack: int, offset: int, stored: int) -> FrameRow:
    return FrameRow(bytes(32), pack, offset, stored, stored, 0)


def test_adjacent_frames_are_one_get_and_others_are_not() -> None:
    frames = [_frame(0, 0, 10), _frame(0, 10, 5), _frame(0, 20, 5), _frame(1, 25, 5)]
    runs = plan_runs(list(enumerate(frames)))
    assert [(run.pack, run.start, run.end) for run in runs] == [(0, 0, 15), (0, 20, 25), (1, 25, 30)]


def test_a_frame_larger_than_the_limit_is_a_get_of_its_own() -> None:
    runs = plan_runs(list(enumerate([_frame(0, 0, 5), _frame(0, 5, 50), _frame(0, 55, 5)])), limit=20)
    assert [(run.start, run.end) for run in runs] == [(0, 5), (5, 55), (55, 60)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100), st.integers(1, 30))), st.integers(1, 60))
def test_all_frames_appear_once_in_order_within_the_limit(places: list[tuple[int, int, int]], limit: int) -> None:
    wanted = [(piece, _frame(*place)) for piece, place in enumerate(places)]
    runs = plan_runs(wanted, limit)
    assert [item for run in runs for item in run.frames] == wanted
    for run in runs:
        assert run.end - run.start == sum(frame.stored for _, frame in run.frames)
        assert run.end - run.start <= limit or len(run.frames) == 1
        position = run.start
        for _, frame in run.frames:
            assert (frame.pack, frame.offset) == (run.pack, position)
            position += frame.stored
