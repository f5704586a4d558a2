"""Which other image's profile serves one that has none: profiles are by content, so an image built from another inherits what both have.

The rule is cheap and looks at content alone. Candidates are first what the image was optimized from, if it was; then, on this host, what
the same name stood for before, and what was used last; and in the store what other tags of that name stand for, the newest first. The first
that has nine tenths of what it names in the new image is taken; else the best, if that is a quarter at least. ``CANDIDATES_MAX`` are looked
at.

Blocking functions. What does not live here: where profiles are kept.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Protocol

from imagefs.cache.names import ResolvedNames
from imagefs.errors import ImageFSError
from imagefs.format.objectmap import ObjectMap
from imagefs.format.profile import Key, Profile, Sample, covered
from imagefs.store import refs
from imagefs.store.base import ObjectStore

CANDIDATES_MAX: Final = 8
_SAMPLE: Final = 256
_GOOD: Final = 0.9
_LEAST: Final = 0.25
_NEWS: Final = 0.95
_TAGS_MAX: Final = 4


class KeptProfiles(Protocol):
    """What this host keeps. Blocks; raises ``ImageFSError``."""

    def kept(self, manifest: str, key: Key | None) -> Profile | None:
        """Return an image's, of all keys together if ``key`` is None."""

    def fetch(self, manifest: str, key: Key | None) -> Profile | None:
        """Return what the store has of an image, and keep it on this host."""

    def samples(self, manifest: str) -> list[Sample]:
        """Return what this host keeps of an image, by key."""

    def recent(self) -> list[str]:
        """Return the manifests of which there are profiles here, the one that was used last first."""


def best_of(candidates: Iterable[Profile], objects: ObjectMap) -> Profile | None:
    """Return the profile that fits an image best, None if none does."""
    best: Profile | None = None
    most = _LEAST
    for profile in islice(candidates, CANDIDATES_MAX):
        fits = coverage(profile, objects)
        if fits >= most:
            best, most = profile, fits
        if most >= _GOOD:
            break
    return best


def coverage(profile: Profile, objects: ObjectMap) -> float:
    """Return how much of what a profile names an image has, of 1: by a sample of its objects, which are in no order that means anything."""
    names = profile.columns.names()
    sample = names[:: max(1, len(names) // _SAMPLE)]
    return sum(objects.find(name) is not None for name in sample) / len(sample) if sample else 0.0


def is_news(new: Profile, old: Profile) -> bool:
    """Say whether a profile names much that another does not: a twentieth of it. Following another one costs as much again."""
    return covered(new.columns, old.columns) < _NEWS


class Relatives:
    """Profiles of images that may be much like another."""

    def __init__(self, profiles: KeptProfiles, names: Callable[[], ResolvedNames | None], store: ObjectStore) -> None:
        """``names`` gives what refs stood for when this host resolved them."""
        self._profiles = profiles
        self._names = names
        self._store = store

    def kept(self, manifest: str, ref: str, origin: str = "") -> Iterator[Profile]:
        """Yield those on this host, the likeliest first.

        ``manifest`` is the image's own, ``ref`` what it is mounted by, ``origin`` what it was optimized from, if it was.
        """
        seen = {manifest}
        names = self._names()
        named = names.former(self._store.url, name_of(ref)) if names is not None and ref else []
        for other in (origin, *named, *self._profiles.recent()):
            if other and other not in seen:
                seen.add(other)
                yield from self._one(other, self._profiles.kept)

    def stored(self, manifest: str, ref: str, origin: str = "") -> Iterator[Profile]:
        """Yield those that the store has: of the origin, and of other tags of the same name, the newest first."""
        seen = {manifest}
        for other in (origin, *(self._tags(ref) if ref else ())):
            if other and other not in seen:
                seen.add(other)
                yield from self._one(other, self._profiles.fetch)

    def _one(self, manifest: str, ask: Callable[[str, Key | None], Profile | None]) -> Iterator[Profile]:
        try:
            found = ask(manifest, None)
        except ImageFSError:
            # Of several one may well be damaged.
            return
        if found is not None:
            yield found

    def _tags(self, ref: str) -> Iterator[str]:
        try:
            prefix = refs.Ref.parse(ref).key.rpartition("/")[0] + "/"
            infos = [info for info in islice(self._store.list(prefix), 1024) if "/" not in info.key[len(prefix) :]]
            infos.sort(key=lambda info: info.mtime, reverse=True)
        except ImageFSError:
            return
        for info in infos[:_TAGS_MAX]:
            name, _, tag = info.key.removeprefix("refs/").rpartition("/")
            try:
                yield refs.read(self._store, refs.Ref.parse(f"{name.replace('+', ':')}:{tag}")).manifest
            except ImageFSError:
                continue


def name_of(ref: str) -> str:
    """Return a ref without its tag or digest."""
    try:
        return refs.Ref.parse(ref.partition("@")[0]).name
    except ImageFSError:
        return ""
