"""The RAM tier: bounded, what is read once goes before what is read again, and what is being filled stays."""

import tracemalloc
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from imagefs.cache.ram import RamCache
from imagefs.cache.slab import IN_FLIGHT, MISSING, Slab

UNIT = 1000
"""What the figures below stand for, in bytes: a slab takes about one of them besides what it holds."""


def _slab(name: object, *sizes: int) -> Slab:
    """Return a slab of pieces with which it takes ``sizes`` units of memory, itself included."""
    own = Slab(name, range(len(sizes) + 1)).weight
    return Slab(name, (0, *(sum(sizes[:count]) * UNIT - own for count in range(1, len(sizes) + 1))))


def _landed(cache: RamCache, name: str, size: int = 100) -> Slab:
    """Land a slab that nobody has read."""
    slab = _slab(name, size)
    cache.add(slab)
    cache.landed(slab, slab.set_ready(0))
    return slab


def _read(cache: RamCache, name: str, size: int = 100) -> bool:
    """Read a slab in several requests; return whether it was there."""
    slab = cache.get(name)
    found = slab is not None
    if slab is None:
        slab = _landed(cache, name, size)
    for _ in range(8):
        cache.touch(slab)
    return found


def _names(cache: RamCache, names: Iterable[str]) -> str:
    return "".join(name for name in names if cache.get(name) is not None)


def test_of_slabs_that_were_read_once_the_oldest_goes_first() -> None:
    cache = RamCache(300 * UNIT)
    for name in "abcd":
        _read(cache, name)
    assert _names(cache, "abcd") == "bcd"
    assert (cache.used, cache.evicted, len(cache)) == (300 * UNIT, 100 * UNIT, 3)


def test_a_slab_that_is_read_again_outlives_a_scan_and_one_read_in_many_requests_does_not() -> None:
    cache = RamCache(1000 * UNIT)
    _read(cache, "hot")
    _read(cache, "once")
    _read(cache, "x")
    assert _read(cache, "hot")
    for number in range(100):
        _read(cache, f"scan {number}")
    assert cache.get("hot") is not None
    assert cache.get("once") is None


def test_a_slab_that_comes_back_soon_after_it_went_is_kept_through_a_scan() -> None:
    cache = RamCache(1000 * UNIT)
    for number in range(15):
        _read(cache, f"first {number}")
    assert not _read(cache, "first 0")
    for number in range(50):
        _read(cache, f"second {number}")
    assert cache.get("first 0") is not None
    # What went too long ago is not remembered.
    assert not _read(cache, "first 1")
    for number in range(50):
        _read(cache, f"third {number}")
    assert cache.get("first 1") is None
    # All of them were used.
    assert cache._fresh == 0


def test_what_is_no_longer_read_leaves_the_main_queue() -> None:
    cache = RamCache(1000 * UNIT)
    for number in range(8):
        _read(cache, f"old {number}")
    _landed(cache, "time passes")
    for number in range(8):
        assert _read(cache, f"old {number}")
    for round_ in range(8):
        for number in range(12):
            _read(cache, f"new {number}")
            if round_ > 5:
                assert cache.get(f"new {number}") is not None
        cache.shrink(100 * UNIT)
    assert not _names(cache, [f"old {number}" for number in range(8)])


def test_what_is_all_used_again_can_still_go() -> None:
    cache = RamCache(1000 * UNIT)
    _read(cache, "a")
    _landed(cache, "time passes").in_flight = 1
    _read(cache, "a")
    assert cache.shrink(100 * UNIT) == 100 * UNIT
    assert cache.get("a") is None


def _in_main(cache: RamCache, names: str) -> list[Slab]:
    """Read slabs often enough to bring them into the main queue, in their order, and nothing else."""
    for name in names:
        _read(cache, name)
    filling = _landed(cache, "time passes", 200)
    filling.in_flight = 1
    for name in names:
        _read(cache, name)
    _read(cache, "once")
    assert cache.shrink(1) == 100 * UNIT
    filling.in_flight = 0
    cache.drop(filling)
    slabs = [slab for name in names if (slab := cache.get(name)) is not None]
    assert len(cache) == len(slabs) == len(names)
    assert all(slab.main and not slab.hits for slab in slabs)
    return slabs


