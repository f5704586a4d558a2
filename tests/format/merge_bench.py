"""``python -m tests.format.merge_bench [alike|apart]``: merge a thousand profiles of ten thousand accesses each; what it takes, as JSON."""

import json
import random
import sys
import time
from array import array
from pathlib import Path

from imagefs.format.accesses import EVERY_START, Accesses
from imagefs.format.profile import Key, Profile, encode, merge_encoded
from tests.format.profiles import MANIFEST, program

HOSTS = 1000
ACCESSES = 10_000


def alike(number: int) -> Profile:
    """One of many starts of one program."""
    return program(7, ACCESSES, 4_000, jitter=random.Random(number))


def apart(number: int) -> Profile:
    """A start that has no object in common with any other."""
    chance = random.Random(number)
    table = b"".join(sorted(chance.randbytes(32) for _ in range(ACCESSES)))
    zeros, ones = array("I", bytes(4 * ACCESSES)), array("I", [1]) * ACCESSES
    ats = array("I", [chance.randrange(10_000) for _ in range(ACCESSES)])
    columns = Accesses(table, counts=ones, starts=zeros, lengths=ones, ats=ats, shares=array("H", [EVERY_START]) * ACCESSES)
    return Profile(MANIFEST, Key(), 1, columns)


def _peak() -> int:
    """Return the most KiB that this process has had in memory. ``getrusage`` has that of who started it, if that had more."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def main() -> None:
    """Make some, and merge them over and over: what is measured does not know that they come again."""
    make = {"alike": alike, "apart": apart}[sys.argv[1]]
    made = [encode(make(number)) for number in range(64 if make is apart else 16)]
    before = _peak()
    began = time.process_time()
    # A copy of each, as if it came from a file.
    merged = merge_encoded((bytes(bytearray(made[number % len(made)])), float(number)) for number in range(HOSTS))
    figures = {
        "cpu_seconds": round(time.process_time() - began, 2),
        "rss_kib": _peak(),
        "rss_kib_before": before,
        "accesses": len(merged.accesses),
        "starts": merged.starts,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
