"""Starts that hosts have recorded, and what a store then has of them: what the tests of published profiles share."""

import itertools
import os
from pathlib import Path

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError
from imagefs.format.profile import EVERY_START, GRAIN, Access, Key, Profile, encode
from imagefs.store.base import ObjectStore, profile_key
from imagefs.store.images import put_blob
from imagefs.store.pointers import MERGED, Pointer, encode_pointer, pointer_to
from imagefs.store.profiles import publish
from tests.format.profiles import MANIFEST

TRAIN = Key("python train.py")
SERVE = Key("python serve.py")
_moments = itertools.count(1_500_000_000)


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
