"""Profiles in a store: hosts add what they record, somebody merges it, readers take the merge. Specified in ``docs/format/profile.md``.

Guarantees:

- publishing is in the order blob, pointer, merge, and only then what the merge makes superfluous goes: a crash at any point leaves readers
  with a merge that works, and leaves garbage at most;
- any number of hosts may publish at once, without a lock. Two that do not see each other leave two merges; readers take the better one and
  the recordings that it lacks, and the next publisher makes one of all;
- an image has a bounded number of pointers, whatever the number of hosts, of starts and of keys;
- a pointer or a profile that is damaged, forged, missing or of a newer format is passed over, and told to ``ignored`` with the reason.
  Only what is the store's own trouble is raised: ``StoreError``, ``DeadlineError``, ``AccessError``. No blob is deleted that was not read
  and found to be a profile of this image, whatever a pointer says.

All functions block. What does not live here: pointers and reading (``imagefs.store.pointers``), merging (``imagefs.format.profile``), and
when something is published or fetched.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

from imagefs.errors import ImageFSError, NotFoundError
from imagefs.format.profile import MAX_STARTS, Key, Profile, Sample, covered, encode, merge, select
from imagefs.store.base import ObjectStore, blob_key, profile_key
from imagefs.store.images import put_blob
from imagefs.store.pointers import Pointer, PointerInfo, ProfileSource, Shelf, encode_pointer, in_threads, pointer_to

MAX_KEYS: Final = 8
"""Keys of an image, at most; the one that was published to longest ago goes."""

MAX_LOOSE: Final = 8
"""Recordings of a key that no merge has yet and that a reader takes, at most."""

_MERGES: Final = 64
_CANDIDATES: Final = MAX_STARTS * (MAX_KEYS + 1)
_LOOKS: Final = 3
_KNOWN_SHARE: Final = 0.95
_KNOWN_STARTS: Final = 16
_KNOWN_SECONDS: Final = 3600.0
_CLOCKS_SECONDS: Final = 300.0

Ignored = Callable[[str, ImageFSError], None]
"""Is told of what was passed over: the id, and why."""


def _nobody(_name: str, _error: ImageFSError) -> None:
    """Tell nobody."""


# -- reading ------------------------------------------------------------------------------------------------------------------------------


def fetch(source: ProfileSource, manifest: str, key: Key | None, *, ignored: Ignored = _nobody) -> Profile | None:
    """Return what the starts of an image that match ``key`` (None: all) touch, as one profile; None if the store has nothing of them."""
    return select(fetch_keys(source, manifest, key, ignored=ignored), key)


def fetch_keys(source: ProfileSource, manifest: str, key: Key | None = None, *, ignored: Ignored = _nobody) -> list[Sample]:
    """Return one merged profile for each key that matches: what ``select`` then takes, and a host keeps."""
    passed_over: list[tuple[str, ImageFSError]] = []
    found: list[Sample] = []
    for _ in range(_LOOKS):
        passed_over.clear()
        shelf = Shelf(source, manifest, lambda name, error: passed_over.append((name, error)))
        found = _look(shelf, key)
        if not shelf.has_moved:
            break
    for name, error in passed_over:
        ignored(name, error)
    return found


def _look(shelf: Shelf, key: Key | None) -> list[Sample]:
    merges = shelf.pointers(shelf.merges()[:_MERGES])
    best = _best(shelf, merges)
    merged = frozenset[str]().union(*(ranked[0].inputs for ranked in best.values()))
    # What no merge has: usually nothing, or what was published since.
    loose = shelf.pointers([name for name in shelf.recordings() if name not in merged][: MAX_LOOSE * MAX_KEYS])
    keys = dict.fromkeys([*best, *(pointer.key for pointer in loose)])
    wanted = [one for one in keys if key is None or one.matches(key)]
    found = in_threads(lambda one: _sample(shelf, best.get(one, []), [pointer for pointer in loose if pointer.key == one]), wanted)
    return [sample for sample in found if sample is not None]


def _best(shelf: Shelf, merges: list[Pointer]) -> dict[Key, list[Pointer]]:
    """Return the merges of each key, the one first that has most of the recordings that are there."""
    by_key: dict[Key, list[Pointer]] = {}
    for pointer in merges:
        by_key.setdefault(pointer.key, []).append(pointer)
    present = frozenset(shelf.infos)
    for ranked in by_key.values():
        ranked.sort(key=lambda one: (-len(one.inputs & present), -one.starts, -shelf.infos[one.id].mtime, one.id))
    return by_key


def _sample(shelf: Shelf, ranked: list[Pointer], loose: list[Pointer]) -> Sample | None:
    """Return the profile of one key: of the first of its merges that can be used, and the newest recordings that this one lacks."""
    base: Pointer | None = None
    profiles: dict[str, Profile] = {}
    for pointer in ranked:
        profiles = shelf.profiles([pointer])
        if profiles:
            base = pointer
            break
    if ranked and base != ranked[0]:
        lacking = {*ranked[0].inputs, *(one.id for one in loose)} - (base.inputs if base else frozenset())
        names = [name for name in shelf.recordings() if name in lacking][:MAX_LOOSE]
        loose = [one for one in shelf.pointers(names) if one.key == ranked[0].key]
    samples = [Sample(profile, shelf.infos[name].mtime) for name, profile in shelf.profiles(loose[:MAX_LOOSE]).items()]
    times = [sample.recorded for sample in samples]
    if base is not None:
        recorded = max((shelf.infos[name].mtime for name in base.inputs if name in shelf.infos), default=shelf.infos[base.id].mtime)
        # Its starts come after those that it lacks: it would leave them no room otherwise.
        samples.append(Sample(profiles[base.id], min(recorded, math.nextafter(min(times, default=math.inf), -math.inf))))
        times.append(recorded)
    return Sample(merge(samples), max(times)) if samples else None


def listing(source: ProfileSource, manifest: str) -> Iterator[PointerInfo]:
    """Yield what the store has for an image: merges first, the newest first of each kind. What is damaged is there too, with the reason."""
    shelf = Shelf(source, manifest, _nobody)
    names = [*shelf.merges(), *shelf.recordings()]
    pointers = {pointer.id: pointer for pointer in shelf.pointers(names)}
    for name in names:
        yield PointerInfo(name, shelf.infos[name].mtime, pointers.get(name), shelf.problem(name))


def read_one(source: ProfileSource, manifest: str, name: str) -> Profile:
    """Return one of an image's profiles, by its id. ``NotFoundError``, or why it cannot be used."""
    problems: list[ImageFSError] = []
    shelf = Shelf(source, manifest, lambda _, error: problems.append(error))
    found = shelf.profiles(shelf.pointers([name])).get(name)
    if found is None:
        raise problems[-1] if problems else _missing(name)
    return found


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"the image has no profile {name[:80]}", hint="`imagefs profile ls` lists those that it has")


