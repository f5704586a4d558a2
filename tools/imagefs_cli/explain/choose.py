"""Which start is meant: that of a mountpoint, the last one of an image, or a document in a file.

Documents come from the daemon's ``<cache>/starts/`` or from anywhere, and are read within a bound. A mountpoint is never looked at itself:
it may be a mount whose daemon hangs. What does not live here: what is in a document (``imagefs.format.start``).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imagefs.config import Config
from imagefs.daemon import client
from imagefs.errors import AccessError, DaemonError, ImageFSError, LimitError, MountError, NotFoundError, UsageError
from imagefs.format import start as format_
from imagefs.format.start import Head, Start
from imagefs.mount.mountinfo import is_image, mount_at

STARTS: Final = "starts"
"""The folder, in the cache directory."""

_NAME: Final = re.compile(r"([0-9a-f]{64})-(\d{1,16})\.json\.zst")
_PREFIX: Final = re.compile(r"[0-9a-f]{8,64}")
_HINT: Final = "`imagefs explain --list` shows what is kept; a start is recorded unless it is mounted with --no-record"


@dataclass(frozen=True, slots=True)
class Kept:
    """A document that the daemon keeps. ``began`` is in milliseconds since the epoch."""

    path: Path
    manifest: str
    began: int

    def head(self) -> Head | None:
        """Return what it is about; None if it is none, or gone."""
        try:
            return format_.decode_head(read(self.path))
        except ImageFSError:
            return None


def read(path: Path) -> bytes:
    """Return what is in a file, within the bound of documents. ``NotFoundError``, ``AccessError``, ``LimitError``."""
    try:
        with path.open("rb") as file:
            data = file.read(format_.MAX_START + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise AccessError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > format_.MAX_START:
        raise LimitError(f"{path} is larger than any start")
    return data


def kept(config: Config) -> list[Kept]:
    """Return what is kept on this host, the last start first."""
    found = []
    try:
        paths = list((config.cache / STARTS).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AccessError(
            f"cannot read {config.cache / STARTS}: {error.strerror}", hint="the starts of root's mounts are root's"
        ) from error
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(Kept(path, match[1], int(match[2])))
    return sorted(found, key=lambda item: (-item.began, item.manifest))


def find(config: Config, target: str, number: int = 1) -> list[Path]:
    """Return the documents of a target, those of the ``number``-th last start first; at least one.

    ``NotFoundError`` if nothing is recorded for it, ``MountError`` if it is a directory where nothing is and was mounted.
    """
    if not target:
        raise UsageError("nothing to explain: no target is given")
    place = client.absolute(target)
    if is_image(mount_at(place)):
        paths = _of_mount(config, place)
    elif target.startswith(("/", "./", "../")) or target.endswith((".json", ".zst")) or Path(target).is_file():
        paths = _of_path(config, place)
    else:
        paths = [item.path for item in _of_image(config, target)]
    if number > len(paths):
        raise NotFoundError(f"there is no start number {number} of {target}: {len(paths)} kept", hint=_HINT)
    return paths[number - 1 :]


def _of_mount(config: Config, place: str) -> list[Path]:
    """Return the running start of a mount, or what is kept of that place."""
    older = [item.path for item in kept(config) if (head := item.head()) is not None and head.mountpoint == place]
    try:
        running = Path(client.call(config, "explain", at=client.home(place), mountpoint=place)["path"])
    except (NotFoundError, DaemonError, AccessError):
        # It is over, or who would know is not there: what was written when it ended is.
        if older:
            return older
        raise
    return [running, *(path for path in older if path != running)]


def _of_path(config: Config, place: str) -> list[Path]:
    path = Path(place)
    if path.is_file():
        return [path]
    older = [item.path for item in kept(config) if (head := item.head()) is not None and head.mountpoint == place]
    if older:
        return older
    if path.is_dir():
        raise MountError(f"no image is mounted at {place}", hint=_HINT)
    raise NotFoundError(f"there is no file and no mount {place}", hint=_HINT)


def _of_image(config: Config, target: str) -> list[Kept]:
    """Return what is kept of an image, which is named by a ref, as when it was mounted or as the store has it now, or by a digest."""
    from imagefs.store import refs
    from imagefs.store.opening import open_store

    there = kept(config)
    digest = target.rpartition("@")[2]
    if _PREFIX.fullmatch(digest):
        found = [item for item in there if item.manifest.startswith(digest)]
    else:
        ref = str(refs.Ref.parse(target))
        found = [item for item in there if (head := item.head()) is not None and head.ref and _normal(head.ref) == ref]
        if not found and there:
            manifest = refs.resolve(open_store(config.store), target)
            found = [item for item in there if item.manifest == manifest]
    if not found:
        raise NotFoundError(f"no start of {target} is recorded on this host", hint=_HINT)
    return found


def _normal(ref: str) -> str:
    from imagefs.store import refs

    try:
        return str(refs.Ref.parse(ref.rpartition("@")[0] or ref))
    except ImageFSError:
        return ref


def rows(config: Config, target: str) -> Iterator[tuple[Kept, Head]]:
    """Yield what is kept, of a target or of all, the last start first."""
    wanted = set(find(config, target)) if target else None
    for item in kept(config):
        if (wanted is None or item.path in wanted) and (head := item.head()) is not None:
            yield item, head


def earlier(config: Config, start: Start) -> int:
    """Count the starts of the same image and label that are kept and were over when this one began."""
    heads = (item.head() for item in kept(config) if item.manifest == start.manifest and item.began < 1000 * start.began - 1)
    return sum(head is not None and head.label == start.label and head.began + head.seconds < start.began for head in heads)


def origin(config: Config, start: Start) -> Start | None:
    """Return the last start of what an optimized image was made from, of the same label; None if there is none."""
    if start.optimized is None:
        return None
    for item in kept(config):
        if item.manifest == start.optimized.manifest:
            try:
                found = format_.decode(read(item.path))
            except ImageFSError:
                continue
            if found.label == start.label and (found.reads or found.opens):
                return found
    return None
