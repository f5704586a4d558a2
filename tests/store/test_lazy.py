"""A store that is opened when it is needed: it passes what every store does, and is asked again where it was away."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.errors import StoreError
from imagefs.store.base import ByteRange, Moment, ObjectStore
from imagefs.store.lazy import RETRY_SECONDS, LazyStore
from imagefs.store.opening import open_store
from tests.store.conformance import StoreConformance


@pytest.fixture
def url(tmp_path: Path) -> str:
    place = f"file://{tmp_path}/store"
    open_store(place, create=True).close()
    return place


class TestLazyStore(StoreConformance):
    @pytest.fixture
    def store(self, url: str) -> Iterator[ObjectStore]:
        store = LazyStore(url)
        yield store
        store.close()


class Opening:
    """Opens a store, or fails; counts."""

    def __init__(self) -> None:
        self.count = 0
        self.away = False
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, url: str) -> ObjectStore:
        self.count += 1
        self.meanwhile()
        if self.away:
            raise StoreError("away")
        return open_store(url)


def test_it_is_opened_once_and_not_before_it_is_needed(url: str) -> None:
    opening = Opening()
    store = LazyStore(url, opening=opening)
    assert (store.url, opening.count) == (url, 0)
    store.put_if_absent("packs/a", b"0123456789")
    assert store.get("packs/a") == b"0123456789"
    assert store.get_noting("packs/a", ByteRange(2, 4), Moment()) == b"23"
    assert opening.count == 1
    store.close()
    store.close()


def test_one_that_is_away_is_asked_again_but_not_all_the_time(url: str) -> None:
    opening, now = Opening(), [100.0]
    opening.away = True
    store = LazyStore(url, opening=opening, clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(StoreError, match="away"):
            store.head("packs/a")
    assert opening.count == 1
    now[0] += RETRY_SECONDS
    with pytest.raises(StoreError, match="away"):
        store.head("packs/a")
    opening.away = False
    now[0] += RETRY_SECONDS
    assert list(store.list("packs/")) == []
    assert opening.count == 3
    store.close()


def test_of_many_that_need_it_at_once_one_opens_it(url: str) -> None:
    opening, started, go = Opening(), threading.Event(), threading.Event()

    def meanwhile() -> None:
        started.set()
        assert go.wait(20)

    opening.meanwhile = meanwhile
    store = LazyStore(url, opening=opening)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(store.delete("packs/none"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(20)
    go.set()
    for thread in threads:
        thread.join(20)
    assert (found, opening.count) == ([False] * 4, 1)
    store.close()
