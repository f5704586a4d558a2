"""Profiles in a store that somebody damaged, forged or filled: what cannot be used is passed over with the reason."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError
from imagefs.format.profile import MAX_PROFILE, Key, Profile, encode
from imagefs.store.base import ObjectStore, blob_key, profile_key
from imagefs.store.images import put_blob
from imagefs.store.opening import open_store
from imagefs.store.pointers import MERGED, Pointer, decode_pointer, encode_pointer, pointer_to
from imagefs.store.profiles import fetch, listing, publish, read_one, remove
from tests.format.profiles import MANIFEST, OTHER
from tests.store.faulty import Fault, FaultyStore, flipped, truncated
from tests.store.starts import SERVE, TRAIN, Told, id_of, ids, merges, own, published, start


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


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
