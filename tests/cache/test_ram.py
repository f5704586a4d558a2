"""The RAM tier: bounded, least recently used goes first, what is being filled stays."""

from imagefs.cache.ram import IN_FLIGHT, RamCache, Slab


def _landed(cache: RamCache, name: str, size: int = 100) -> Slab:
    slab = Slab(name, (0, size))
    cache.add(slab)
    cache.landed(slab, slab.set_ready(0))
    return slab


def test_the_least_recently_used_slab_goes_first() -> None:
    cache = RamCache(300)
    first = _landed(cache, "a")
    _landed(cache, "b")
    _landed(cache, "c")
    cache.touch(first)
    _landed(cache, "d")
    assert cache.get("b") is None
    assert cache.get("a") is first
    assert (cache.used, cache.evicted, len(cache)) == (300, 100, 3)


def test_a_slab_in_flight_is_not_evicted_and_a_view_outlives_eviction() -> None:
    cache = RamCache(100)
    filling = Slab("filling", (0, 50, 100))
    cache.add(filling)
    filling.state[1] = IN_FLIGHT
    filling.in_flight = 1
    cache.landed(filling, filling.set_ready(0))
    kept = _landed(cache, "b")
    kept.view[:] = b"x" * 100
    view = kept.view[10:20]
    _landed(cache, "c")
    assert cache.get("filling") is filling
    assert cache.get("b") is None
    assert bytes(view) == b"x" * 10


def test_dropping_twice_counts_once() -> None:
    cache = RamCache(1000)
    slab = _landed(cache, "a")
    cache.drop(slab)
    cache.drop(slab)
    assert cache.used == 0


def test_pieces_are_found_by_their_bounds() -> None:
    slab = Slab("a", (0, 10, 20, 25))
    assert slab.pieces(0, 1) == (0, 1)
    assert slab.pieces(9, 11) == (0, 2)
    assert slab.pieces(10, 20) == (1, 2)
    assert slab.pieces(24, 25) == (2, 3)
