"""Profiles as a mount finds them: what this host keeps, and what the store has, which is kept.

Blocks: use it in threads. What does not live here: the files (``imagefs.cache.profile_files``), the store's keys
(``imagefs.store.profiles``), and recording.
"""

from typing import Final

from imagefs.cache.profile_files import ProfileFiles
from imagefs.format.profile import Key, Profile, Sample, select
from imagefs.store.pointers import ProfileSource
from imagefs.store.profiles import fetch_keys

_MERGED_MAX: Final = 4
"""Profiles that are remembered as they were merged: many mounts of one image ask for the same, and a large one has 4 MB."""


class HostProfiles:
    """Of one host and one store."""

    def __init__(self, store: ProfileSource, files: ProfileFiles) -> None:
        """``files`` are those of this host."""
        self._store = store
        self._files = files
        # What was merged last, and how often the files were written before.
        self._merged: dict[tuple[str, Key | None], tuple[int, Profile]] = {}
        # What the store said last, of images of which the files take nothing.
        self._unkept: dict[str, list[Sample]] = {}

    def kept(self, manifest: str, key: Key | None = None) -> Profile | None:
        """Return what this host has of an image, of all keys together if ``key`` is None."""
        # Read first: what is written meanwhile is not in what is remembered.
        written = self._files.written(manifest)
        known = self._merged.get((manifest, key))
        if known is not None and known[0] == written:
            return known[1]
        profile = self._files.load(manifest, key)
        self._merged.pop((manifest, key), None)
        if profile is not None:
            for oldest in list(self._merged)[: max(0, len(self._merged) - _MERGED_MAX + 1)]:
                self._merged.pop(oldest, None)
            self._merged[manifest, key] = written, profile
        return profile

    def fetch(self, manifest: str, key: Key | None) -> Profile | None:
        """Return what the store has of an image, with what this host could not publish; and keep it. Raises what the store does."""
        found = fetch_keys(self._store, manifest)
        if not found:
            return self.kept(manifest, key)
        self._files.keep(manifest, found)
        profile = self.kept(manifest, key)
        if profile is None and not self._files.samples(manifest):
            # A disk that is full keeps nothing, and is no reason to start without.
            for oldest in list(self._unkept)[: max(0, len(self._unkept) - _MERGED_MAX + 1)]:
                self._unkept.pop(oldest, None)
            self._unkept[manifest] = found
            profile = select(found, key)
        return profile

    def samples(self, manifest: str) -> list[Sample]:
        """Return what this host has of an image, by key: one of the same key may have two, what the store said and what is its own."""
        return self._files.samples(manifest) or self._unkept.get(manifest, [])

    def recent(self) -> list[str]:
        """Return the manifests of which there are profiles here, the one that was used last first."""
        return self._files.recent()