def test_uses_are_spent_one_at_a_time_in_the_main_queue_and_no_more_than_three_are_kept() -> None:
    cache = RamCache(1600 * UNIT)
    often, _ = _in_main(cache, "ab")
    for _ in range(10):
        cache.clock += 200 * UNIT
        cache.touch(often)
    assert often.hits == 3
    assert cache.shrink(1) == 100 * UNIT
    assert _names(cache, "ab") == "a"
    assert often.hits == 2


def test_the_main_queue_is_searched_past_what_is_being_filled() -> None:
    cache = RamCache(1600 * UNIT)
    for slab in _in_main(cache, "abc")[:2]:
        slab.in_flight = 1
    assert cache.shrink(200 * UNIT) == 100 * UNIT
    assert _names(cache, "abc") == "ab"
    assert cache.shrink(1) == 0


def test_requests_at_one_time_are_one_use_however_small_the_limit() -> None:
    cache = RamCache(10)
    slab = Slab("a", (0, 100))
    cache.add(slab)
    for _ in range(2):
        cache.touch(slab)
    assert (slab.hits, slab.due) == (1, 1)


def test_what_was_read_ahead_stays_until_its_reader_comes() -> None:
    cache = RamCache(1000 * UNIT)
    _landed(cache, "ahead")
    for number in range(30):
        _read(cache, f"scan {number}")
    assert _read(cache, "ahead")
    for number in range(30, 60):
        _read(cache, f"scan {number}")
    assert cache.get("ahead") is None


def test_reading_ahead_of_a_scan_loses_nothing_that_is_still_to_be_read() -> None:
    cache = RamCache(1000 * UNIT)
    for _ in range(2):
        for number in range(7):
            _read(cache, f"hot {number}")
        _landed(cache, "time passes")
    for number in range(100):
        _landed(cache, f"scan {number}")
        if number >= 2:
            assert _read(cache, f"scan {number - 2}")
    assert all(_read(cache, f"hot {number}") for number in range(7))


def test_what_was_read_ahead_for_nobody_takes_a_quarter_at_most_from_what_is_in_use() -> None:
    cache = RamCache(1000 * UNIT)
    for _ in range(2):
        for number in range(7):
            _read(cache, f"hot {number}")
        _landed(cache, "time passes")
    for number in range(50):
        _landed(cache, f"ahead {number}")
    assert len(_names(cache, (f"hot {number}" for number in range(7)))) == 7 * len("hot 0")
    assert cache.get("ahead 49") is not None
    assert cache.get("ahead 46") is None


def test_past_a_quarter_what_was_read_ahead_goes_in_the_order_in_which_it_came() -> None:
    cache = RamCache(1000 * UNIT)
    for name in "abcd":
        _landed(cache, name)
    for name in "ABCDEF":
        _read(cache, name)
    _read(cache, "G")
    assert _names(cache, "abcdABCDEFG") == "bcdABCDEFG"


def test_slabs_of_the_main_queue_that_are_on_disk_go_before_others_that_are_not() -> None:
    cache = RamCache(1600 * UNIT)
    _in_main(cache, "ab")[1].unsaved = 0
    for name in "cdefg":
        _read(cache, name)
    cache.shrink(1)
    assert _names(cache, "abcdefg") == "acdefg"


def test_a_slab_that_is_on_disk_does_not_go_because_more_of_it_landed() -> None:
    cache = RamCache(300 * UNIT)
    growing = _slab("growing", 100, 100)
    cache.add(growing)
    cache.landed(growing, growing.set_ready(0))
    cache.touch(growing)
    growing.unsaved = 0
    _read(cache, "a")
    _read(cache, "b")
    cache.landed(growing, growing.set_ready(1))
    assert _names(cache, ["growing", "a", "b"]) == "growingb"


def test_slabs_that_are_on_disk_go_first() -> None:
    cache = RamCache(300 * UNIT)
    for name in "abc":
        _read(cache, name)
    stored = cache.get("c")
    assert stored is not None
    stored.unsaved = 0
    _read(cache, "d")
    assert _names(cache, "abcd") == "abd"
    _read(cache, "e")
    assert _names(cache, "abcde") == "bde"


def test_what_is_on_disk_and_in_use_stays_and_so_does_what_was_read_ahead_from_there() -> None:
    cache = RamCache(300 * UNIT)
    for name in "abc":
        _read(cache, name)
    for name in "bc":
        slab = cache.get(name)
        assert slab is not None
        slab.unsaved = 0
        slab.in_flight = name == "b"
        slab.due = 0 if name == "c" else slab.due
    cache.shrink(100 * UNIT)
    assert _names(cache, "abc") == "bc"


