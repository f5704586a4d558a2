"""Refs: their grammar, and that the last thing written is the first thing read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.errors import ConflictError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from imagefs.store.base import ObjectStore
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref, list_refs, publish, read, remove, resolve
from tests.store.faulty import Fault, FaultyStore

A, B = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("text", "name", "tag"),
    [
        ("torch", "torch", "latest"),
        ("torch:1", "torch", "1"),
        ("a/b_c/d-e.f:V1.2_x", "a/b_c/d-e.f", "V1.2_x"),
        ("localhost:5000/a/b", "localhost:5000/a/b", "latest"),
        ("registry.example.com:5000/a:tag", "registry.example.com:5000/a", "tag"),
    ],
)
def test_refs_that_are(text: str, name: str, tag: str) -> None:
    assert Ref.parse(text) == Ref(name, tag)
    assert Ref.parse(str(Ref(name, tag))) == Ref(name, tag)


@pytest.mark.parametrize(
    "text", ["", ":1", "a:", "A/B C", "a//b", "../a", "a/../b", "/a", "a/", "a:b:c", "a:" + "t" * 129, "é", "a" * 300, "-a", "a\n"]
)
def test_refs_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        Ref.parse(text)


def test_publish_list_and_remove(store: ObjectStore) -> None:
    for name, digest in (("torch:1", A), ("host:5000/torch:2", B), ("torch:1", B)):
        publish(store, Ref.parse(name), digest)
    assert {(str(ref), document.manifest) for ref, document in list_refs(store)} == {("torch:1", B), ("host:5000/torch:2", B)}
    assert remove(store, Ref.parse("torch:1")) == B
    assert [str(ref) for ref, _ in list_refs(store)] == ["host:5000/torch:2"]


def test_a_name_may_become_anothers_prefix(store: ObjectStore) -> None:
    publish(store, Ref.parse("a/b:1"), A)
    remove(store, Ref.parse("a/b:1"))
    publish(store, Ref.parse("a:b"), A)
    assert resolve(store, "a:b") == A


def test_resolve(store: ObjectStore) -> None:
    publish(store, Ref.parse("torch:1"), A)
    store.put_if_absent(f"manifests/{B}", b"x")
    assert resolve(store, "torch:1") == A
    assert resolve(store, B) == B
    assert resolve(store, f"torch@{B}") == B
    with pytest.raises(NotFoundError):
        resolve(store, "c" * 64)
    with pytest.raises(UsageError):
        resolve(store, "torch@sha256:123")


def test_the_nearest_are_named(store: ObjectStore) -> None:
    publish(store, Ref.parse("pytorch:2.1"), A)
    with pytest.raises(NotFoundError) as caught:
        resolve(store, "pytorhc:2.1")
    assert "pytorch:2.1" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b"{", IntegrityError),
        (b'{"format":1,"manifest":"../x","time":"x"}', IntegrityError),
        (b'{"format":2,"manifest":"%b","time":"x"}' % A.encode(), UnsupportedError),
        (b'{"format":1,"manifest":"%b","time":"x","new":1}' % A.encode(), IntegrityError),
        (b" " * 100_000, IntegrityError),
    ],
)
def test_a_damaged_ref_is_told_and_left_out_of_lists(store: ObjectStore, document: bytes, expected: type[Exception]) -> None:
    publish(store, Ref.parse("good:1"), A)
    store.replace("refs/bad/1", document, version=None)
    with pytest.raises(expected):
        read(store, Ref.parse("bad:1"))
    assert [str(ref) for ref, _ in list_refs(store)] == ["good:1"]
    assert remove(store, Ref.parse("bad:1")) == ""
    publish(store, Ref.parse("bad:1"), A)
    assert resolve(store, "bad:1") == A


def test_publish_tries_again_when_another_was_faster(store: ObjectStore) -> None:
    lost = ConflictError("another was faster")
    publish(FaultyStore(store, [Fault("replace", times=2, error=lost)]), Ref.parse("a:1"), A)
    assert resolve(store, "a:1") == A
    with pytest.raises(ConflictError):
        publish(FaultyStore(store, [Fault("replace", error=lost)]), Ref.parse("a:1"), B)
    assert resolve(store, "a:1") == A
