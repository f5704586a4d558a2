"""What lies near a miss and how much of it to fetch along: compared with the map gone through frame by frame, and with the books."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagefs.cache.neighbours import _STEPS_MAX, CREDIT, EARNED, REACH_MAX, REACH_MIN, Near, Neighbours, Reach
from imagefs.digest import digest_of
from imagefs.errors import IntegrityError
from imagefs.format.objectmap import EXTENT_SIZE, HEADER_SIZE, HOLE, OBJECT_SIZE, Extent, ObjectMap, build_object_map
from imagefs.format.pack import FrameEntry
from tests.format.test_objectmap import Item, Packs, maps

KIB = 1024
MIB = 1024 * KIB
FAR = 0.02

SMALL = "small"
MIDDLE = "middle"
LARGE = "large"


class Owned(NamedTuple):
    """What a frame is of: small objects, or one object with several frames, and which."""

    kind: str
    name: bytes = b""


@dataclass
class Plan:
    """A map in the making, and for each frame what it is of: what the tests compare with."""

    items: list[Item] = field(default_factory=list)
    packs: Packs = field(default_factory=list)
    owned: list[Owned] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)

    def pack(self, *contents: list[int] | tuple[int, ...], holes: int = 0, stored: int | None = None) -> None:
        """Add a pack: a list is the sizes of small objects that share a frame, a tuple the lengths of one object's frames.

        Each object with several frames has ``holes`` of 1 MiB at its end; ``stored`` is how many bytes each frame takes at most.
        """
        number, offset = len(self.packs), 0
        frames: list[FrameEntry] = []
        for content in contents:
            lengths = (sum(content),) if isinstance(content, list) else content
            first = len(self.owned)
            if isinstance(content, list):
                self._share(content, first)
            else:
                self._own(content, first, holes)
            for length in lengths:
                size = min(length, stored or length)
                frames.append(FrameEntry(digest_of(b"f%d-%d" % (number, len(frames))), offset, size, length, 0))
                self.stored.append(size)
                offset += size
        self.packs.append((digest_of(b"p%d" % number), digest_of(b"k%d" % number), offset + 1, frames))

    def _share(self, sizes: list[int], frame: int) -> None:
        at = 0
        for size in sizes:
            self._item(size, [Extent(0, size, frame, at)])
            at += size
        self.owned.append(Owned(SMALL))

    def _own(self, lengths: tuple[int, ...], first: int, holes: int) -> None:
        extents, at = [], 0
        for index, length in enumerate(lengths):
            extents.append(Extent(at, length, first + index, 0))
            at += length
        for _ in range(holes):
            extents.append(Extent(at, MIB, HOLE, 0))
            at += MIB
        name = self._item(at, extents)
        self.owned += [Owned(MIDDLE if at <= MIB else LARGE, name)] * len(lengths)

    def _item(self, size: int, extents: list[Extent]) -> bytes:
        digest = digest_of(b"o%d" % len(self.items))
        self.items.append(Item(digest, size, extents))
        return digest

    def neighbours(self) -> Neighbours:
        built = Neighbours(ObjectMap(build_object_map(sorted(self.items, key=lambda item: item.digest), self.packs)))
        before = built.is_built
        built.build()
        assert (before, built.is_built) == (False, True)
        return built


_LENGTHS = st.integers(1, 256 * KIB)
_CONTENTS = st.one_of(
    st.lists(st.integers(1, 20 * KIB), min_size=1, max_size=12),
    st.lists(_LENGTHS, min_size=2, max_size=4).map(tuple),
    st.lists(st.just(256 * KIB), min_size=4, max_size=12).map(tuple),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Packs in which frames of small objects lie among objects of a few frames and large ones, some with holes."""
    plan = Plan()
    for _ in range(draw(st.integers(1, 6))):
        contents = draw(st.lists(_CONTENTS, min_size=1, max_size=5))
        plan.pack(*contents, holes=draw(st.sampled_from([0, 0, 1])), stored=draw(st.sampled_from([None, 100, 64 * KIB])))
    return plan


