"""Profiles in a store: many hosts publish, readers get what most starts touch, whatever dies or lies meanwhile."""

import itertools
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagefs.digest import digest_of
from imagefs.errors import AccessError, ImageFSError, NotFoundError, StoreError, StoreFullError, UsageError
from imagefs.format.profile import MAX_STARTS, Key, Sample, encode, merge, select
from imagefs.store.base import ObjectStore, blob_key, profile_key
from imagefs.store.images import put_blob
from imagefs.store.local import LocalStore
from imagefs.store.opening import open_store
from imagefs.store.patient import PatientReads
from imagefs.store.pointers import MERGED
from imagefs.store.profiles import MAX_KEYS, MAX_LOOSE, fetch, fetch_keys, listing, publish, read_one, remove
from imagefs.store.s3 import S3Store
from tests.format.profiles import MANIFEST, OTHER, program
from tests.store.faulty import Fault, FaultyStore
from tests.store.starts import SERVE, TRAIN, Told, dated, id_of, ids, many, merges, own, published, put, recordings, start


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


# -- what is published is read ------------------------------------------------------------------------------------------------------------


def test_an_image_that_nobody_started_has_no_profile(store: ObjectStore) -> None:
    assert fetch(store, MANIFEST, None) is None
    assert fetch_keys(store, MANIFEST) == []
    assert list(listing(store, MANIFEST)) == []
    assert remove(store, MANIFEST) == []
    with pytest.raises(UsageError):
        fetch(store, "../etc", None)


def test_what_one_host_records_the_next_one_reads(store: ObjectStore) -> None:
    profile = program(1, 300, 100)
    name = publish(store, profile)
    assert name == id_of(profile)
    assert fetch(store, MANIFEST, None) == profile
    assert fetch(store, MANIFEST, profile.key) == profile
    assert fetch(store, OTHER, None) is None
    assert read_one(store, MANIFEST, name) == profile
    assert publish(store, profile) == name
    assert recordings(store) == {name}


def test_the_same_over_s3(faked: S3Store) -> None:
    profile = program(1, 300, 100)
    for number in range(3):
        publish(faked, start(number), always=True)
    assert fetch(faked, MANIFEST, TRAIN) == merge(Sample(start(number), 0.0) for number in range(3))
    publish(faked, replace(profile, manifest=OTHER))
    assert fetch(PatientReads(faked, 5.0), OTHER, None) == replace(profile, manifest=OTHER)
    assert len(merges(faked)) == 1
    remove(faked, MANIFEST)
    assert ids(faked) == set()
    assert [info.key for info in faked.list("profiles/")] == [profile_key(OTHER, name) for name in sorted(ids(faked, OTHER))]


def test_the_newest_starts_are_merged_and_older_ones_go_with_their_blobs(store: ObjectStore) -> None:
    names = many(store, MAX_STARTS)
    names += [published(store, MAX_STARTS + number) for number in range(6)]
    assert recordings(store) == set(names[-MAX_STARTS:])
    assert len(merges(store)) == 1
    profile = fetch(store, MANIFEST, TRAIN)
    assert profile is not None
    assert profile.starts == MAX_STARTS
    assert profile == merge(Sample(start(number), float(number)) for number in range(MAX_STARTS + 6))
    # A blob for each pointer, and no more: a merge of one start is the start.
    assert len(list(store.list("blobs/"))) == len(ids(store))


def test_what_is_merged_says_what_it_is_made_of(store: ObjectStore) -> None:
    names = frozenset(published(store, number) for number in range(3))
    found = list(listing(store, MANIFEST))
    assert [info.id.startswith(MERGED) for info in found] == [True, False, False, False]
    first = found[0].pointer
    assert first is not None
    assert (first.inputs, first.starts, first.key) == (names, 3, TRAIN)
    assert [info.recorded for info in found[1:]] == sorted((info.recorded for info in found[1:]), reverse=True)


