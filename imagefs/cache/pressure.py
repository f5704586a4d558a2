"""How much RAM the RAM tier may take: less while the system is short of memory, more again when it is not.

The RAM tier shares its cgroup, and the machine, with what runs on it; a cache that gets its neighbours killed is worse than none. Two
signs are looked at, each only where the kernel shows it:

- *room*: what the cgroup may still take before ``memory.high`` or ``memory.max``, its own (version 2) or that of one above;
- *pressure* (PSI): the share of the last ten seconds that somebody waited for memory, of the cgroup's ``memory.pressure`` or the system's.

Invariants:

- :func:`decide` is pure, and its answer lies between ``floor`` and ``ceiling``, whatever the files say;
- a file that is missing, cannot be read or makes no sense says nothing, and where no file says anything the answer is ``ceiling``;
- the limit falls at once and by a part of itself, and grows back slowly, only after there was no pressure.

Reading takes a few small files of kernel file systems, which do not block on a disk: :meth:`Pressure.sample` may be called on the trio
thread, about once in ``INTERVAL`` seconds. What does not live here: who applies the answer (``RamCache.set_limit``).
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import trio

INTERVAL: Final = 2.0
"""Seconds between two samples."""

HIGH_PRESSURE: Final = 10.0
"""Per cent of the last ten seconds in which somebody waited for memory: from here on the RAM tier shrinks."""

LOW_PRESSURE: Final = 1.0
"""Per cent up to which it grows back."""

_SPARE_SHARE: Final = 20  # a twentieth of a cgroup's limit is left free
_FALL: Final = 0.75
_GROW_SHARE: Final = 32


@dataclass(frozen=True, slots=True)
class Group:
    """What one cgroup says, in bytes: what it takes, of which ``reclaimable`` is clean page cache, and what it may take at most."""

    current: int
    limit: int
    reclaimable: int = 0


@dataclass(frozen=True, slots=True)
class Signs:
    """What was read: the cgroups that have a limit, and the pressure in per cent, or None if nobody says."""

    groups: tuple[Group, ...] = ()
    pressure: float | None = None


def parse_bytes(text: str) -> int | None:
    """Read a file that holds one number of bytes; None for ``max`` and for anything else."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def parse_pressure(text: str) -> float | None:
    """Return the ``avg10`` of the line ``some`` of a PSI file, in per cent; None if there is none between 0 and 100."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["some"]:
            for word in words[1:]:
                name, _, value = word.partition("=")
                if name == "avg10":
                    with suppress(ValueError):
                        number = float(value)
                        return number if 0 <= number <= 100 else None
    return None


def parse_reclaimable(text: str) -> int:
    """Return how many bytes of a ``memory.stat`` the kernel can take back without writing: file pages not lately used, less dirty ones."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        number = parse_bytes(value)
        if number is not None:
            values[name] = number
    return max(values.get("inactive_file", 0) - values.get("file_dirty", 0) - values.get("file_writeback", 0), 0)


def parse_cgroup(text: str) -> str | None:
    """Return the path of the process's cgroup of version 2 from ``/proc/self/cgroup``, or None; never one that leads upwards."""
    for line in text.splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy == "0" and path.startswith("/") and ".." not in path.split("/"):
            return path
    return None


def decide(signs: Signs, *, used: int, limit: int, floor: int, ceiling: int) -> int:
    """Return how many bytes the RAM tier may take from now on, between ``floor`` and ``ceiling``.

    ``used`` is what it takes now, ``limit`` what it was allowed until now.
    """
    pressure = signs.pressure
    if pressure is not None and pressure >= HIGH_PRESSURE:
        allowed = int(min(limit, used) * _FALL)
    elif pressure is not None and pressure > LOW_PRESSURE:
        allowed = limit
    else:
        allowed = limit + max(ceiling // _GROW_SHARE, 1)
    for group in signs.groups:
        free = group.limit - group.limit // _SPARE_SHARE - (group.current - min(group.reclaimable, group.current))
        allowed = min(allowed, used + free)
    return max(floor, min(allowed, ceiling))


class Pressure:
    """Looks at the signs and remembers what was allowed. Belongs to one thread."""

    __slots__ = ("_ceiling", "_floor", "_folders", "_limit", "_psi", "_used")

    def __init__(
        self, ceiling: int, used: Callable[[], int], *, floor: int | None = None, folders: Iterable[Path] = (), psi: Iterable[Path] = ()
    ) -> None:
        """``ceiling`` is the configured limit and ``floor`` (a sixteenth of it) the least, in bytes; ``used`` tells what is taken now.

        ``folders`` are those of the cgroups whose limits hold, ``psi`` the files that may tell the pressure, the first that does counts.
        """
        self._ceiling = ceiling
        self._floor = min(ceiling // 16 if floor is None else floor, ceiling)
        self._used = used
        self._folders = tuple(folders)
        self._psi = tuple(psi)
        self._limit = ceiling

    @classmethod
    def of_this_process(
        cls, ceiling: int, used: Callable[[], int], *, proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")
    ) -> Self:
        """Look at the process's own cgroup and those above it, as ``proc`` and ``mount`` show them, and at the system's pressure."""
        path = parse_cgroup(_read(proc / "self" / "cgroup"))
        folders: list[Path] = []
        if path is not None:
            own = mount / path.strip("/")
            folders = [folder for folder in (own, *own.parents) if folder.is_relative_to(mount)]
        psi = [*(folder / "memory.pressure" for folder in folders[:1]), proc / "pressure" / "memory"]
        return cls(ceiling, used, folders=folders, psi=psi)

    @property
    def has_signs(self) -> bool:
        """Whether there is anything to look at: where not, nobody needs to call :meth:`sample`."""
        return self.read() != Signs()

    def read(self) -> Signs:
        """Read what the kernel shows now."""
        groups = tuple(group for folder in self._folders if (group := _read_group(folder)) is not None)
        pressure = next((found for path in self._psi if (found := parse_pressure(_read(path))) is not None), None)
        return Signs(groups, pressure)

    def sample(self) -> int:
        """Return how many bytes the RAM tier may take from now on."""
        self._limit = decide(self.read(), used=self._used(), limit=self._limit, floor=self._floor, ceiling=self._ceiling)
        return self._limit


async def follow(pressure: Pressure, set_limit: Callable[[int], None], interval: float = INTERVAL) -> None:
    """Apply each sample until cancelled; return at once where the kernel shows nothing."""
    if not pressure.has_signs:
        return
    while True:
        set_limit(pressure.sample())
        await trio.sleep(interval)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _read_group(folder: Path) -> Group | None:
    """Read a cgroup's figures; None if it has no limit, or does not say what it takes."""
    limits = [limit for name in ("memory.high", "memory.max") if (limit := parse_bytes(_read(folder / name))) is not None]
    if not limits:
        return None
    current = parse_bytes(_read(folder / "memory.current"))
    if current is None:
        return None
    return Group(current, min(limits), parse_reclaimable(_read(folder / "memory.stat")))
