"""What refs stood for: kept for the next process, and not written again and again for many mounts of one image."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.cache import names
from imagefs.cache.names import ResolvedNames

STORE = "file:///store"
ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def known(tmp_path: Path) -> Iterator[ResolvedNames]:
    made = ResolvedNames(tmp_path / "names", _fail)
    yield made
    made.close()


@pytest.fixture
def next_one(tmp_path: Path) -> Iterator[ResolvedNames]:
    """What another process sees of it."""
    made = ResolvedNames(tmp_path / "names", _fail)
    yield made
    made.close()


def _fail(error: Exception) -> None:
    raise error


def test_what_a_ref_stood_for_is_there_for_the_next_process(known: ResolvedNames, next_one: ResolvedNames) -> None:
    before = time.time()
    known.put(STORE, "app:1", ONE)
    found = next_one.get(STORE, "app:1")
    assert found is not None
    assert found[0] == ONE
    assert before <= found[1] <= time.time()
    assert next_one.get("s3://other", "app:1") is None


def test_it_is_written_again_when_it_is_another_or_was_forgotten_or_some_time_ago(
    known: ResolvedNames, next_one: ResolvedNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.put(STORE, "app:1", ONE)
    first = next_one.get(STORE, "app:1")
    for _ in range(3):
        known.put(STORE, "app:1", ONE)
    assert next_one.get(STORE, "app:1") == first
    known.put(STORE, "app:1", TWO)
    assert (next_one.get(STORE, "app:1") or ("",))[0] == TWO
    known.put(STORE, "app:1", ONE)
    assert (next_one.get(STORE, "app:1") or ("",))[0] == ONE
    known.forget(STORE, "app:1")
    assert next_one.get(STORE, "app:1") is None
    known.put(STORE, "app:1", ONE)
    last = next_one.get(STORE, "app:1")
    assert last is not None
    assert last[0] == ONE
    monkeypatch.setattr(names, "_AGAIN_SECONDS", 0.0)
    known.put(STORE, "app:1", ONE)
    assert (next_one.get(STORE, "app:1") or ("", 0.0))[1] > last[1]


def test_very_many_refs_are_no_more_memory(known: ResolvedNames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_PUT_MAX", 4)
    for number in range(20):
        known.put(STORE, f"app:{number}", ONE)
    assert len(known._put) <= 5
    assert known.get(STORE, "app:19") is not None