def _model(plan: Plan, frame: int, reach: int) -> set[tuple[int, int, bytes]]:
    """Say what lies near, as (distance, frame, object): going outwards, what is of a large object is stepped over.

    An object of a few frames is met once, and counts in full. The frame's own object is stepped over.
    """
    near = set()
    own = plan.owned[frame].name
    for step in (1, -1):
        distance, met, at = 0, set(), frame + step
        while 0 <= at < len(plan.owned):
            kind, name = plan.owned[at]
            if kind == SMALL or (kind == MIDDLE and name not in met and name != own):
                whole = (stored for stored, owned in zip(plan.stored, plan.owned, strict=True) if owned.name == name)
                distance += plan.stored[at] if kind == SMALL else sum(whole)
                met.add(name)
                if distance > reach:
                    break
                near.add((distance, at, name))
            at += step
    return near


@given(plans(), st.integers(0, 2 * MIB), st.data())
def test_what_lies_near_is_what_a_walk_from_frame_to_frame_finds(plan: Plan, reach: int, data: st.DataObject) -> None:
    neighbours = plan.neighbours()
    frame = data.draw(st.integers(0, len(plan.owned) - 1))
    found = neighbours.around(frame, reach)
    others = [(distance, at, row.digest if row else b"") for distance, at, row in found]
    assert set(others) == _model(plan, frame, reach)
    assert len(set(others)) == len(others)
    assert [near.distance for near in found] == sorted(near.distance for near in found)
    for distance, at, row in found:
        assert at != frame
        assert 0 < distance <= reach
        assert plan.owned[at].kind == (SMALL if row is None else MIDDLE)
        assert row is None or row.size <= MIB
    assert neighbours.is_large(frame) == (plan.owned[frame].kind != SMALL)


def test_the_nearest_comes_first_whichever_side_it_is_on() -> None:
    plan = Plan()
    plan.pack([30], [5], [20], [10], [10], [100])
    assert plan.neighbours().around(2, 60) == [Near(5, 1, None), Near(10, 3, None), Near(20, 4, None), Near(35, 0, None)]


def test_frames_of_large_objects_lie_between_and_cost_nothing() -> None:
    plan = Plan()
    plan.pack([7])
    plan.pack((256 * KIB,) * 100)
    plan.pack([9])
    assert plan.neighbours().around(0, 9) == [Near(9, 101, None)]
    assert plan.neighbours().around(0, 8) == []


@pytest.mark.parametrize(("between", "found"), [(_STEPS_MAX - 1, True), (_STEPS_MAX, False)])
def test_looking_ends_however_many_frames_lie_between(between: int, found: bool) -> None:
    plan = Plan()
    plan.pack([7])
    plan.pack((256 * KIB,) * between)
    plan.pack([7])
    neighbours = plan.neighbours()
    assert bool(neighbours.around(0, MIB)) == bool(neighbours.around(between + 1, MIB)) == found


@given(maps())
def test_owners_are_objects_with_several_extents_that_have_the_frame(made: tuple[list[Item], Packs]) -> None:
    items, packs = made
    owners = ObjectMap(build_object_map(items, packs)).owners()
    assert len(owners) == sum(len(pack[3]) for pack in packs)
    for frame, owner in enumerate(owners):
        having = {
            number for number, item in enumerate(items, 1) if len(item.extents) > 1 and frame in {extent.frame for extent in item.extents}
        }
        assert owner in (having or {0})


