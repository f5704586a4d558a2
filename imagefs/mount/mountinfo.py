"""What is mounted, as the kernel says it: ``/proc/self/mountinfo``.

Reading it never touches a mountpoint, so it works where one hangs. Octal escapes are undone; names that are not UTF-8 come as
``os.fsdecode`` gives them.
"""

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

FUSE_TYPE: Final = "fuse.imagefs"
"""The file system type of our mounts in FUSE mode."""

OVERLAY_TYPE: Final = "overlay"
SOURCE: Final = "imagefs"
"""The file system type of those in kernel mode, and what they name as their source."""

_PATH: Final = Path("/proc/self/mountinfo")
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_ESCAPED: Final = re.compile(rb"[ \t\n\\]")


class MountEntry(NamedTuple):
    """One mount. ``device`` is ``major:minor``; ``root`` is what of the file system is shown at ``mountpoint``."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    options: frozenset[str]
    fstype: str
    source: str


def read_mounts() -> list[MountEntry]:
    """Return all mounts of this mount namespace, in the order in which they were made: a later one covers an earlier one."""
    return parse_mountinfo(_PATH.read_bytes())


def parse_mountinfo(data: bytes) -> list[MountEntry]:
    """Parse the file's content. Lines that are no mount are left out."""
    entries = []
    for line in data.split(b"\n"):
        fields = line.split(b" ")
        # Optional fields, none or more, end with "-" (proc_pid_mountinfo(5)).
        try:
            end = fields.index(b"-", 6)
            entries.append(
                MountEntry(
                    int(fields[0]),
                    int(fields[1]),
                    fields[2].decode(),
                    _unescape(fields[3]),
                    _unescape(fields[4]),
                    frozenset(fields[5].decode().split(",")),
                    _unescape(fields[end + 1]),
                    _unescape(fields[end + 2]),
                )
            )
        except (ValueError, IndexError):
            continue
    return entries


def read_images() -> list[MountEntry]:
    """Return those mounts that are images of ours, or our FUSE mounts, in the order in which they were made."""
    mark = SOURCE.encode()
    lines = [line for line in _PATH.read_bytes().split(b"\n") if mark in line]
    return [entry for entry in parse_mountinfo(b"\n".join(lines)) if is_image(entry)]


def mount_at(path: str | Path, entries: list[MountEntry] | None = None) -> MountEntry | None:
    """Return the mount that is visible at exactly this path, or None."""
    name = str(path)
    if entries is None:
        # Each mount asks this several times, and a host may have thousands of others: only what may be it is parsed.
        field = b" %s " % _ESCAPED.sub(lambda match: b"\\%03o" % match[0][0], os.fsencode(name))
        entries = parse_mountinfo(b"\n".join(line for line in _PATH.read_bytes().split(b"\n") if field in line))
    found = None
    for entry in entries:
        if entry.mountpoint == name:
            found = entry
    return found


def is_image(entry: MountEntry | None) -> bool:
    """Say whether a mount is one of our images, in whichever mode, or our FUSE mount."""
    return entry is not None and (entry.fstype == FUSE_TYPE or (entry.fstype == OVERLAY_TYPE and entry.source == SOURCE))


def _unescape(field: bytes) -> str:
    return os.fsdecode(field if b"\\" not in field else _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field))