def test_keys_are_merged_apart_and_read_apart_or_together(store: ObjectStore) -> None:
    labelled = Key("python train.py", "nightly")
    for number in range(3):
        published(store, number, key=TRAIN)
        published(store, 100 + number, key=SERVE)
        published(store, 200 + number, key=labelled)
    assert len(merges(store)) == 3
    assert own(fetch(store, MANIFEST, TRAIN)) == {0, 1, 2}
    assert own(fetch(store, MANIFEST, SERVE)) == {100, 101, 102}
    assert own(fetch(store, MANIFEST, Key(label="nightly"))) == {200, 201, 202}
    assert own(fetch(store, MANIFEST, Key())) == {0, 1, 2, 100, 101, 102}
    assert fetch(store, MANIFEST, Key(label="other")) is None
    assert own(fetch(store, MANIFEST, None)) == {0, 1, 2, 100, 101, 102, 200, 201, 202}
    kept = fetch_keys(store, MANIFEST)
    assert {sample.profile.key for sample in kept} == {TRAIN, SERVE, labelled}
    assert select(kept, None) == fetch(store, MANIFEST, None)


def test_the_key_that_nobody_published_to_for_longest_goes(store: ObjectStore) -> None:
    keys = [Key(f"program {number}") for number in range(MAX_KEYS + 2)]
    for number, key in enumerate(keys):
        published(store, number, key=key)
        published(store, 100 + number, key=key)
    assert {sample.profile.key for sample in fetch_keys(store, MANIFEST)} == set(keys[2:])
    assert len(ids(store)) == MAX_KEYS * 3
    assert len(list(store.list("blobs/"))) == MAX_KEYS * 3


def test_recordings_that_no_merge_has_yet_are_read_too_but_not_any_number(store: ObjectStore) -> None:
    for number in range(3):
        published(store, number)
    loose = [put(store, start(100 + number)) for number in range(MAX_LOOSE + 3)]
    for pointer in loose:
        dated(store, pointer.id)
    profile = fetch(store, MANIFEST, TRAIN)
    assert own(profile) == {0, 1, 2, *range(103, 100 + MAX_LOOSE + 3)}
    assert profile is not None
    assert profile.starts == 3 + MAX_LOOSE


def test_recordings_that_a_full_merge_lacks_still_count(store: ObjectStore) -> None:
    """Also those that the store got before that merge: 64 starts of a moment would leave them no room."""
    names = set(many(store, MAX_STARTS))
    full = next(info.pointer for info in listing(store, MANIFEST) if info.pointer and info.pointer.is_merge)
    assert full.inputs == names
    for profile in (start(200), start(200, same=9)):
        pointer = put(store, profile)
        os.utime(Path(store.url.removeprefix("file://")) / profile_key(MANIFEST, pointer.id), (1, 1))
    assert own(fetch(store, MANIFEST, TRAIN)) == {200}


# -- what tells nothing new ---------------------------------------------------------------------------------------------------------------


def test_what_tells_nothing_new_is_not_published(store: ObjectStore) -> None:
    usual = program(5, 200, 100)
    now = 1_700_000_000.0

    def merged_at() -> float:
        return next(info.recorded for info in listing(store, MANIFEST) if info.id.startswith(MERGED))

    for number in range(16):
        jittered = replace(program(5, 200, 100, jitter=random.Random(number)))
        assert publish(store, jittered, clock=lambda: now), number
    known = replace(usual, accesses=list(usual.accesses)[:150])
    before = ids(store)
    now = merged_at() + 10
    assert publish(store, known, clock=lambda: now) == ""
    assert ids(store) == before
    # Something new in it, or an hour later, or by a clock that is wrong, or when asked to.
    news = replace(known, accesses=[*known.accesses, *start(1).accesses])
    assert publish(store, news, clock=lambda: now) == id_of(news)
    now = merged_at() + 3601
    assert publish(store, known, clock=lambda: now) == id_of(known)
    now = merged_at() - 86400
    assert publish(store, replace(usual, accesses=list(usual.accesses)[:140]), clock=lambda: now)
    assert publish(store, replace(usual, accesses=list(usual.accesses)[:130]), always=True)