@given(maps(), st.data())
def test_a_map_that_was_touched_gives_an_integrity_error_and_nothing_worse(made: tuple[list[Item], Packs], data: st.DataObject) -> None:
    raw = bytearray(build_object_map(*made))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(HEADER_SIZE, len(raw) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    objects = ObjectMap(bytes(raw))
    neighbours = Neighbours(objects)
    try:
        neighbours.build()
    except IntegrityError:
        assert not neighbours.is_built
        return
    for frame in range(objects.frame_count):
        try:
            found = neighbours.around(frame, 4 * KIB)
        except IntegrityError:
            continue
        # What an unsound row makes of an object may have no bytes that are stored: then it costs none.
        assert all(near.frame != frame and 0 <= near.distance <= 4 * KIB for near in found)


def test_a_frame_that_is_not_there_is_an_integrity_error() -> None:
    plan = Plan()
    plan.pack([10], (10, 10))
    raw = bytearray(build_object_map(sorted(plan.items, key=lambda item: item.digest), plan.packs))
    for number in range(3):
        at = HEADER_SIZE + 2 * OBJECT_SIZE + number * EXTENT_SIZE + 16
        raw[at : at + 4] = (3).to_bytes(4, "little")
    with pytest.raises(IntegrityError):
        Neighbours(ObjectMap(bytes(raw))).build()


# -- how far ------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 10), st.integers(0, 1 << 40))))
def test_the_reach_stays_within_its_bounds_whatever_it_is_told(told: list[tuple[float, float, int]]) -> None:
    reach = Reach()
    for seconds, latency, moved in told:
        reach.took(seconds, latency, moved)
        assert REACH_MIN <= reach.around(FAR) <= REACH_MAX


@given(st.lists(st.sampled_from([(1.0, FAR, 0), (0.0, FAR, 1 << 40)])))
def test_a_link_that_is_not_known_or_answers_at_once_has_no_reach(told: list[tuple[float, float, int]]) -> None:
    reach = Reach()
    for seconds, latency, moved in told:
        reach.took(seconds, latency, moved)
    assert [reach.around(latency) for latency in (None, 0.0, 0.0001, 0.0049)] == [0] * 4
    assert reach.around(0.005)


def test_the_reach_grows_while_what_it_brings_comes_in_time_and_shrinks_where_it_does_not() -> None:
    reach = Reach()
    first = reach.around(FAR)
    reach.took(2.9 * FAR, FAR, first)
    second = reach.around(FAR)
    assert first < second <= 2 * first
    reach.took(3.5 * FAR, FAR, second)
    assert reach.around(FAR) == second
    reach.took(2.9 * FAR, FAR, second - 1)
    assert reach.around(FAR) == second, "less than the reach says nothing of whether more would come in time"
    reach.took(4.1 * FAR, FAR, 1)
    assert second // 2 <= reach.around(FAR) < second
    for _ in range(20):
        reach.took(5 * FAR, FAR, reach.around(FAR))
    assert reach.around(FAR) == REACH_MIN
    for _ in range(20):
        reach.took(FAR, FAR, reach.around(FAR))
    assert reach.around(FAR) == REACH_MAX


@example(10e6)
@example(25e6)
@given(st.floats(1e6, 1e9))
def test_the_reach_settles_where_it_takes_a_few_times_as_long_as_one_small_get(rate: float) -> None:
    reach = Reach()
    seconds = FAR
    for _ in range(40):
        moved = 2 * reach.around(FAR)
        seconds = FAR + moved / rate
        reach.took(seconds, FAR, moved)
    bound = {REACH_MIN: seconds > 2 * FAR, REACH_MAX: seconds < 4 * FAR}
    assert bound.get(reach.around(FAR), 2 * FAR < seconds <= 4.01 * FAR)


# -- whether it is of use -----------------------------------------------------------------------------------------------------------

_MISSED = "missed"
_USED = "used"
_ALONG = "along"
_BATCH = 4 * MIB


@given(st.lists(st.tuples(st.sampled_from([_MISSED, _USED, _ALONG, _ALONG]), st.integers(0, _BATCH)), max_size=200), st.integers(0, CREDIT))
def test_what_is_spent_is_what_there_was_half_of_what_was_missed_and_a_multiple_of_what_was_used(
    told: list[tuple[str, int]], before: int
) -> None:
    """As the fetcher does: it spends while there is credit, and so what the last spending takes may go beyond."""
    neighbours = Plan().neighbours()
    neighbours.spend(before)
    spent, missed, used = before, 0, 0
    for what, count in told:
        if what == _MISSED:
            neighbours.missed(count)
            missed += count
        elif what == _USED:
            # No more than was fetched along can be used.
            share = min(count, spent - used)
            neighbours.used(share)
            used += share
        elif neighbours.credit > 0:
            assert spent < CREDIT + missed / 2 + EARNED * used
            neighbours.spend(count)
            spent += count
        assert neighbours.credit <= CREDIT
        assert spent <= CREDIT + missed / 2 + EARNED * used + _BATCH


def test_what_is_used_earns_a_multiple_of_itself() -> None:
    neighbours = Plan().neighbours()
    neighbours.spend(CREDIT)
    neighbours.used(MIB)
    neighbours.missed(MIB)
    assert neighbours.credit == EARNED * MIB + MIB // 2


def test_a_reader_that_uses_nothing_gets_half_as_much_again_and_one_that_uses_all_never_runs_out() -> None:
    wasted, useful = Plan().neighbours(), Plan().neighbours()
    along = 0
    for _ in range(1000):
        wasted.missed(MIB)
        useful.missed(MIB)
        if wasted.credit > 0:
            wasted.spend(MIB)
            along += MIB
        assert useful.credit > 0
        useful.spend(MIB)
        useful.used(MIB // 4)
    assert abs(along - CREDIT - 500 * MIB) <= MIB
    assert useful.credit >= CREDIT - MIB
