"""Buffers that go round: what a reader sees never changes, whoever gets the buffer next."""

import gc
import mmap
import threading
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from imagefs.cache.ram import RamCache
from imagefs.cache.slab import POOL_MAX, READY, SLAB_MAX, Pool, Slab

MIB = 1024 * 1024


def _filled(pool: Pool, name: int) -> Slab:
    """A slab whose bytes are all ``name``, in a buffer that goes round."""
    slab = Slab(name, (0, SLAB_MAX))
    slab.fill(pool)
    slab.view[:] = bytes([name]) * SLAB_MAX
    slab.set_ready(0)
    return slab


def test_a_buffer_serves_another_slab_when_its_own_is_gone() -> None:
    pool = Pool()
    slab = _filled(pool, 1)
    buffer = id(slab.buffer)
    del slab
    assert len(pool) == 1
    second = Slab(2, (0, SLAB_MAX))
    second.fill(pool)
    assert id(second.buffer) == buffer
    assert not len(pool)


@pytest.mark.parametrize("hold", ["view", "slice", "cast", "bytes of it"])
def test_a_buffer_that_somebody_can_see_serves_nobody_else(hold: str) -> None:
    pool = Pool()
    slab = _filled(pool, 1)
    held = {"view": slab.view, "slice": slab.view[5:9], "cast": slab.view[:8].cast("Q"), "bytes of it": slab.view[1:5][1:2]}[hold]
    del slab
    gc.collect()
    assert not len(pool)
    _filled(pool, 2)
    assert set(held.cast("B")) == {1}


def test_a_thread_that_reads_on_keeps_the_buffer() -> None:
    pool = Pool()
    slab = _filled(pool, 1)
    begun, go = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def look(view: memoryview) -> None:
        begun.set()
        assert go.wait(10)
        seen.append(bytes(view))

    thread = threading.Thread(target=look, args=(slab.view[:100],))
    thread.start()
    assert begun.wait(10)
    del slab
    other = _filled(pool, 2)
    go.set()
    thread.join()
    assert seen == [b"\1" * 100]
    assert other.view[0] == 2


def test_only_slabs_that_are_filled_whole_and_of_full_size_take_and_give_buffers() -> None:
    pool = Pool()
    Slab(1, (0, SLAB_MAX)).set_ready(0)
    assert not len(pool), "it was not filled whole"
    small = Slab(2, (0, MIB))
    small.fill(pool)
    del small
    assert not len(pool), "it is of another size"
    tiny = Slab(3, (0, 100))
    tiny.fill(pool)
    assert isinstance(tiny.buffer, bytearray)
    _filled(pool, 4)
    fresh = Slab(5, (0, SLAB_MAX))
    assert not any(fresh.view[:4096]), "bytes that nobody has written are zeros, for holes"


def test_the_pool_is_bounded_and_can_be_emptied() -> None:
    pool = Pool()
    slabs = [_filled(pool, number) for number in range(POOL_MAX + 3)]
    slabs.clear()
    assert len(pool) == POOL_MAX
    pool.clear()
    assert pool.take() is None


def test_a_large_file_that_comes_from_disk_needs_little_memory() -> None:
    cache = RamCache(64 * SLAB_MAX)
    buffers: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
    for number in range(60):
        slab = Slab(number, (0, SLAB_MAX))
        cache.add(slab)
        cache.fill(slab)
        assert isinstance(slab.buffer, mmap.mmap)
        buffers.add(slab.buffer)
        cache.landed(slab, slab.set_ready(0, saved=True))
        cache.touch(slab)
    assert len(buffers) <= 64 // 16 + 2
    assert cache.used == sum(slab.weight for slab in cache._slabs.values())


def test_what_came_from_the_store_and_what_was_not_read_yet_keeps_its_place() -> None:
    cache = RamCache(64 * SLAB_MAX)
    for number in range(30):
        slab = Slab(number, (0, SLAB_MAX))
        cache.add(slab)
        cache.fill(slab)
        cache.landed(slab, slab.set_ready(0, ahead=number < 10, saved=number < 20))
    assert all(cache.get(number) is not None for number in (*range(10), *range(20, 30)))
    assert any(cache.get(number) is None for number in range(10, 20))


def test_what_was_dropped_does_not_count_any_more() -> None:
    cache = RamCache(64 * SLAB_MAX)

    def fill(number: int) -> None:
        slab = Slab(number, (0, SLAB_MAX))
        cache.add(slab)
        cache.fill(slab)
        cache.landed(slab, slab.set_ready(0, saved=True))

    for number in range(4):
        fill(number)
    cache.clear()
    for number in range(10, 15):
        fill(number)
    assert all(cache.get(number) is not None for number in range(10, 15))


class RoundMachine(RuleBasedStateMachine):
    """Slabs are filled, seen, saved and dropped in any order: every view shows what it showed at first."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = RamCache(16 * SLAB_MAX)
        self.names = 0

    views = Bundle("views")

    @rule(target=views, at=st.sampled_from([0, SLAB_MAX - 64]), saved=st.booleans(), ahead=st.booleans())
    def fill(self, at: int, saved: bool, ahead: bool) -> tuple[int, memoryview]:
        self.names += 1
        name = self.names
        slab = Slab(name, (0, SLAB_MAX))
        self.cache.add(slab)
        self.cache.fill(slab)
        slab.view[at : at + 64] = bytes([name % 251]) * 64
        self.cache.landed(slab, slab.set_ready(0, ahead=ahead, saved=saved))
        return name, slab.view[at : at + 64]

    @rule(view=consumes(views))
    def let_go(self, view: tuple[int, memoryview]) -> None:
        assert set(view[1]) == {view[0] % 251}

    @rule(view=views)
    def look(self, view: tuple[int, memoryview]) -> None:
        assert set(view[1]) == {view[0] % 251}
        slab = self.cache.get(view[0])
        if slab is not None and slab.unsaved:
            self.cache.saved(slab, SLAB_MAX)

    @rule(view=views)
    def drop(self, view: tuple[int, memoryview]) -> None:
        slab = self.cache.get(view[0])
        if slab is not None:
            self.cache.drop(slab)

    @rule()
    def shrink(self) -> None:
        self.cache.shrink(SLAB_MAX)

    @invariant()
    def counts_are_right(self) -> None:
        known = [slab for name in range(self.names + 1) if (slab := self.cache.get(name)) is not None]
        assert self.cache.used == sum(slab.weight for slab in known) <= 16 * SLAB_MAX
        assert all(slab.state[0] >= READY for slab in known)


TestRound = RoundMachine.TestCase
TestRound.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
