"""Which processes, and which other mounts, keep a mount busy, for the message that says so."""

import os
from pathlib import Path
from typing import Final

from imagefs.mount.mountinfo import read_mounts

_LINKS: Final = ("cwd", "root", "exe")
_MAX_PROCESSES: Final = 20_000
_MAX_DESCRIPTORS: Final = 4096
_MAX_MAPS: Final = 4 << 20


def holders(mountpoint: str, *, limit: int = 5) -> list[str]:
    """Return up to ``limit`` mounts that were made below ``mountpoint``, and processes, as ``name (pid)``, that use something there.

    They have a directory or file open or mapped, or run it. Looks at names only and follows no link, so it cannot hang on a dead mount.
    Processes of others show only to root.
    """
    prefix = mountpoint.rstrip("/") + "/"
    found = [f"the mount at {entry.mountpoint}" for entry in read_mounts() if entry.mountpoint.startswith(prefix)][:limit]
    for entry in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int)[:_MAX_PROCESSES]:  # noqa: PTH208
        process = Path("/proc") / entry
        try:
            if _holds(process, mountpoint, prefix):
                name = (process / "comm").read_text(errors="replace").strip()
                found.append(f"{name} ({entry})")
        except OSError:
            continue  # It has gone meanwhile, or is not ours to look at.
        if len(found) >= limit:
            break
    return found


def _holds(process: Path, mountpoint: str, prefix: str) -> bool:
    for link in _LINKS:
        if _below(process / link, mountpoint, prefix):
            return True
    descriptors = process / "fd"
    for name in os.listdir(descriptors)[:_MAX_DESCRIPTORS]:  # noqa: PTH208
        if _below(descriptors / name, mountpoint, prefix):
            return True
    with (process / "maps").open("rb") as maps:
        return b" " + os.fsencode(prefix) in maps.read(_MAX_MAPS)


def _below(link: Path, mountpoint: str, prefix: str) -> bool:
    try:
        target = os.readlink(link)  # noqa: PTH115 # a string, not a path that is looked at
    except OSError:
        return False
    return target == mountpoint or target.startswith(prefix)