# -- writing ------------------------------------------------------------------------------------------------------------------------------


def publish(
    store: ObjectStore, profile: Profile, *, always: bool = False, ignored: Ignored = _nobody, clock: Callable[[], float] = time.time
) -> str:
    """Add what a host recorded, merge, and delete what that makes superfluous. Return its id; ``""`` if it tells nothing new.

    ``always``: also then. ``AccessError`` from a store that this host may only read. Doing it again, after an error or a crash, is right.
    """
    if not always and _is_known(store, profile, ignored, clock()):
        return ""
    data = encode(profile)
    digest, _ = put_blob(store, data)
    pointer = pointer_to(profile, digest, len(data))
    store.put_if_absent(profile_key(profile.manifest, pointer.id), encode_pointer(pointer))
    shelf = Shelf(store, profile.manifest, ignored)
    merges = shelf.pointers(shelf.merges()[:_MERGES])
    _remerge(store, shelf, profile.manifest, profile.key, merges)
    _forget_keys(store, shelf, profile.manifest, profile.key, merges)
    return pointer.id


def _is_known(store: ProfileSource, profile: Profile, ignored: Ignored, now: float) -> bool:
    """Say whether the merge of its key has as good as all of it, from many starts, and is of late.

    A host whose clock is wrong may think that a merge is of another time: at worst it publishes what need not be.
    """
    shelf = Shelf(store, profile.manifest, ignored)
    merges = [pointer for pointer in shelf.pointers(shelf.merges()[:_MERGES]) if pointer.key == profile.key]
    for pointer in _best(shelf, merges).get(profile.key, [])[:1]:
        age = now - shelf.infos[pointer.id].mtime
        if pointer.starts >= _KNOWN_STARTS and -_CLOCKS_SECONDS < age < _KNOWN_SECONDS:
            merged = shelf.profiles([pointer]).get(pointer.id)
            return merged is not None and covered(profile.columns, merged.columns) >= _KNOWN_SHARE
    return False


def _of_key(shelf: Shelf, key: Key, merges: list[Pointer]) -> list[Pointer]:
    """Return the recordings of a key, the newest first. Those that a merge of another key has are not looked at."""
    others = frozenset[str]().union(*(pointer.inputs for pointer in merges if pointer.key != key))
    names = [name for name in shelf.recordings() if name not in others][:_CANDIDATES]
    return [pointer for pointer in shelf.pointers(names) if pointer.key == key]


