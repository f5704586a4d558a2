"""The root file system of a bundle in the store: an image like any other, named by what the directory's ``stat`` says.

Reading all of a root to learn that it is there already would take longer than freezing its program. So its ref is named by the digest of
names, sizes, times, owners and numbers of all that is below the directory, change times included, which no program can set: a ref of that
name has the image that was made of just this. A directory that has changed within the last second is always read, because a file system's
clock may not tell a change after the reading from one before it.

What does not live here: what an image of a directory has (``imagefs.convert``).
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from imagefs.convert.convert import convert
from imagefs.convert.stages import Progress
from imagefs.digest import Hasher
from imagefs.errors import NotFoundError, SourceError
from imagefs.store.base import ObjectStore
from imagefs.store.checked import CheckedStore
from imagefs.store.images import get_manifest
from imagefs.store.refs import Ref, read

_SETTLED_NS: Final = 1_000_000_000


class Root(NamedTuple):
    """The ref, the manifest in hex, the bytes that it added to the store, and what was damaged there and is written again."""

    ref: str
    manifest: str
    new_bytes: int
    healed: int = 0


def publish(
    store: ObjectStore, root: Path, app: str, *, jobs: int, recheck: bool = False, progress: Callable[[Progress], None] | None = None
) -> Root:
    """Put a directory into the store, below ``bundles/APP``, unless it is there. Errors as of ``convert``.

    ``recheck``: what is there is verified, and written again if it is damaged.
    """
    ref = Ref.parse(f"bundles/{app}:{_identity(root)[:32]}")
    checked = CheckedStore(store)
    if not recheck:
        try:
            name = read(store, ref).manifest
            get_manifest(store, name)
            return Root(str(ref), name, 0)
        except NotFoundError:
            pass
    report = convert(f"dir:{root}", ref, checked if recheck else store, jobs=jobs, progress=progress)
    return Root(str(ref), report.manifest, report.new_bytes, len(checked.healed))


def _identity(root: Path) -> str:
    hasher = Hasher()
    newest = 0
    now = time.time_ns()
    try:
        for path, found in _below(os.fsencode(root)):
            kept = (
                found.st_mode,
                found.st_dev,
                found.st_ino,
                found.st_uid,
                found.st_gid,
                found.st_size,
                found.st_mtime_ns,
                found.st_ctime_ns,
            )
            hasher.update(b"%d %b %b\n" % (len(path), path, b" ".join(b"%d" % number for number in kept)))
            newest = max(newest, found.st_ctime_ns)
    except OSError as error:
        raise SourceError(f"{os.fsdecode(error.filename)} cannot be read: {error.strerror}") from error
    if newest > now - _SETTLED_NS:
        hasher.update(b"%d" % now)  # a name that is never looked for again
    return hasher.digest().hex()


def _below(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Give all that is below a directory with itself, in one order."""
    yield b"", os.lstat(root)
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            yield entry.path[len(root) :], entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
