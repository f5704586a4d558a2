"""What a profile says is to be fetched: which frames, and in which order."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.cache import prefetch_plan
from imagefs.cache.prefetch_plan import FAR, GAP, OFTEN, REST, SELDOM, Plan, Step, steps_of
from imagefs.digest import digest_of
from imagefs.format.objectmap import EXTENT_SIZE, HEADER_SIZE, OBJECT_SIZE, FrameRow, ObjectMap, ObjectRow, build_object_map
from imagefs.format.profile import EVERY_START, GRAIN, Access
from tests.cache.far_bench import KIB, MIB, noise, pack, small_files
from tests.fuse.images import FRAME, Maker

ROW = ObjectRow(bytes(32), 1, 0, 1)
FOREVER = float("inf")


def step(frame: int, at: int, share: int = EVERY_START, stored: int = 100, offset: int | None = None) -> Step:
    """Make a step for a frame that lies apart from all others, or at ``offset`` of pack 1."""
    place = (
        FrameRow(bytes(32), 0, frame << 40, stored, 2 * stored, 0)
        if offset is None
        else FrameRow(bytes(32), 1, offset, stored, 2 * stored, 0)
    )
    return Step(frame, at, share, ROW, 0, 1, small=False, place=place)


def got(plan: Plan, look: int, *, limit: int = MIB, until: float = FOREVER) -> list[Step]:
    """Take the next GET."""
    found = plan.peek(look, limit=limit, until=until, rare=False)
    if found:
        plan.pop()
    return found


def access(data: bytes, start: int, end: int, at: int, share: int = EVERY_START) -> Access:
    return Access(digest_of(data), start, end, at, share)


def frames(steps: Iterable[Step]) -> list[int]:
    return [found.frame for found in steps]


# -- from accesses to frames ----------------------------------------------------------------------------------------------------------


def test_each_frame_comes_once_when_it_is_needed_first_and_as_often_as_its_most_wanted_byte(maker: Maker) -> None:
    large, files = noise(4 * FRAME), small_files(3, 10 * KIB, seed=3)
    pack(maker, large, files)
    objects = ObjectMap(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs))
    steps = steps_of(
        [
            access(files[2], 0, GRAIN, 5, EVERY_START // 2),
            access(large, FRAME, FRAME + GRAIN, 10),
            access(files[0], 0, GRAIN, 20),
            access(large, 0, 2 * FRAME, 30, EVERY_START // 4),
        ],
        objects,
    )
    assert [(found.frame, found.at, found.share) for found in steps] == [
        (4, 5, EVERY_START),
        (1, 10, EVERY_START),
        (0, 30, EVERY_START // 4),
    ]
    assert [found.small for found in steps] == [True, False, False]
    assert (steps[1].start, steps[1].end) == (FRAME, 2 * FRAME)


def test_what_the_image_does_not_have_and_what_lies_beyond_an_object_is_passed_over(maker: Maker) -> None:
    large = noise(FRAME + 100)
    pack(maker, large)
    objects = ObjectMap(build_object_map(list(maker.rows.values()), maker.packs))
    there = access(large, FRAME, 1 << 62, 1)
    beyond = access(large, 1 << 40, 1 << 41, 2)
    assert frames(steps_of([access(b"of another image", 0, GRAIN, 0), beyond, there], objects)) == [1]


def test_holes_need_nothing_and_what_few_starts_touch_is_left_out(maker: Maker) -> None:
    data = noise(FRAME) + bytes(FRAME) + noise(FRAME, 2)
    maker.file("sparse", data, hole=(FRAME, 2 * FRAME))
    objects = ObjectMap(build_object_map(list(maker.rows.values()), maker.packs))
    assert frames(steps_of([access(data, 0, len(data), 0)], objects)) == [0, 1]
    assert not steps_of([access(data, 0, len(data), 0, SELDOM - 1)], objects)


def test_a_profile_that_names_the_same_again_and_again_is_given_up_in_time(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_plan, "EXTENTS_MAX", 10)
    large, other = noise(8 * FRAME), noise(FRAME, 2)
    pack(maker, large, other)
    objects = ObjectMap(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs))
    found = steps_of([access(large, 0, 1 << 60, 0), access(large, 0, 1 << 60, 1), access(other, 0, GRAIN, 2)], objects)
    assert frames(found) == list(range(8))


def test_a_damaged_map_is_no_error_and_costs_what_is_damaged(maker: Maker) -> None:
    first, second = noise(2 * FRAME), noise(2 * FRAME, 2)
    pack(maker, first, second)
    raw = bytearray(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs))
    good = ObjectMap(bytes(raw))
    row = good.find(digest_of(first))
    assert row is not None
    # The first extent of the first object is of a frame that there is not.
    extent = HEADER_SIZE + good.object_count * OBJECT_SIZE + row.first_extent * EXTENT_SIZE
    raw[extent + 16 : extent + 20] = (1000).to_bytes(4, "little")
    found = steps_of([access(first, 0, GRAIN, 0), access(second, 0, GRAIN, 1)], ObjectMap(bytes(raw)))
    assert [one.row.digest for one in found] == [digest_of(second)]


# -- what makes an object whole -------------------------------------------------------------------------------------------------------


def whole(maker: Maker) -> ObjectMap:
    return ObjectMap(build_object_map([maker.rows[name] for name in sorted(maker.rows)], maker.packs))


def test_what_an_object_lacks_comes_after_all_else_where_most_of_it_is_touched(maker: Maker) -> None:
    first, second = noise(64 * FRAME, 1), noise(64 * FRAME, 2)
    pack(maker, first, second)
    steps = steps_of([access(first, 0, 63 * FRAME, 5), access(second, FRAME, 64 * FRAME, 9, SELDOM)], whole(maker))
    assert [(found.frame, found.at) for found in steps if not found.share] == [(63, 5)], "what few starts touch makes nothing whole"
    plan = Plan(steps)
    assert plan.content == 63 * FRAME
    assert 62 in plan
    assert 63 not in plan, "the profile knows nothing of it: who reads there is read ahead as ever"
    taken = frames(plan.take(1 << 40, until=FOREVER, rare=False))
    assert taken == list(range(63))
    assert frames(plan.take(1 << 40, until=FOREVER, rare=True)) == [*range(65, 128), 63]


def test_of_what_half_is_touched_nothing_more_is_fetched(maker: Maker) -> None:
    large, rest = noise(16 * FRAME, 1), noise(100 * FRAME, 2)
    pack(maker, large, rest)
    steps = steps_of([access(large, 0, 11 * FRAME, 0), access(rest, 0, 100 * FRAME, 0)], whole(maker))
    assert len(steps) == 111
    more = steps_of([access(large, 0, 14 * FRAME, 0), access(rest, 0, 100 * FRAME, 0)], whole(maker))
    assert frames(found for found in more if not found.share) == [14, 15]


def test_little_is_fetched_to_make_objects_whole_and_for_those_first_that_lack_least(maker: Maker) -> None:
    lacks = {1: 2, 2: 1, 3: 4}
    large = {seed: noise(20 * FRAME, seed) for seed in lacks}
    filler = noise(64 * FRAME, 9)
    pack(maker, *large.values(), filler)
    accesses = [access(data, lacks[seed] * FRAME, 20 * FRAME, 0) for seed, data in large.items()]
    content = sum(20 - lack for lack in lacks.values())
    objects = whole(maker)
    assert not [found for found in steps_of(accesses[2:], objects) if not found.share]
    steps = steps_of([*accesses, access(filler, 0, 64 * FRAME, 0)], objects)
    assert sum(1 for found in steps if not found.share) == (content + 64) // REST == 3
    assert [found.frame for found in steps if not found.share] == [0, 1, 20]


def test_a_map_that_is_damaged_where_nobody_has_read_makes_nothing_whole(maker: Maker) -> None:
    large = noise(64 * FRAME)
    pack(maker, large)
    raw = bytearray(build_object_map(list(maker.rows.values()), maker.packs))
    extent = HEADER_SIZE + OBJECT_SIZE + 63 * EXTENT_SIZE
    raw[extent + 16 : extent + 20] = (1000).to_bytes(4, "little")
    assert frames(steps_of([access(large, 0, 60 * FRAME, 0)], ObjectMap(bytes(raw)))) == list(range(60))


# -- the order ------------------------------------------------------------------------------------------------------------------------


def test_what_most_starts_touch_comes_first_and_the_rest_where_that_is_wanted() -> None:
    plan = Plan([step(1, 0, SELDOM), step(2, 1), step(3, 2, OFTEN - 1), step(4, 3, OFTEN)])
    assert plan.stored == 200
    assert frames(plan.take(1000, until=FOREVER, rare=True)) == [2, 4]
    assert plan.is_over(rare=False)
    assert not plan.is_over(rare=True)
    assert plan.take(1000, until=FOREVER, rare=False) == []
    assert frames(plan.take(1000, until=FOREVER, rare=True)) == [1, 3]
    assert plan.is_over(rare=True)


def test_no_more_is_handed_out_than_is_asked_for_and_nothing_that_is_needed_later() -> None:
    plan = Plan([step(number, 1000 * number) for number in range(10)])
    assert frames(plan.take(250, until=FOREVER, rare=False)) == [0, 1]
    assert frames(plan.take(1, until=FOREVER, rare=False)) == [2], "one at least"
    assert frames(plan.take(1000, until=5000, rare=False)) == [3, 4, 5]
    assert plan.take(1000, until=5999, rare=True) == []
    assert not plan.is_over(rare=False)


def test_the_plan_goes_on_from_a_reader_that_is_far_ahead_and_comes_back_for_the_rest() -> None:
    big = FAR // 4
    plan = Plan([step(number, number, stored=big) for number in range(12)])
    assert frames(plan.take(big, until=FOREVER, rare=False)) == [0]
    plan.reach(5)
    assert frames(plan.take(big, until=FOREVER, rare=False)) == [1], "what lies between comes in a moment anyhow"
    plan.reach(9)
    plan.reach(3)
    plan.reach(1000)
    assert frames(plan.take(100 * big, until=FOREVER, rare=False)) == [9, 10, 11]
    assert frames(plan.take(100 * big, until=FOREVER, rare=False)) == [2, 3, 4, 5, 6, 7, 8]
    assert plan.is_over(rare=True)


def test_what_failed_is_handed_out_once_more_and_then_left_to_who_reads_it() -> None:
    plan = Plan([step(1, 0), step(2, 1)])
    taken = plan.take(1000, until=FOREVER, rare=False)
    assert plan.put_back(taken[:1]) == 0
    again = plan.take(1000, until=FOREVER, rare=False)
    assert frames(again) == [1]
    assert plan.put_back(again) == 200
    assert plan.is_over(rare=True)


def test_what_lies_side_by_side_is_one_get_and_gets_are_in_the_order_of_need() -> None:
    near, far = GAP, GAP + 1
    places = [10_000_000, 0, 500, 100 + near, 10_000_100 + far, 300 + near]
    plan = Plan([step(number, number, offset=place) for number, place in enumerate(places)])
    gets = []
    while not plan.is_over(rare=False):
        gets.append(frames(got(plan, 1000)))
    assert gets == [[0], [1, 2, 3, 5], [4]]


def test_a_get_looks_no_further_than_it_is_told_to_and_is_no_larger() -> None:
    plan = Plan([step(number, number, offset=100 * number) for number in range(12)])
    assert frames(plan.peek(400, limit=MIB, until=FOREVER, rare=False)) == [0, 1, 2, 3]
    assert frames(got(plan, 400)) == [0, 1, 2, 3]
    assert frames(got(plan, 400, limit=200)) == [4, 5]
    assert not plan.is_over(rare=True)
    assert frames(got(plan, 400, until=0)) == [6, 7], "it is made already"
    assert got(plan, 400, until=7) == []
    assert frames(got(plan, 400, until=9)) == [8, 9]


shares = st.sampled_from([SELDOM, OFTEN - 1, OFTEN, EVERY_START])
plans = st.lists(st.tuples(st.integers(0, 50), shares, st.integers(1, 3 * FAR)), max_size=30)
moves = st.lists(st.tuples(st.sampled_from(["take", "reach", "rare"]), st.integers(0, 5 * FAR), st.integers(0, 60)), max_size=40)


@given(plans, moves)
@settings(deadline=None)
def test_whatever_readers_do_each_step_comes_exactly_once(raw: list[tuple[int, int, int]], story: list[tuple[str, int, int]]) -> None:
    raw = sorted(raw)
    steps = [step(number, at, share, stored) for number, (at, share, stored) in enumerate(raw)]
    plan = Plan(steps)
    seen: list[Step] = []
    for what, amount, at in story:
        if what == "reach":
            plan.reach(at)
            continue
        rare = what == "rare"
        found = plan.take(amount, until=at, rare=rare)
        assert all(one.at <= at for one in found)
        assert len(found) < 2 or sum(one.stored for one in found) <= amount
        assert rare or all(one.share >= OFTEN for one in found)
        assert found == sorted(found, key=lambda one: one.at) or {one.share >= OFTEN for one in found} == {True}
        seen += found
    while found := plan.take(MIB, until=FOREVER, rare=True):
        seen += found
    assert plan.is_over(rare=True)
    assert sorted(frames(seen)) == list(range(len(steps)))


@given(plans)
@settings(deadline=None)
def test_undisturbed_the_order_is_that_of_need(raw: list[tuple[int, int, int]]) -> None:
    steps = [step(number, at, share, stored) for number, (at, share, stored) in enumerate(sorted(raw))]
    plan = Plan(steps)
    seen: list[Step] = []
    while found := plan.take(MIB, until=FOREVER, rare=True):
        seen += found
    assert seen == sorted(steps, key=lambda one: (one.share < OFTEN, one.at, one.frame))
    assert plan.content == sum(one.length for one in steps if one.share >= OFTEN)