def test_a_slab_in_flight_is_not_evicted_and_a_view_outlives_eviction() -> None:
    cache = RamCache(100 * UNIT)
    filling = _slab("filling", 50, 50)
    cache.add(filling)
    filling.state[1] = IN_FLIGHT
    filling.in_flight = 1
    cache.landed(filling, filling.set_ready(0))
    kept = _landed(cache, "b")
    kept.view[:] = b"x" * len(kept.view)
    view = kept.view[10:20]
    _landed(cache, "c")
    assert cache.get("filling") is filling
    assert cache.get("b") is None
    assert bytes(view) == b"x" * 10


def test_the_limit_can_change_and_bytes_can_be_given_up() -> None:
    cache = RamCache(1000 * UNIT)
    for name in "abcdefgh":
        _read(cache, name)
    assert cache.shrink(250 * UNIT) == 300 * UNIT
    assert (cache.used, cache.limit) == (500 * UNIT, 1000 * UNIT)
    cache.set_limit(200 * UNIT)
    assert (cache.used, cache.limit, cache.evicted) == (200 * UNIT, 200 * UNIT, 600 * UNIT)
    cache.set_limit(400 * UNIT)
    for name in "ijkl":
        _read(cache, name)
    assert cache.used == 400 * UNIT
    assert cache.shrink(10**9) == 400 * UNIT
    assert len(cache) == cache.used == 0


def test_a_slab_counts_before_anything_lands_in_it_and_goes_if_nothing_is_to() -> None:
    cache = RamCache(1000 * UNIT)
    filling, holes = Slab("filling", (0, 1)), Slab("holes", (0, 1))
    filling.in_flight = 1
    cache.add(filling)
    cache.add(holes)
    assert cache.used == 2 * holes.weight
    assert cache.shrink(10**9) == holes.weight
    assert _names(cache, ["filling", "holes"]) == "filling"
    assert cache.used == cache._small_used == cache._fresh == filling.weight
    cache.touch(filling)
    assert (cache.used, cache._fresh) == (filling.weight, 0)
    cache.discard(filling)
    filling.in_flight = 0
    cache.discard(filling)
    assert cache.used == cache._small_used == 0


def test_a_slab_weighs_what_a_process_grows_by() -> None:
    """With slabs of a few bytes nearly all of it is the objects that one consists of: they took many times the bound."""
    limit = 4 << 20
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache = RamCache(limit)
        for number in range(20000):
            slab = Slab(b"f" + number.to_bytes(40, "little"), (0, 10))
            cache.add(slab)
            cache.landed(slab, slab.set_ready(0))
        cache._ghosts.clear()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert limit / 2 < grown <= limit
    assert limit - 2048 < cache.used <= limit


def test_clearing_keeps_what_is_being_filled() -> None:
    cache = RamCache(1000 * UNIT)
    _read(cache, "a")
    _landed(cache, "b").in_flight = 1
    cache.clear()
    assert _names(cache, "ab") == "b"
    assert cache.used == 100 * UNIT


def test_dropping_twice_counts_once() -> None:
    cache = RamCache(1000 * UNIT)
    slab = _landed(cache, "a")
    cache.drop(slab)
    cache.drop(slab)
    assert cache.used == 0


def test_a_slab_that_takes_the_place_of_another_leaves_no_bytes_behind() -> None:
    cache = RamCache(1000 * UNIT)
    old, new = _landed(cache, "a"), _landed(cache, "a", 50)
    cache.landed(old, 10)
    cache.drop(old)
    assert cache.get("a") is new
    assert cache.used == 50 * UNIT


