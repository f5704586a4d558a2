"""How often the kernel has killed a process of this one's cgroup for want of memory: that tells such a death from any other ``kill -9``.

It does not say which process; who asks before and after a death knows enough. Reads two small files of kernel file systems. Nothing heavy
is imported: the supervisor asks.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def oom_kills() -> int | None:
    """Return the number, or None where the kernel does not say."""
    for file in _files():
        with suppress(OSError, ValueError):
            for line in file.read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return None


def _files() -> list[Path]:
    """Return where it may be said: by version 2 of cgroups, which may be mounted in two places, or by version 1."""
    found = []
    with suppress(OSError):
        for line in _OWN.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            below = path.lstrip("/")
            if not controllers:
                found += [folder / below / "memory.events" for folder in (_CGROUPS, _CGROUPS / "unified")]
            elif "memory" in controllers.split(","):
                found.append(_CGROUPS / "memory" / below / "memory.oom_control")
    return found
