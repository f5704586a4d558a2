"""Which snapshots a store has, by ref; and removing one.

A snapshot is found as an image is, by its ref, and only its manifest says which of the two it is. So every ref and manifest has to be read;
but each manifest once, however many refs it has, and ``AT_ONCE`` of them at a time, since what takes the time is the way to the store.

What is damaged, or of a version that cannot be read, is part of the answer; a store that is not well is an error.

What does not live here: which of them a host may restore (``snapshotstore.compat``).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeVar

from imagefs.errors import ImageFSError, IntegrityError, LimitError, NotFoundError, UnsupportedError, UsageError
from imagefs.format.manifest import SNAPSHOT, Manifest
from imagefs.store import refs
from imagefs.store.base import ObjectStore
from imagefs.store.images import get_manifest
from imagefs.store.refs import Ref, RefDocument, read
from snapshotstore import manifest
from snapshotstore.at_once import at_once
from snapshotstore.manifest import Record

AT_ONCE: Final = 16

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that a store has: the hex digest of its manifest, how it was named, and what it says."""

    name: str
    ref: str
    manifest: Manifest
    record: Record


class Named(NamedTuple):
    """A ref, and the hex digest of the manifest that it names."""

    ref: Ref
    manifest: str


class Listed(NamedTuple):
    """One snapshot by one of its refs. ``record`` is None where it cannot be read, for the reason ``problem``."""

    ref: Ref
    name: str
    manifest: Manifest
    record: Record | None
    problem: ImageFSError | None


class Listing(NamedTuple):
    """What was found, by ref: ``snapshots``; refs of ``images``; and refs of which it cannot be told what they are, and why."""

    snapshots: list[Listed]
    images: list[Named]
    unreadable: list[tuple[Ref, ImageFSError]]


def listing(store: ObjectStore, name: str | None = None) -> Listing:
    """Return what a store has, or what is published there as ``name``, whatever the tag. Raises what a store that is not well raises."""
    found = Listing([], [], [])
    named: list[Named] = []
    names = _refs(store, name)
    for ref, document in zip(names, _ask(lambda ref: read(store, ref), names), strict=True):
        if isinstance(document, RefDocument):
            named.append(Named(ref, document.manifest))
        elif not isinstance(document, NotFoundError):  # that one was removed meanwhile
            found.unreadable.append((ref, document))
    digests = list(dict.fromkeys(one.manifest for one in named))
    manifests = dict(zip(digests, _ask(lambda digest: _snapshot(store, digest), digests), strict=True))
    for one in named:
        held = manifests[one.manifest]
        if isinstance(held, ImageFSError):
            found.unreadable.append((one.ref, held))
        elif held is None:
            found.images.append(one)
        else:
            found.snapshots.append(_listed(one, held))
    return found


def refs_of(store: ObjectStore, digest: str) -> list[Ref]:
    """Return all refs that name a manifest."""
    names = _refs(store, None)
    documents = _ask(lambda ref: read(store, ref), names)
    return [ref for ref, held in zip(names, documents, strict=True) if isinstance(held, RefDocument) and held.manifest == digest]


class Removed(NamedTuple):
    """What became of a snapshot: ``left`` are refs that it still has; ``forgotten``: its lineage does not count on its pages any more."""

    manifest: str
    left: list[Ref]
    forgotten: bool


def remove(store: ObjectStore, ref: Ref) -> Removed:
    """Remove a ref of a snapshot. Its content stays, for ``gc`` to collect where nothing else names it.

    With the last ref goes the lineage's pointer: what may be collected at any time must not be what the next push refers to. A push of the
    same snapshot that goes on meanwhile may lose its pointer so, which costs savings and nothing else. ``UnsupportedError`` for an image.
    """
    digest = read(store, ref).manifest
    try:
        held = get_manifest(store, digest)
    except (IntegrityError, NotFoundError, UnsupportedError, LimitError) as error:
        raise type(error)(error.message, hint=f"`imagefs rm {ref}` removes the ref, whatever it names") from error
    if held.kind != SNAPSHOT:
        raise UnsupportedError(f"{ref} is no snapshot: it is of kind {held.kind}", hint="`imagefs rm` removes refs of images")
    digest = refs.remove(store, ref) or digest
    left = refs_of(store, digest)
    forgotten = False
    if not left:
        from snapshotstore import lineage  # noqa: PLC0415 # which who looks for snapshots need not wait for

        # Where the record cannot be read nobody knows of which lineage it was. A pointer without a manifest is passed over.
        with suppress(IntegrityError, UnsupportedError, LimitError):
            forgotten = lineage.forget(store, manifest.read(held.annotations).lineage, digest)
    return Removed(digest, left, forgotten)


def _listed(one: Named, held: Manifest) -> Listed:
    try:
        return Listed(one.ref, one.manifest, held, manifest.read(held.annotations), None)
    except ImageFSError as error:
        return Listed(one.ref, one.manifest, held, None, error)


def _snapshot(store: ObjectStore, digest: str) -> Manifest | None:
    """Return a manifest; None if it is that of an image, of which nothing more has to be kept."""
    held = get_manifest(store, digest)
    return held if held.kind == SNAPSHOT else None


def _refs(store: ObjectStore, name: str | None) -> list[Ref]:
    # Parsed, so that what is no name is refused before it is part of a key.
    start = "refs/" if name is None else Ref.parse(f"{name}:x").key[:-1]
    found = []
    for info in store.list(start):
        path, _, tag = info.key.removeprefix("refs/").rpartition("/")
        try:
            ref = Ref.parse(f"{path.replace('+', ':')}:{tag}")
        except UsageError:
            continue
        # Other names begin with this one and a slash.
        if name is None or ref.name == name:
            found.append(ref)
    return sorted(found, key=lambda ref: (ref.name, ref.tag))


def _ask(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R | ImageFSError]:
    """Call with each of the items, ``AT_ONCE`` of them at a time."""
    if len(items) <= AT_ONCE:
        return at_once(*(partial(_asked, function, item) for item in items))
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 # which a service, with its few variants, need not wait for

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="snapshots") as pool:
        return list(pool.map(lambda item: _asked(function, item), items))


def _asked(function: Callable[[_T], _R], item: _T) -> _R | ImageFSError:
    """Call, and return the error of what is damaged, missing or not known; a store that is not well is one that is raised."""
    try:
        return function(item)
    except ImageFSError as error:
        if error.retryable:
            raise
        return error