# -- what is removed ----------------------------------------------------------------------------------------------------------------------


def test_what_is_removed_is_gone_from_the_merge_too(store: ObjectStore) -> None:
    names = [published(store, number) for number in range(4)]
    other = published(store, 100, key=SERVE)
    assert remove(store, MANIFEST, [names[1]]) == [names[1]]
    assert own(fetch(store, MANIFEST, TRAIN)) == {0, 2, 3}
    assert own(fetch(store, MANIFEST, SERVE)) == {100}
    assert recordings(store) == {names[0], *names[2:], other}
    assert len(merges(store)) == 2
    remove(store, MANIFEST, [names[0], names[2], names[3]])
    assert fetch(store, MANIFEST, TRAIN) is None
    assert len(ids(store)) == 2


def test_a_merge_that_is_removed_is_made_anew_by_the_next_who_publishes(store: ObjectStore) -> None:
    for number in range(3):
        published(store, number)
    remove(store, MANIFEST, merges(store))
    assert merges(store) == set()
    assert own(fetch(store, MANIFEST, TRAIN)) == {0, 1, 2}
    published(store, 3)
    assert len(merges(store)) == 1
    assert own(fetch(store, MANIFEST, TRAIN)) == {0, 1, 2, 3}


def test_all_of_an_image_go_with_their_blobs_and_nothing_of_another(store: ObjectStore) -> None:
    for number in range(3):
        published(store, number)
    publish(store, start(9, manifest=OTHER))
    tree, _ = put_blob(store, b"a tree")
    assert len(remove(store, MANIFEST)) == 4
    assert ids(store) == set()
    assert own(fetch(store, OTHER, None)) == {9}
    assert {info.key for info in store.list("blobs/")} == {blob_key(tree), blob_key(digest_of(encode(start(9, manifest=OTHER))).hex())}


def test_an_id_that_there_is_not_removes_nothing(store: ObjectStore) -> None:
    name = published(store, 1)
    for wrong in ("f" * 32, "../refs", MANIFEST):
        with pytest.raises(NotFoundError):
            remove(store, MANIFEST, [name, wrong])
        with pytest.raises(NotFoundError):
            read_one(store, MANIFEST, wrong)
    assert name in ids(store)


# -- whoever dies -------------------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing catches it."""


def dying(store: ObjectStore, op: str, number: int) -> FaultyStore:
    return FaultyStore(store, [Fault(op, first=number, times=1, error=Killed())])  # type: ignore[arg-type]


@pytest.mark.parametrize("op", ["put_if_absent", "delete", "get", "head", "list"])
def test_a_publisher_that_dies_anywhere_leaves_a_profile_and_the_next_one_puts_it_right(store: ObjectStore, op: str) -> None:
    names = many(store, MAX_STARTS)
    before = fetch(store, MANIFEST, TRAIN)
    assert before is not None
    counted = FaultyStore(store)
    publish(counted, start(150), always=True)
    steps = sum(called == op for called, _ in counted.calls)
    assert steps
    chance = random.Random(op)
    some = range(1, steps + 1) if steps < 10 else sorted({1, 2, steps - 1, steps, *chance.sample(range(1, steps + 1), 5)})
    for number, step in enumerate(some):
        with pytest.raises(Killed):
            publish(dying(store, op, step), start(200 + number), always=True)
        told = Told()
        found = fetch(store, MANIFEST, TRAIN, ignored=told)
        assert found is not None
        assert found.starts >= before.starts - len(some)
        assert {digest_of(b"shared %d" % index) for index in range(10)} <= {access.object for access in found.accesses}
        assert not told.about
    last = publish(store, start(299), always=True)
    assert last in recordings(store)
    assert len(merges(store)) == 1
    assert len(recordings(store)) == MAX_STARTS
    assert names[0] not in ids(store)
    assert not [info for info in listing(store, MANIFEST) if info.problem]


