"""What a sandbox's root lies on: where that is an overlay itself, on the layers of that overlay.

CRIU finds out where a mapped file is from by its mount. From a file of an overlay on an overlay the kernel tells one that is in no mount
namespace, and CRIU refuses (measured, Linux 6.18 and CRIU 4.1.1). So a mount of an image in kernel mode, which is an overlay, is not put
below the sandbox's own: its layers are, data-only ones included. What they show is the same.

What does not live here: mounting (``namespaces``).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_ESCAPED: Final = re.compile(rb"\\(.)")
_COLON: Final = re.compile(rb"(?<!\\):")


@dataclass(frozen=True, slots=True)
class Layers:
    """``lower``, the topmost first, and below them ``data``, in which only overlayfs itself looks for content."""

    lower: tuple[Path, ...]
    data: tuple[Path, ...] = ()


def layers_of(root: Path) -> Layers:
    """Return what to put below a writable layer so that ``root`` is seen: that itself, if it is no overlay, or one that cannot be taken."""
    found = parse(_MOUNTS.read_bytes(), os.fsencode(os.path.realpath(root)))
    if found is not None and all(path.is_absolute() and path.is_dir() for path in (*found.lower, *found.data)):
        return found
    return Layers((root,))


def parse(mounts: bytes, place: bytes) -> Layers | None:
    """Return the layers of the overlay that is mounted at ``place``; None if what is seen there is no overlay, or has a writable layer."""
    options = None
    for line in mounts.splitlines():
        fields = line.split(b" ")
        if _plain(fields[4]) == place:
            kind = fields.index(b"-", 6) + 1
            options = fields[kind + 2].split(b",") if fields[kind] == b"overlay" and fields[3] == b"/" else None
    if options is None:
        return None
    lower: list[bytes] = []
    data: list[bytes] = []
    for option in options:
        key, _, value = option.partition(b"=")
        if key == b"upperdir":
            return None
        if key == b"lowerdir+":
            lower.append(_plain(value))
        elif key == b"datadir+":
            data.append(_plain(value))
        elif key == b"lowerdir":
            first, *others = _plain(value).split(b"::")
            lower += [_ESCAPED.sub(rb"\1", part) for part in _COLON.split(first)]
            data += [_ESCAPED.sub(rb"\1", part) for part in others]
    return Layers(tuple(Path(os.fsdecode(path)) for path in lower), tuple(Path(os.fsdecode(path)) for path in data))


def _plain(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), field)