def test_pieces_are_found_by_their_bounds() -> None:
    slab = Slab("a", (0, 10, 20, 25))
    assert slab.pieces(0, 1) == (0, 1)
    assert slab.pieces(9, 11) == (0, 2)
    assert slab.pieces(10, 20) == (1, 2)
    assert slab.pieces(24, 25) == (2, 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 40), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_hot_set_of_half_the_bytes_survives_any_scan(hot: int, uses: int, random: object) -> None:
    cache = RamCache(100 * 2 * hot * UNIT)
    names = [f"hot {number}" for number in range(hot)]
    for _ in range(2):
        for name in names:
            _read(cache, name)
        _landed(cache, "time passes", 100 * hot // 4)
    fetched = 0
    for number in range(6 * hot):
        _read(cache, f"scan {number}")
        for name in random.sample(names, uses):  # type: ignore[attr-defined] # random.Random
            fetched += not _read(cache, name)
    assert fetched <= hot


class RamMachine(RuleBasedStateMachine):
    """Any order of calls: the counts are right, the limit holds but for what is in flight, and nothing in flight goes."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = RamCache(100 * UNIT)
        self.known: dict[int, Slab] = {}

    @rule(name=st.integers(0, 20), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), disk=st.booleans())
    def start(self, name: int, sizes: list[int], disk: bool) -> None:
        slab = self.cache.get(name)
        if slab is None:
            slab = Slab(name, [sum(sizes[:count]) * UNIT for count in range(len(sizes) + 1)])
            slab.unsaved = 0 if disk else slab.unsaved
            self.cache.add(slab)
            self.known[name] = slab
        for piece, state in enumerate(slab.state):
            if state == MISSING:
                slab.state[piece] = IN_FLIGHT
                slab.in_flight += 1
                break

    @precondition(lambda self: any(slab.in_flight for slab in self.known.values()))
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        slab = self.known[data.draw(st.sampled_from([name for name, slab in self.known.items() if slab.in_flight]))]
        piece = slab.state.index(IN_FLIGHT)
        slab.in_flight -= 1
        if fails:
            slab.state[piece] = MISSING
            if not slab.in_flight and not slab.landed:
                self.cache.drop(slab)
        else:
            self.cache.landed(slab, slab.set_ready(piece))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        self.cache.touch(self.known[data.draw(st.sampled_from(sorted(self.known)))])

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def use_again_later(self, data: st.DataObject) -> None:
        slab = self.known[data.draw(st.sampled_from(sorted(self.known)))]
        for _ in range(2):
            self.cache.clock += 100 * UNIT
            self.cache.touch(slab)

    @precondition(lambda self: any(slab.in_flight for slab in self.known.values()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """A fetch that hangs: its slab is forgotten while it is being filled."""
        name = data.draw(st.sampled_from([name for name, slab in self.known.items() if slab.in_flight]))
        self.cache.drop(self.known.pop(name))

    @rule(limit=st.integers(0, 200))
    def set_limit(self, limit: int) -> None:
        self.cache.set_limit(limit * UNIT)

    @rule(count=st.integers(0, 300))
    def shrink(self, count: int) -> None:
        before = self.cache.used
        given_up = self.cache.shrink(count * UNIT)
        assert given_up == before - self.cache.used
        assert given_up >= count * UNIT or all(slab.in_flight for slab in self._slabs())

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert all(slab.in_flight for slab in self._slabs())

    def _slabs(self) -> list[Slab]:
        return [slab for slab in self.known.values() if self.cache.get(slab.key) is slab]

    @invariant()
    def nothing_in_flight_is_gone(self) -> None:
        assert all(self.cache.get(slab.key) is slab for slab in self.known.values() if slab.in_flight)

    @invariant()
    def counts_are_right(self) -> None:
        cache, slabs = self.cache, self._slabs()
        assert len(cache) == len(slabs) == len(cache._small) + len(cache._main)
        assert cache.used == sum(slab.weight for slab in slabs)
        assert cache._small_used == sum(slab.weight for slab in slabs if not slab.main)
        assert cache._fresh == sum(slab.weight for slab in slabs if not slab.main and not slab.due)
        assert all((slab.key in cache._main) == slab.main != (slab.key in cache._small) for slab in slabs)
        assert cache._ghost_bytes == sum(cache._ghosts.values())
        assert not cache._ghosts.keys() & {slab.key for slab in slabs}
        assert all(0 <= slab.hits <= 3 for slab in slabs)

    @invariant()
    def the_limit_holds(self) -> None:
        """The one that landed last may stay, too; and what a slab takes before anything lands in it is not made room for at once."""
        idle = [slab for slab in self._slabs() if not slab.in_flight and slab.landed]
        new = sum(slab.weight for slab in self._slabs() if slab.in_flight and not slab.landed)
        assert self.cache.used - new <= self.cache.limit or len(idle) <= 1 or self._is_settled()

    def _is_settled(self) -> bool:
        """What was in flight when room was last made may have ended since by failing: room is made when something lands."""
        before = self.cache.used
        self.cache.set_limit(self.cache.limit)
        return self.cache.used <= self.cache.limit <= before or all(slab.in_flight for slab in self._slabs())


TestRamMachine = RamMachine.TestCase
TestRamMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
