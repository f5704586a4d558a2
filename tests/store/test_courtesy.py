"""A store whose calls wait while somebody is in need of the link."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.store import courtesy
from imagefs.store.base import ObjectStore
from imagefs.store.courtesy import PATIENCE, Courteous
from imagefs.store.opening import open_store
from imagefs.store.profiles import fetch, publish
from tests.format.profiles import MANIFEST
from tests.store.conformance import StoreConformance
from tests.store.faulty import FaultyStore
from tests.store.starts import start


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[ObjectStore]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    yield store
    store.close()


class TestCourteous(StoreConformance):
    @pytest.fixture
    def store(self, inner: ObjectStore) -> ObjectStore:
        return Courteous(inner, lambda: False)


class Clock:
    """Jumps where somebody sleeps; ``reading`` is whether a reader is in need of the link then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.readers: list[tuple[float, float]] = []
        self.slept = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1

    def reading(self) -> bool:
        return any(begin <= self.now < end for begin, end in self.readers)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(courtesy, "time", made)
    return made


def test_nothing_is_asked_while_a_reader_waits(inner: ObjectStore, clock: Clock) -> None:
    clock.readers = [(0, 5.0), (5.2, 9.0)]
    watched = FaultyStore(inner)
    store = Courteous(watched, clock.reading)
    store.put_if_absent("packs/a", b"content")
    assert 5.0 <= clock.now < 5.2
    clock.now = 6.0
    assert store.get("packs/a") == b"content"
    assert 9.0 <= clock.now < 9.2
    assert watched.calls == [("put_if_absent", "packs/a"), ("get", "packs/a")]


def test_who_always_reads_publishes_in_the_end(inner: ObjectStore, clock: Clock) -> None:
    clock.readers = [(0, float("inf"))]
    store = Courteous(inner, clock.reading)
    assert publish(store, start(1))
    assert PATIENCE <= clock.now < PATIENCE + 1, "all that it takes together"
    assert fetch(inner, MANIFEST, None) == start(1)


def test_who_waits_does_not_see_an_old_answer(inner: ObjectStore) -> None:
    busy, asked = threading.Event(), threading.Event()
    busy.set()

    def is_busy() -> bool:
        asked.set()
        return busy.is_set()

    store = Courteous(inner, is_busy)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(store.head("packs/a").size))
    thread.start()
    assert asked.wait(10)
    inner.put_if_absent("packs/a", b"content")
    busy.clear()
    thread.join(10)
    assert found == [7]


def test_closing_leaves_it_open_for_others(inner: ObjectStore) -> None:
    Courteous(inner, lambda: False).close()
    assert inner.put_if_absent("packs/a", b"")