def _remerge(store: ObjectStore, shelf: Shelf, manifest: str, key: Key, merges: list[Pointer]) -> None:
    """Merge the newest recordings of a key; then delete older ones, and merges that the new one makes superfluous."""
    recordings = _of_key(shelf, key, merges)
    profiles = shelf.profiles(recordings[:MAX_STARTS])
    new: Pointer | None = None
    if profiles:
        merged = merge(Sample(profile, shelf.infos[name].mtime) for name, profile in profiles.items())
        data = encode(merged)
        digest, _ = put_blob(store, data)
        new = pointer_to(merged, digest, len(data), profiles)
        store.put_if_absent(profile_key(manifest, new.id), encode_pointer(new))
    older = recordings[MAX_STARTS:]
    # A merge that has a recording which nobody can read any more stays: it is all that there is of that one.
    needless = frozenset([*profiles, *(pointer.id for pointer in older)])
    superseded = [
        pointer
        for pointer in merges
        if pointer.key == key and (new is None or pointer.id != new.id) and needless.issuperset(pointer.inputs & frozenset(shelf.infos))
    ]
    _discard(store, shelf, manifest, [*superseded, *older], spared=new.digest if new else "")


def _forget_keys(store: ObjectStore, shelf: Shelf, manifest: str, own: Key, merges: list[Pointer]) -> None:
    """Delete the profiles of the keys that were published to longest ago, where there are more than ``MAX_KEYS``."""
    newest: dict[Key, float] = {}
    owner: dict[str, Key] = {}
    for pointer in merges:
        newest[pointer.key] = max(newest.get(pointer.key, -math.inf), shelf.infos[pointer.id].mtime)
        owner |= dict.fromkeys(pointer.inputs, pointer.key)
    unknown = [name for name in shelf.recordings() if name not in owner][:_CANDIDATES]
    for pointer in shelf.pointers(unknown):
        owner[pointer.id] = pointer.key
    for name, key in owner.items():
        if name in shelf.infos:
            newest[key] = max(newest.get(key, -math.inf), shelf.infos[name].mtime)
    newest[own] = math.inf
    leaving = set(sorted(newest, key=lambda key: (-newest[key], key))[MAX_KEYS:])
    if leaving:
        names = [name for name in shelf.recordings() if owner.get(name) in leaving]
        found = [pointer for pointer in [*shelf.pointers(names), *merges] if pointer.key in leaving]
        _discard(store, shelf, manifest, found)


def _discard(
    store: ObjectStore, shelf: Shelf, manifest: str, pointers: list[Pointer], *, spared: str = "", failed: Ignored | None = None
) -> None:
    """Delete pointers, then their blobs where those are profiles of this image that no other pointer leads to; never the blob ``spared``.

    ``failed`` is told what cannot be deleted. By default that is passed over: the next one who publishes tries again.
    """
    leaving = {pointer.id for pointer in pointers}
    staying = shelf.leads_elsewhere(leaving) | {spared}

    def discard(pointer: Pointer) -> None:
        try:
            is_ours = pointer.digest not in staying and bool(shelf.profiles([pointer]))
            store.delete(profile_key(manifest, pointer.id))
            if is_ours:
                store.delete(blob_key(pointer.digest))
        except ImageFSError as error:
            (failed or shelf.tell)(pointer.id, error)

    in_threads(discard, pointers)


def remove(store: ObjectStore, manifest: str, names: Collection[str] = (), *, ignored: Ignored = _nobody) -> list[str]:
    """Delete profiles of an image, by id, damaged ones too; all, if none are named. Return the ids of those that are gone.

    What recordings that go have told goes with them: their keys are merged anew. ``NotFoundError`` for an id that there is not; then
    nothing was deleted.
    """
    shelf = Shelf(store, manifest, ignored)
    for name in names:
        if name not in shelf.infos:
            raise _missing(name)
    leaving = list(dict.fromkeys(names)) or [*shelf.recordings(), *shelf.merges()]
    merges = shelf.pointers(shelf.merges())
    pointers = shelf.pointers(leaving)
    sound = {pointer.id for pointer in pointers}
    for name in leaving:
        if name not in sound:
            store.delete(profile_key(manifest, name))
    _discard(store, shelf, manifest, pointers, failed=_fail)
    stale = {pointer.key for pointer in merges if pointer.id not in leaving and not pointer.inputs.isdisjoint(leaving)}
    if stale:
        after = Shelf(store, manifest, ignored)
        left = after.pointers(after.merges()[:_MERGES])
        for key in stale:
            _remerge(store, after, manifest, key, left)
    return leaving


def _fail(_name: str, error: ImageFSError) -> None:
    raise error
