"""What two writers, or a writer and a sweep, may do to each other: each order is forced, none is waited for."""

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from imagefs.errors import ConflictError, IntegrityError, StoreError
from imagefs.store import local
from imagefs.store.local import LocalStore
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref, list_refs, publish, resolve

A = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    opened = open_store(str(tmp_path / "store"), create=True)
    assert isinstance(opened, LocalStore)
    return opened


def test_a_sweep_between_open_and_lock_does_not_fail_the_writer(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock
    swept: list[bool] = []

    def late(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not swept:
            swept.append(True)
            store.sweep()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert store.put_if_absent("packs/a", b"x")
    assert swept
    assert store.get("packs/a") == b"x"


def test_a_directory_pruned_under_a_writer_is_made_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_if_absent("refs/r/old", b"x")
    sync = store._group.sync
    pruned: list[bool] = []

    def prune() -> None:
        if not pruned:
            pruned.append(store.delete("refs/r/old"))
        sync()

    monkeypatch.setattr(store._group, "sync", prune)
    assert store.put_if_absent("refs/r/new", b"y")
    assert pruned == [True]
    assert store.get("refs/r/new") == b"y"


def test_a_failed_sync_fails_those_it_served_although_a_later_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    group = local._GroupSync(0)
    with group._condition:  # a first sync runs; a waiter will be served by the second
        group._running, group._started = True, 1
    outcome: list[int | None] = []

    def wait() -> None:
        try:
            group.sync()
            outcome.append(None)
        except OSError as error:
            outcome.append(error.errno)

    waiter = threading.Thread(target=wait)
    waiter.start()
    while not group._condition._waiters:  # type: ignore[attr-defined]
        assert waiter.is_alive()
    with group._condition:  # the second failed, and a third succeeded, before the waiter woke
        group._failed[2] = errno.EIO
        group._running, group._started, group._finished = False, 3, 3
        group._condition.notify_all()
    waiter.join(10)
    assert outcome == [errno.EIO]


def test_a_store_that_is_gone_is_not_made_anew(store: LocalStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreError, match="gone"):
        store.put_if_absent("packs/a", b"x")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("first, second", [("py:slim", "py/slim"), ("py/slim", "py:slim")])
def test_a_tag_and_a_part_of_a_name_that_are_the_same_say_so(store: LocalStore, first: str, second: str) -> None:
    publish(store, Ref.parse(first), A)
    with pytest.raises(ConflictError, match="beginning") as caught:
        publish(store, Ref.parse(second), A)
    assert caught.value.hint
    assert resolve(store, first) == A


def test_a_ref_of_20_gb_is_refused_unread(store: LocalStore, tmp_path: Path) -> None:
    publish(store, Ref.parse("big:1"), A)
    publish(store, Ref.parse("good:1"), A)
    os.truncate(tmp_path / "store/refs/big/1", 20 << 30)
    with pytest.raises(IntegrityError, match="longer"):
        resolve(store, "big:1")
    assert [str(ref) for ref, _ in list_refs(store)] == ["good:1"]
    publish(store, Ref.parse("big:1"), A)
    assert resolve(store, "big:1") == A
