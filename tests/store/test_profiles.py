"""Profiles in a store: many hosts publish, readers get what most starts touch, whatever dies or lies meanwhile."""

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from imagefs.digest import digest_of
from imagefs.errors import AccessError, ImageFSError, NotFoundError, StoreError, StoreFullError, UsageError
from imagefs.format.profile import EVERY_START, GRAIN, MAX_PROFILE, MAX_STARTS, Access, Key, Profile, Sample, encode, merge, select
from imagefs.store.base import ObjectStore, blob_key, profile_key
from imagefs.store.images import put_blob
from imagefs.store.local import LocalStore
from imagefs.store.opening import open_store
from imagefs.store.patient import PatientReads
from imagefs.store.pointers import MERGED, Pointer, decode_pointer, encode_pointer, pointer_to
from imagefs.store.profiles import MAX_KEYS, MAX_LOOSE, fetch, fetch_keys, listing, publish, read_one, remove
from imagefs.store.s3 import S3Store
from tests.format.profiles import MANIFEST, OTHER, program
from tests.store.faulty import Fault, FaultyStore, flipped, truncated

TRAIN = Key("python train.py")
SERVE = Key("python serve.py")
_moments = itertools.count(1_500_000_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


def start(number: int, *, key: Key = TRAIN, manifest: str = MANIFEST, same: int = 10) -> Profile:
    """A start that touches what all do (``same`` objects), and one object of its own."""
    rows = [Access(digest_of(b"shared %d" % index), 0, GRAIN, index, EVERY_START) for index in range(same)]
    return Profile(manifest, key, 1, [*rows, Access(digest_of(b"own %d" % number), 0, GRAIN, 50, EVERY_START)])


def own(profile: Profile | None) -> set[int]:
    """Whose own objects a profile has, of the first 300 starts."""
    assert profile is not None
    names = {digest_of(b"own %d" % number): number for number in range(300)}
    return {names[access.object] for access in profile.accesses if access.object in names}


def ids(store: ObjectStore, manifest: str = MANIFEST) -> set[str]:
    return {info.key.rpartition("/")[2] for info in store.list(profile_key(manifest, ""))}


def recordings(store: ObjectStore, manifest: str = MANIFEST) -> set[str]:
    return {name for name in ids(store, manifest) if not name.startswith(MERGED)}


def merges(store: ObjectStore, manifest: str = MANIFEST) -> set[str]:
    return ids(store, manifest) - recordings(store, manifest)


def id_of(profile: Profile) -> str:
    return digest_of(encode(profile)).hex()[:32]


def put(store: ObjectStore, profile: Profile, inputs: set[str] | None = None) -> Pointer:
    """Put a profile and its pointer, and nothing else, as a host does that is killed then."""
    data = encode(profile)
    digest, _ = put_blob(store, data)
    pointer = pointer_to(profile, digest, len(data), inputs or ())
    store.put_if_absent(profile_key(profile.manifest, pointer.id), encode_pointer(pointer))
    return pointer


def dated(store: ObjectStore, name: str, manifest: str = MANIFEST) -> None:
    """Let the store have got it at a moment of its own, later than all before."""
    path = Path(store.url.removeprefix("file://")) / profile_key(manifest, name)
    os.utime(path, (next(_moments),) * 2)


def published(store: ObjectStore, number: int, *, key: Key = TRAIN) -> str:
    """Publish a start whatever it tells, at a moment of its own."""
    before = ids(store)
    name = publish(store, start(number, key=key), always=True)
    for new in [name, *(ids(store) - before - {name})]:
        dated(store, new)
    return name


def many(store: ObjectStore, count: int) -> list[str]:
    """As if so many had published: the last one made the merge. Their ids, the oldest first."""
    names = [put(store, start(number)).id for number in range(count - 1)]
    for name in names:
        dated(store, name)
    return [*names, published(store, count - 1)]


class Told:
    """What was passed over."""

    def __init__(self) -> None:
        self.about: dict[str, ImageFSError] = {}

    def __call__(self, name: str, error: ImageFSError) -> None:
        self.about[name] = error


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


# -- what others may have put there -------------------------------------------------------------------------------------------------------

GOOD = Pointer("a" * 32, "a" * 64, 100, TRAIN, 1)
GOOD_MERGE = pointer_to(replace(start(7), starts=2), "a" * 64, 100, {"b" * 32, id_of(start(1))})


def test_a_pointer_is_read_back() -> None:
    for pointer in (GOOD, GOOD_MERGE):
        assert decode_pointer(pointer.id, encode_pointer(pointer)) == pointer
    longest = Profile(MANIFEST, Key("e" * 512, "l" * 128, "g" * 128), 64, ())
    full = pointer_to(longest, "a" * 64, MAX_PROFILE, [f"{number:032x}" for number in range(64)])
    assert decode_pointer(full.id, encode_pointer(full)) == full
    assert len(encode_pointer(full)) < 16 * 1024
    assert encode_pointer(GOOD) == (
        b'{"format":1,"inputs":[],"key":{"entry":"python train.py","gpu":"","label":""},'
        b'"profile":{"digest":"%b","size":100},"starts":1}\n' % (b"a" * 64)
    )


def altered(pointer: Pointer, **changes: object) -> bytes:
    document = msgspec.json.decode(encode_pointer(pointer))
    return msgspec.json.encode({key: value for key, value in (document | changes).items() if value is not None})


def named(data: bytes) -> tuple[str, bytes]:
    """Give a merge's pointer the name that goes with it."""
    return f"{MERGED}{digest_of(data).hex()[:32]}", data


BLOB = {"digest": "a" * 64, "size": 100}
HOSTILE = [
    (GOOD.id, b""),
    (GOOD.id, b"{"),
    (GOOD.id, b"[]"),
    (GOOD.id, b"\xff\xfe"),
    (GOOD.id, b"[" * 10_000),
    (GOOD.id, b" " * 20_000),
    (GOOD.id, b'{"format":1}'),
    (GOOD.id, altered(GOOD, format=2)),
    (GOOD.id, altered(GOOD, format=0)),
    (GOOD.id, altered(GOOD, format="1")),
    (GOOD.id, altered(GOOD, new=1)),
    (GOOD.id, altered(GOOD, key=None)),
    (GOOD.id, altered(GOOD, key={"entry": "", "label": ""})),
    (GOOD.id, altered(GOOD, starts=0)),
    (GOOD.id, altered(GOOD, starts=65)),
    (GOOD.id, altered(GOOD, starts=1.5)),
    (GOOD.id, altered(GOOD, starts=10**30)),
    (GOOD.id, altered(GOOD, profile=BLOB | {"digest": "b" * 64})),
    (GOOD.id, altered(GOOD, profile=BLOB | {"digest": "../../refs/x"})),
    (GOOD.id, altered(GOOD, profile=BLOB | {"size": MAX_PROFILE + 1})),
    (GOOD.id, altered(GOOD, profile=BLOB | {"size": -1})),
    (GOOD.id, altered(GOOD, profile=BLOB | {"size": 1 << 62})),
    (GOOD.id, altered(GOOD, inputs=["b" * 32])),
    named(altered(GOOD_MERGE, inputs=[])),
    named(altered(GOOD_MERGE, inputs=None)),
    named(altered(GOOD_MERGE, inputs=["../x"])),
    named(altered(GOOD_MERGE, inputs=["b" * 32, "b" * 32])),
    named(altered(GOOD_MERGE, inputs=[GOOD_MERGE.id])),
    named(altered(GOOD_MERGE, inputs=[f"{number:032x}" for number in range(65)])),
    (GOOD_MERGE.id, altered(GOOD_MERGE, starts=3)),
    (GOOD_MERGE.id, altered(GOOD)),
    # Sound in themselves, and the blob is not there.
    (GOOD.id, altered(GOOD)),
    named(encode_pointer(GOOD_MERGE)),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_pointer_that_is_damaged_or_forged_is_passed_over_with_the_reason(store: ObjectStore, number: int) -> None:
    name, data = HOSTILE[number]
    published(store, 1)
    store.put_if_absent(profile_key(MANIFEST, name), data)
    told = Told()
    assert own(fetch(store, MANIFEST, TRAIN, ignored=told)) == {1}
    assert set(told.about) == {name}
    assert told.about[name].message
    assert own(fetch(store, MANIFEST, None)) == {1}
    publish(store, start(2), always=True)
    assert own(fetch(store, MANIFEST, TRAIN)) == {1, 2}
    if number == len(HOSTILE) - 1:
        # A merge whose recordings the new one has: it went as any other.
        assert name not in ids(store)
    else:
        assert name in {info.id for info in listing(store, MANIFEST)}
        with pytest.raises(ImageFSError):
            read_one(store, MANIFEST, name)
        assert remove(store, MANIFEST, [name]) == [name]
    assert own(fetch(store, MANIFEST, TRAIN)) == {1, 2}


@pytest.mark.parametrize(
    "key",
    ["profiles/{}/x", "profiles/{}/A" + "a" * 31, "profiles/{}/merged-", "profiles/{}/" + "a" * 32 + "/deeper", "profiles/{}/" + "a" * 33],
)
def test_a_key_that_is_no_id_is_nothing(store: ObjectStore, key: str) -> None:
    published(store, 1)
    store.put_if_absent(key.format(MANIFEST), b"x")
    told = Told()
    assert own(fetch(store, MANIFEST, None, ignored=told)) == {1}
    assert not told.about
    assert len(list(listing(store, MANIFEST))) == 2


def forged(store: ObjectStore, content: bytes, *, inputs: set[str] | None = None, **changes: object) -> str:
    """Put any content as a profile, with a pointer that goes with it, but for ``changes``."""
    digest, _ = put_blob(store, content)
    pointer = pointer_to(start(7), digest, len(content))._replace(inputs=frozenset(inputs or ()), **changes)  # type: ignore[arg-type]
    if inputs:
        pointer = pointer._replace(id=named(encode_pointer(pointer))[0])
    store.put_if_absent(profile_key(MANIFEST, pointer.id), encode_pointer(pointer))
    return pointer.id


@pytest.mark.parametrize(
    "make",
    [
        lambda store: forged(store, b"a tree, say"),
        lambda store: forged(store, flipped(encode(start(7)))),
        lambda store: forged(store, truncated(encode(start(7)))),
        lambda store: forged(store, encode(start(7)), size=10),
        lambda store: forged(store, encode(start(7)), size=MAX_PROFILE),
        lambda store: forged(store, encode(start(7)), starts=2),
        lambda store: forged(store, encode(start(7, manifest=OTHER))),
        lambda store: forged(store, encode(start(7, key=SERVE))),
        lambda store: forged(store, b"a tree, say", inputs={id_of(start(1)), "b" * 32}, starts=2),
        lambda store: forged(store, b"a tree, say", inputs={id_of(start(1))}, starts=64),
        lambda store: forged(store, bytes(MAX_PROFILE)),
    ],
)
def test_a_profile_that_is_not_what_its_pointer_says_is_passed_over_and_its_blob_left(
    store: ObjectStore, make: Callable[[ObjectStore], str]
) -> None:
    """Its blob may be anything: a tree that an image needs. Nobody deletes it because a pointer leads there."""
    published(store, 1)
    name = make(store)
    blobs = {info.key for info in store.list("blobs/")}
    told = Told()
    assert own(fetch(store, MANIFEST, TRAIN, ignored=told)) == {1}
    assert set(told.about) == {name}
    for number in range(2, 5):
        publish(store, start(number), always=True)
    assert own(fetch(store, MANIFEST, TRAIN)) >= {2, 3, 4}
    if name in ids(store):
        remove(store, MANIFEST, [name])
    remove(store, MANIFEST)
    assert ids(store) == set()
    left = {info.key for info in store.list("blobs/")}
    assert len(left & blobs) == 1


def test_a_blob_that_inflates_without_end_is_passed_over(store: ObjectStore) -> None:
    published(store, 1)
    bomb, _ = put_blob(store, bytes(200_000_000))
    pointer = pointer_to(start(7), bomb, 1000)
    store.put_if_absent(profile_key(MANIFEST, pointer.id), encode_pointer(pointer))
    assert own(fetch(store, MANIFEST, TRAIN)) == {1}


@pytest.mark.parametrize("change", [flipped, truncated, lambda _: b""])
@pytest.mark.parametrize("keys", ["profiles/*", "blobs/*"])
def test_a_store_that_damages_all_it_gives_has_no_profile(store: ObjectStore, keys: str, change: Callable[[bytes], bytes]) -> None:
    published(store, 1)
    told = Told()
    assert fetch(FaultyStore(store, [Fault("get", keys, change=change)]), MANIFEST, None, ignored=told) is None
    assert told.about


def test_a_merge_that_is_damaged_is_replaced_by_what_it_was_made_of(store: ObjectStore) -> None:
    for number in range(4):
        published(store, number)
    (name,) = merges(store)
    path = Path(store.url.removeprefix("file://"))
    pointer = decode_pointer(name, store.get(profile_key(MANIFEST, name)))
    blob = path / blob_key(pointer.digest)
    blob.write_bytes(flipped(blob.read_bytes()))
    told = Told()
    assert own(fetch(store, MANIFEST, TRAIN, ignored=told)) == {0, 1, 2, 3}
    assert set(told.about) == {name}
    published(store, 4)
    assert name not in ids(store)


def test_a_store_that_somebody_fills_is_read_to_a_bound(store: ObjectStore) -> None:
    published(store, 1)
    for number in range(700):
        store.put_if_absent(profile_key(MANIFEST, f"{number:032x}"), b"junk")
    counted = FaultyStore(store)
    fetch(counted, MANIFEST, None)
    assert sum(op == "get" for op, _ in counted.calls) < 100
    counted.calls.clear()
    publish(counted, start(2), always=True)
    assert sum(op == "get" for op, _ in counted.calls) < 800
    assert own(fetch(store, MANIFEST, TRAIN)) >= {2}
