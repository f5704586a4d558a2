"""Profiles as a mount finds them: what this host keeps, and what the store has, which is kept.

Blocks: use it in threads. What does not live here: the files (``imagefs.cache.profile_files``), the store's keys
(``imagefs.store.profiles``), and recording.
"""

from imagefs.cache.profile_files import ProfileFiles
from imagefs.format.profile import Key, Profile
from imagefs.store.pointers import ProfileSource
from imagefs.store.profiles import fetch_keys


class HostProfiles:
    """Of one host and one store."""

    def __init__(self, store: ProfileSource, files: ProfileFiles) -> None:
        """``files`` are those of this host."""
        self._store = store
        self._files = files

    def kept(self, manifest: str, key: Key | None) -> Profile | None:
        """Return what this host has of an image, of all keys together if ``key`` is None."""
        return self._files.load(manifest, key)

    def fetch(self, manifest: str, key: Key | None) -> Profile | None:
        """Return what the store has of an image, with what this host could not publish; and keep it. Raises what the store does."""
        found = fetch_keys(self._store, manifest)
        if found:
            self._files.keep(manifest, found)
        return self._files.load(manifest, key)

    def recent(self) -> list[str]:
        """Return the manifests of which there are profiles here, the one that was used last first."""
        return self._files.recent()