@pytest.mark.parametrize("op", ["put_if_absent", "get", "head", "list"])
@pytest.mark.parametrize(
    "error", [StoreError("away"), AccessError("read only"), StoreFullError("full")], ids=lambda error: type(error).__name__
)
def test_a_store_that_refuses_is_told_and_trying_again_is_right(store: ObjectStore, op: str, error: ImageFSError) -> None:
    published(store, 1)
    for step in itertools.count(1):
        faulty = FaultyStore(store, [Fault(op, first=step, times=1_000_000, error=error)])
        try:
            publish(faulty, start(2), always=True)
        except type(error):
            assert own(fetch(store, MANIFEST, TRAIN)) >= {1}
        else:
            break
        assert step < 50
    assert own(fetch(store, MANIFEST, TRAIN)) == {1, 2}
    assert publish(store, start(2), always=True) == id_of(start(2))
    assert len(merges(store)) == 1


def test_who_may_not_delete_publishes_all_the_same(store: ObjectStore) -> None:
    published(store, 1)
    told = Told()
    faulty = FaultyStore(store, [Fault("delete", error=AccessError("not this one"))])
    assert publish(faulty, start(2), ignored=told) == id_of(start(2))
    assert told.about
    assert len(merges(store)) == 2
    assert own(fetch(store, MANIFEST, TRAIN)) == {1, 2}
    published(store, 3)
    assert len(merges(store)) == 1
    with pytest.raises(AccessError):
        remove(faulty, MANIFEST)


def test_a_directory_that_cannot_be_written_is_no_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_store(str(tmp_path / "store"), create=True)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(LocalStore, "_claim", refuse)
    with pytest.raises(AccessError):
        publish(opened, start(1))
    opened.close()


# -- many at once -------------------------------------------------------------------------------------------------------------------------


def test_hosts_that_publish_at_once_lose_nothing(store: ObjectStore) -> None:
    published(store, 0)
    together = threading.Barrier(6)
    failures: list[BaseException] = []

    def host(first: int) -> None:
        try:
            together.wait(30)
            for number in range(first, first + 5):
                publish(store, start(number), always=True)
                found = fetch(store, MANIFEST, TRAIN)
                assert found is not None
                assert len(found.accesses) >= 10
        except BaseException as error:  # noqa: BLE001 # a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=host, args=(number * 10,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not failures
    assert len(recordings(store)) == 31
    publish(store, start(99), always=True)
    assert len(merges(store)) == 1
    (merged,) = [info.pointer for info in listing(store, MANIFEST) if info.id.startswith(MERGED)]
    assert merged is not None
    assert merged.inputs == recordings(store)
    assert not [info for info in listing(store, MANIFEST) if info.problem]


def test_two_who_do_not_see_each_other_leave_two_merges_and_the_next_makes_one(store: ObjectStore) -> None:
    published(store, 0)
    first = FaultyStore(store)
    # The other one publishes, all of it, between this one's look at the recordings and its merge.
    first.faults = [Fault("put_if_absent", f"profiles/*/{MERGED}*", times=1, before=lambda: publish(store, start(2), always=True))]
    publish(first, start(1), always=True)
    assert len(merges(store)) == 2
    assert own(fetch(store, MANIFEST, TRAIN)) == {0, 1, 2}
    publish(store, start(3), always=True)
    assert len(merges(store)) == 1
    assert own(fetch(store, MANIFEST, TRAIN)) == {0, 1, 2, 3}


@pytest.mark.parametrize("keys", [f"profiles/*/{MERGED}*", "blobs/*"])
def test_a_reader_whose_merge_goes_while_it_reads_takes_the_new_one(store: ObjectStore, keys: str) -> None:
    for number in range(6):
        published(store, number)
    reader = FaultyStore(store)
    reader.faults = [Fault("get", keys, times=1, before=lambda: publish(store, start(50), always=True))]
    told = Told()
    assert own(fetch(reader, MANIFEST, TRAIN, ignored=told)) == {*range(6), 50}
    assert not told.about
