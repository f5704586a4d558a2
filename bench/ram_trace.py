"""Which policy the RAM tier needs: replay a trace of requests for slabs through LRU, SIEVE, plain S3-FIFO, and ``RamCache``.

``python bench/ram_trace.py`` prints what share of the bytes that were read again had to be fetched again. Two traces:

- *scan*: a hot set of small and large slabs, read again and again, while everything else is read once, in order;
- *import*: what ``import`` of some modules opens, recorded with an audit hook; then all files of the environment, as ``grep -r`` reads
  them; then the import again. Files are laid out as the converter does: small ones share frames, large ones are windows of 4 MiB.

There is no page cache in front, as after it was dropped or in a second container with its own; and no SSD tier behind.
"""

import argparse
import json
import random
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from imagefs.cache.ram import RamCache
from imagefs.cache.slab import Slab

KIB = 1024
FRAME = 256 * KIB
WINDOW = 4096 * KIB
REQUEST = 512 * KIB

Trace = list[tuple[Hashable, int]]
"""Requests in order: the slab's name and its size in bytes."""

_RECORDER = """
import json, os, sys
seen = []
def hook(event, args):
    if event == "open" and isinstance(args[0], str):
        seen.append(os.path.realpath(args[0]))
    elif event == "import" and isinstance(args[1], str):
        seen.append(os.path.realpath(args[1]))
sys.addaudithook(hook)
for name in sys.argv[1:]:
    __import__(name)
with open(1, "w", closefd=False) as out:
    json.dump(seen, out)
"""


class Policy(Protocol):
    """What a trace is replayed through."""

    def read(self, name: Hashable, size: int) -> bool:
        """Read a slab; return whether it was there."""


class Lru:
    """Least recently used goes first."""

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes."""
        self._limit = limit
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()
        self._used = 0

    def read(self, name: Hashable, size: int) -> bool:
        """See ``Policy``."""
        if name in self._sizes:
            self._sizes.move_to_end(name)
            return True
        self._sizes[name] = size
        self._used += size
        while self._used > self._limit:
            self._used -= self._sizes.popitem(last=False)[1]
        return False


class Sieve:
    """SIEVE (Zhang et al., NSDI 2024): one queue that nothing moves in, a visited bit, and a hand that goes from old to new."""

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes."""
        self._limit = limit
        self._order: list[Hashable] = []
        self._slabs: dict[Hashable, tuple[int, bool]] = {}
        self._hand = 0
        self._used = 0

    def read(self, name: Hashable, size: int) -> bool:
        """See ``Policy``."""
        if name in self._slabs:
            self._slabs[name] = (size, True)
            return True
        while self._used + size > self._limit and self._order:
            self._hand %= len(self._order)
            victim = self._order[self._hand]
            weight, visited = self._slabs[victim]
            if visited:
                self._slabs[victim] = (weight, False)
                self._hand += 1
            else:
                del self._order[self._hand], self._slabs[victim]
                self._used -= weight
        self._order.append(name)
        self._slabs[name] = (size, False)
        self._used += size
        return False


class _Named(Slab):
    """A slab without memory."""

    __slots__ = ()

    def __init__(self, key: Hashable, size: int) -> None:
        super().__init__(key, (0, 0))
        self.bounds = (0, size)


class Ours:
    """``RamCache``; ``correlated`` counts each request as a use, which is S3-FIFO as published."""

    def __init__(self, limit: int, *, correlated: bool = False) -> None:
        """``limit`` is in bytes."""
        self._ram = RamCache(limit)
        self._correlated = correlated

    def read(self, name: Hashable, size: int) -> bool:
        """See ``Policy``."""
        slab = self._ram.get(name)
        found = slab is not None
        if slab is None:
            slab = _Named(name, size)
            self._ram.add(slab)
            self._ram.landed(slab, slab.set_ready(0))
        if self._correlated:
            slab.due = 0
        self._ram.touch(slab)
        return found


POLICIES: dict[str, Callable[[int], Policy]] = {
    "lru": Lru,
    "sieve": Sieve,
    "s3-fifo": lambda limit: Ours(limit, correlated=True),
    "ours": Ours,
}


@dataclass
class Layout:
    """Where files lie: small ones share frames in the order in which they are added."""

    places: dict[str, Trace]
    frame: int = 0
    filled: int = 0

    def add(self, path: str, size: int) -> None:
        """Lay out a file of ``size`` bytes."""
        if size > FRAME:
            windows = [(f"{path}:{start}", min(WINDOW, size - start)) for start in range(0, size, WINDOW)]
            self.places[path] = [window for window in windows for _ in range(0, window[1], REQUEST)]
            return
        if self.filled + size > FRAME:
            self.frame += 1
            self.filled = 0
        self.filled += size
        self.places[path] = [(self.frame, FRAME)]


def scan_trace(hot: int = 48, cold: int = 1500, seed: int = 1) -> Trace:
    """Return a hot set of about 36 MiB, always in use, and a scan of 6 GiB: between two uses of a hot slab lie about 100 MiB of it."""
    chance = random.Random(seed)
    hot_set = [(("hot", number), WINDOW if number % 8 == 0 else FRAME) for number in range(hot)]
    trace: Trace = [request for request in hot_set for _ in range(2)]
    for number in range(cold):
        trace += [(("cold", number), WINDOW)] * (WINDOW // REQUEST)
        trace += chance.sample(hot_set, 2)
    return trace


def import_trace(modules: Iterable[str], rounds: int = 1) -> tuple[Trace, int]:
    """Record an import; return it, a walk over all files, and so on for ``rounds``, and the import once more. And the bytes of one walk."""
    command = [sys.executable, "-B", "-c", _RECORDER, *modules]
    opened: list[str] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    roots = {Path(sys.prefix).resolve(), Path(json.__file__).resolve().parent.parent}
    files = sorted({path.resolve() for root in roots for path in root.rglob("*") if path.is_file()})
    layout = Layout({})
    for path in files:
        layout.add(str(path), path.stat().st_size)
    start = [request for path in opened for request in layout.places.get(path, ())]
    walk = [request for requests in layout.places.values() for request in requests]
    return [*((start + walk) * rounds), *start], sum(dict(walk).values())


def replay(trace: Trace, policy: Policy) -> float:
    """Return how many of the bytes that were read before had to be fetched again: a share. Requests in a row for a slab are one reading."""
    seen: set[Hashable] = set()
    again = missed = 0
    before: Hashable = None
    for name, size in trace:
        found = policy.read(name, size)
        if name in seen:
            again += size if name != before else 0
            missed += 0 if found else size
        seen.add(name)
        before = name
    return missed / again


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=["boto3.session", "botocore.client", "hypothesis", "trio", "mypy.build", "moto"])
    options = parser.parse_args()
    imported, walked = import_trace(options.modules)
    mib = 1024 * KIB
    cases = [("scan", scan_trace(), size * mib) for size in (64, 128, 256, 512)]
    cases += [("import", imported, walked * share // 100) for share in (5, 10, 25, 50, 80)]
    sys.stdout.write(f"one walk: {walked / mib:.0f} MiB\n{'trace':8} {'RAM MiB':>8} " + " ".join(f"{name:>8}" for name in POLICIES) + "\n")
    for name, trace, limit in cases:
        shares = [replay(trace, policy(limit)) for policy in POLICIES.values()]
        sys.stdout.write(f"{name:8} {limit / mib:8.0f} " + " ".join(f"{share:8.1%}" for share in shares) + "\n")


if __name__ == "__main__":
    main()
