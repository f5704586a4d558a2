"""Profiles on this host: ``<cache>/profiles/<manifest>`` has what the store said last, so that a start is helped at once, and offline.

What this host recorded and could not publish, because it may only read the store, is beside it, in ``<manifest>.local``.

Invariants:

- a file is there whole or not at all (written under another name, then renamed) and is verified each time it is read; one that is damaged,
  cut, or of another version is removed and was never there. So nothing here needs to be durable;
- there are at most ``MAX_IMAGES`` images, of ``MAX_BYTES`` together: those that were not used for longest go;
- a disk that is full or broken costs the memory, never a mount: ``unusable`` is told, once, and nothing is raised.

Blocks: use it in threads. One process writes, any may read. What does not live here: what has not been published yet (``spool/``, beside
these files), and when something is kept.
"""

import contextlib
import math
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from imagefs.digest import DIGEST_SIZE, digest_of, is_hex_digest
from imagefs.errors import ImageFSError, IntegrityError, UsageError
from imagefs.format.profile import MAX_PROFILE, Key, Profile, Sample, decode, encode, merge, select
from imagefs.store.profiles import MAX_KEYS

PROFILES: Final = "profiles"
"""The folder, in the cache directory."""

MAX_IMAGES: Final = 256
MAX_BYTES: Final = 128 << 20

_LOCAL: Final = ".local"
_MAGIC: Final = b"IMFSPRFS"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sII")
_ROW: Final = struct.Struct("<dI")
_FILE_MAX: Final = _HEAD.size + MAX_KEYS * (_ROW.size + MAX_PROFILE) + DIGEST_SIZE


class ProfileFiles:
    """See the module."""

    def __init__(self, cache: Path, unusable: Callable[[Exception], None]) -> None:
        """Do nothing yet."""
        self._folder = cache / PROFILES
        self._unusable = unusable
        self._is_told = False
        self._written: dict[str, int] = {}

    def keep(self, manifest: str, samples: Iterable[Sample]) -> None:
        """Keep what the store has for an image, a sample for each key, in place of what was kept of it. Of too many keys the newest."""
        self._write(self._path(manifest), samples)

    def add(self, manifest: str, profile: Profile) -> None:
        """Merge what this host recorded, and could not publish, into what it recorded before."""
        path = self._path(manifest, _LOCAL)
        known = self._read(path)
        now = max((sample.recorded for sample in known), default=0.0) + 1.0
        own = [sample for sample in known if sample.profile.key == profile.key]
        others = [sample for sample in known if sample.profile.key != profile.key]
        self._write(path, [*others, Sample(merge([*own, Sample(profile, now)]), now)])

    def forget_added(self, manifest: str) -> None:
        """Forget what could not be published: it has been, or something like it."""
        with contextlib.suppress(OSError):
            self._path(manifest, _LOCAL).unlink(missing_ok=True)
        self._changed(manifest)

    def written(self, manifest: str) -> int:
        """Return a number that changes when this process changes what is kept of an image."""
        return self._written.get(manifest, 0)

    def _changed(self, manifest: str) -> None:
        self._written[manifest] = self._written.get(manifest, 0) + 1

    def samples(self, manifest: str) -> list[Sample]:
        """Return all that is kept of an image. What this host recorded itself is newer than what the store said."""
        kept = self._read(self._path(manifest))
        newest = max((sample.recorded for sample in kept), default=0.0)
        after = math.nextafter(newest, math.inf)
        return [*kept, *(Sample(profile, after + age) for profile, age in self._read(self._path(manifest, _LOCAL)))]

    def load(self, manifest: str, key: Key | None) -> Profile | None:
        """Return the profile of the starts that match ``key`` (None: all), or None, as ``imagefs.store.profiles.fetch`` does."""
        return select(self.samples(manifest), key)

    def recent(self) -> list[str]:
        """Return the images of which anything is kept, the one that was read or written last first."""
        found: dict[str, float] = {}
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name.removesuffix(_LOCAL)
                if is_hex_digest(name) and entry.is_file(follow_symlinks=False):
                    found[name] = max(found.get(name, 0.0), entry.stat(follow_symlinks=False).st_mtime)
        return sorted(found, key=lambda name: (-found[name], name))

    def _path(self, manifest: str, suffix: str = "") -> Path:
        if not is_hex_digest(manifest):
            raise UsageError(f"not a manifest's digest: {manifest[:80]!r}")
        return self._folder / f"{manifest}{suffix}"

    def _read(self, path: Path) -> list[Sample]:
        try:
            if path.stat().st_size > _FILE_MAX:
                raise IntegrityError("longer than any")
            samples = _parse(path.read_bytes())
            os.utime(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._tell(error)
            return []
        except ImageFSError:
            with contextlib.suppress(OSError):
                path.unlink()
            return []
        return samples

    def _write(self, path: Path, samples: Iterable[Sample]) -> None:
        data = _build(sorted(samples, key=lambda sample: (-sample.recorded, sample.profile.key))[:MAX_KEYS])
        try:
            with contextlib.suppress(FileNotFoundError):
                if path.read_bytes() == data:
                    os.utime(path)
                    return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            try:
                temporary.write_bytes(data)
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._changed(path.name.removesuffix(_LOCAL))
            self._forget_oldest()
        except OSError as error:
            self._tell(error)

    def _forget_oldest(self) -> None:
        found: list[tuple[float, int, str, str]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                # Files of one that was killed while it wrote are hidden; what else is here is not ours.
                name = entry.name.removeprefix(".")[: 2 * DIGEST_SIZE]
                if is_hex_digest(name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, name, entry.path))
        found.sort(reverse=True)
        images: set[str] = set()
        size = 0
        for _, length, name, path in found:
            size += length
            images.add(name)
            if len(images) > MAX_IMAGES or size > MAX_BYTES:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108 # a path as scandir gives it

    def _tell(self, error: Exception) -> None:
        if not self._is_told:
            self._is_told = True
            self._unusable(error)


def _build(samples: Sequence[Sample]) -> bytes:
    parts = [_HEAD.pack(_MAGIC, _VERSION, len(samples))]
    for profile, recorded in samples:
        data = encode(profile)
        parts += [_ROW.pack(recorded, len(data)), data]
    whole = b"".join(parts)
    return whole + digest_of(whole)


def _parse(data: bytes) -> list[Sample]:
    """Read what :func:`_build` made. An error of ours for anything else."""
    view = memoryview(data)
    if len(data) < _HEAD.size + DIGEST_SIZE or digest_of(view[:-DIGEST_SIZE]) != view[-DIGEST_SIZE:]:
        raise IntegrityError("not profiles, or damaged")
    magic, version, count = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or count > MAX_KEYS:
        raise IntegrityError("not profiles, or of another version")
    at = _HEAD.size
    samples: list[Sample] = []
    try:
        for _ in range(count):
            recorded, length = _ROW.unpack_from(data, at)
            at += _ROW.size + length
            samples.append(Sample(decode(view[at - length : at]), recorded))
    except struct.error:
        raise IntegrityError("profiles that are cut short") from None
    if at != len(data) - DIGEST_SIZE:
        raise IntegrityError("profiles with something behind them")
    return samples
