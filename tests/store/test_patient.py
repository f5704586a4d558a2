"""Reads that try again: what may be tried again, and not past the deadline."""

from pathlib import Path

import pytest

from imagefs.errors import NotFoundError, StoreError
from imagefs.store import patient
from imagefs.store.opening import open_store
from imagefs.store.patient import PatientReads
from tests.store.faulty import Fault, FaultyStore


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(patient, "time", made)
    return made


def _store(tmp_path: Path, error: Exception, count: int) -> FaultyStore:
    inner = open_store(f"file://{tmp_path}/store", create=True)
    inner.put_if_absent("packs/a", b"content")
    left = [count]

    def fail() -> None:
        if left[0]:
            left[0] -= 1
            raise error

    return FaultyStore(inner, [Fault("get", before=fail)])


def test_a_stumble_is_tried_again(tmp_path: Path, clock: _Clock) -> None:
    store = _store(tmp_path, StoreError("busy", retry_after=2.0), 2)
    assert PatientReads(store, 30).get("packs/a") == b"content"
    assert len(store.calls) == 3
    assert 104 <= clock.now <= 110, "the store's wish is kept"


def test_the_deadline_ends_it(tmp_path: Path, clock: _Clock) -> None:
    store = _store(tmp_path, StoreError("busy"), 1000)
    with pytest.raises(StoreError):
        PatientReads(store, 30).get("packs/a")
    assert 3 < len(store.calls) < 100
    assert clock.now <= 130


def test_what_is_final_is_final(tmp_path: Path, clock: _Clock) -> None:
    store = _store(tmp_path, NotFoundError("no"), 1000)
    with pytest.raises(NotFoundError):
        PatientReads(store, 30).get("packs/a")
    assert len(store.calls) == 1
