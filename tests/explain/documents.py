"""Start documents that were made up: of any size, the same for the same seed, with waits that come of GETs as they do in a real start.

A program reads files one after the other, thinks between them, and waits for the GET that brings each; a second process reads at the same
time. The link has a latency and a bandwidth that GETs share, so the figures of a document are consistent: a read that waits ends when its
GET is decoded. ``python -m tests.explain.documents DIR`` writes a set of them.
"""

import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zstandard

GRAIN: Final = 65536
MANIFEST: Final = "5a" * 32
DIRECTORIES: Final = (
    "torch",
    "torch/nn/modules",
    "numpy/_core",
    "sympy/core",
    "transformers/models",
    "encodings",
    "json",
    "site-packages/nvidia/lib",
)
NONE, FULL, HALF, LATE = "none", "full", "half", "late"


@dataclass
class Link:
    """When what is asked for arrives: one GET's bytes after the other's."""

    latency: int = 20_000
    bytes_per_us: float = 200.0
    free: int = 0

    def get(self, queued: int, size: int, *, queue: int = 0) -> tuple[int, int, int]:
        """Return when a GET is sent, when its first byte and when its last one is there."""
        sent = queued + queue
        first = max(sent + self.latency, self.free)
        self.free = first + max(1, round(size / self.bytes_per_us))
        return sent, first, self.free


@dataclass
class Maker:
    """Adds events to a document."""

    rng: random.Random
    link: Link
    document: dict[str, Any] = field(default_factory=dict)
    here: dict[int, int] = field(default_factory=dict)  # by file: the GET that brings it

    def get(self, queued: int, pack: int, start: int, stored: int, kind: int, *, late: bool = False) -> int:
        """Add a GET; return its index."""
        # What is late is so because it does not come to its turn.
        sent, first, arrived = self.link.get(queued, stored, queue=400_000 if late else self.rng.randrange(50, 800))
        content = stored * 3
        cpu = max(1, content // 900)
        decode = cpu * 3 // 5
        attempts = 2 if self.rng.random() < 0.01 else 1
        row = [
            queued,
            sent,
            first,
            arrived,
            arrived + cpu + 150,
            decode,
            cpu - decode,
            pack,
            start,
            start + stored,
            content,
            kind,
            -1,
            attempts,
        ]
        self.document["gets"].append(row)
        return len(self.document["gets"]) - 1


def document(
    events: int = 1000, *, seed: int = 1, profile: str = NONE, latency_ms: float = 20.0, bandwidth: float = 200e6, **over: Any
) -> dict[str, Any]:
    """Return a Start document of about so many reads, opens and GETs together.

    ``profile`` says how much of it was prefetched: nothing, all in time, half of the files, or all, but late. ``bandwidth`` is in bytes a
    second. ``over`` replaces members of the document.
    """
    rng = random.Random(seed)
    maker = Maker(rng, Link(round(latency_ms * 1000), bandwidth / 1e6))
    files = _files(rng, max(4, events // 3))
    maker.document = _head(files, profile)
    _prefetch(maker, files, profile)
    ended = _read(maker, files, events)
    _finish(maker.document, ended)
    maker.document.update(over)
    return maker.document


def _files(rng: random.Random, count: int) -> list[dict[str, Any]]:
    files = []
    for number in range(count):
        folder = DIRECTORIES[number * len(DIRECTORIES) // count]
        is_library = number % 97 == 5
        size = rng.randrange(2 << 20, 24 << 20) if is_library else int(rng.lognormvariate(9, 1.2)) + 80
        name = f"lib{number}.so" if is_library else f"module_{number}.py"
        files.append({"path": f"/usr/lib/python3/{folder}/{name}", "object": f"{number:064x}", "size": size, "profiled": 0})
    return files


def _head(files: list[dict[str, Any]], profile: str) -> dict[str, Any]:
    known = files if profile in {FULL, LATE} else files[::2] if profile == HALF else []
    for file in known:
        file["profiled"] = 60000
    content = sum(file["size"] for file in known)
    used = {
        "starts": 12,
        "accesses": len(known),
        "bytes": content,
        "stored": content // 3,
        "key": {"entry": "python -c import torch", "label": "", "gpu": ""},
    }
    return {
        "format": 1,
        "kind": "start",
        "manifest": MANIFEST,
        "ref": "torch:2.9",
        "mountpoint": "/mnt/torch",
        "mode": "kernel",
        "label": "",
        "entry": ["python3", "-c", "import torch"],
        "gpu": "",
        "began": 1767225600.25,
        "seconds": 0.0,
        "ended": "quiet",
        "watched": True,
        "lost": {"opens": 0, "reads": 0, "gets": 0},
        "host": {"kernel": "6.18.0", "cpus": 2},
        "image": {"files": 23333, "bytes": 1_300_000_000, "stored": 430_000_000},
        "optimized": None,
        "profile": used if known else None,
        "files": files,
        "processes": [{"pid": 4242, "command": "python3", "parent": -1}, {"pid": 4250, "command": "ldconfig", "parent": 0}],
        "packs": ["c0" * 32, "c1" * 32],
        "opens": [],
        "reads": [],
        "gets": [],
        "touched": [],
        "stats": {
            "store_bytes": 0,
            "prefetch_bytes": 0,
            "prefetch_used_bytes": 0,
            "bytes_read": {"tree": 0, "ram": 0, "ssd": 0, "store": 0},
        },
    }


def _prefetch(maker: Maker, files: list[dict[str, Any]], profile: str) -> None:
    """Stream the profiled files ahead: in GETs of neighbours, from the moment of the mount."""
    queued, at, batch, stored = 1_000, 0, list[int](), 0
    for number, file in enumerate(files):
        size = max(40, file["size"] // 3)
        if file["profiled"]:
            batch.append(number)
            stored += size
        if batch and (stored >= 4 << 20 or number == len(files) - 1):
            index = maker.get(queued, 0, at, stored, 1, late=profile == LATE)
            maker.here.update(dict.fromkeys(batch, index))
            at, batch, stored = at + stored, [], 0
            queued += 500


def _read(maker: Maker, files: list[dict[str, Any]], events: int) -> int:
    """Let two processes read, one file after the other; return when the last one is done."""
    rng, made, clocks = maker.rng, maker.document, [2_000, 30_000]
    number, at = 0, 0
    while len(made["opens"]) + len(made["reads"]) + len(made["gets"]) < events:
        file = number % len(files)
        size = files[file]["size"]
        who = 1 if number % 23 == 7 else 0
        clocks[who] += rng.randrange(80, 900)
        native = rng.random() < 0.05
        made["opens"].append([clocks[who], file, who, int(native)])
        step = 1 << 20
        ranges = [] if native else [(start, min(start + step, size)) for start in range(0, min(size, 6 * step), step)]
        for start, end in ranges:
            clocks[who] += rng.randrange(5, 60)
            clocks[who], at = _one(maker, files, (file, start, end, who), clocks[who], at)
        if native or ranges:
            made["touched"].append([file, 0, ranges[-1][1] if ranges else size])
        number += 1
    return max(clocks)


def _one(maker: Maker, files: list[dict[str, Any]], where: tuple[int, int, int, int], now: int, at: int) -> tuple[int, int]:
    """Answer one read at ``now``; return when, and how far the second pack has been asked for."""
    rng, gets, (file, start, end, who) = maker.rng, maker.document["gets"], where
    index = maker.here.get(file, -1)
    if index < 0 and rng.random() < 0.03:
        tier, wait = rng.choice([(0, 35), (2, 400)])
    else:
        if index < 0:
            # What lies around comes with it, by a second GET that nobody waits for.
            index = maker.get(now, 1, at, max(40, files[file]["size"] // 3), 0)
            at = gets[index][9]
            others = [other for other in range(file + 1, min(file + 12, len(files))) if other not in maker.here]
            maker.here[file] = index
            if others:
                along = maker.get(now, 1, at, max(40, sum(files[other]["size"] for other in others) // 3), 2)
                at = gets[along][9]
                maker.here.update(dict.fromkeys(others, along))
        get = gets[index]
        if get[4] > now:
            tier, wait = 3, get[4] - now + rng.randrange(20, 120)
            if get[11]:
                get[12] = now if get[12] < 0 else min(now, get[12])
        else:
            tier, wait = 1, rng.randrange(25, 90)
    maker.document["reads"].append([now, wait, file, start, end, tier, who, index if tier == 3 else -1])
    return now + wait, at


def _finish(made: dict[str, Any], ended: int) -> None:
    made["opens"].sort()
    made["reads"].sort()
    made["seconds"] = ended / 1e6
    merged: dict[int, int] = {}
    for file, _, end in made["touched"]:
        merged[file] = max(end, merged.get(file, 0))
    made["touched"] = [[file, 0, end] for file, end in sorted(merged.items())]
    stats = made["stats"]
    stats["store_bytes"] = sum(get[9] - get[8] for get in made["gets"])
    stats["prefetch_bytes"] = sum(get[10] for get in made["gets"] if get[11])
    stats["prefetch_used_bytes"] = stats["prefetch_bytes"] * 9 // 10
    for read in made["reads"]:
        stats["bytes_read"][("tree", "ram", "ssd", "store")[read[5]]] += read[4] - read[3]


SET: Final[dict[str, dict[str, Any]]] = {
    "small": {"events": 1000},
    "small-profiled": {"events": 1000, "profile": FULL, "seed": 2},
    "late": {"events": 1000, "profile": LATE, "seed": 3},
    "large": {"events": 100_000},
    "large-profiled": {"events": 100_000, "profile": HALF, "seed": 4},
    "far": {"events": 3000, "latency_ms": 100.0, "bandwidth": 1e9, "seed": 5},
    "thin": {"events": 3000, "profile": FULL, "bandwidth": 20e6, "seed": 6},
}
"""What :func:`main` writes: by name, how it is made."""


def main(folder: str) -> None:
    """Write the set as ``NAME.json`` and ``NAME.json.zst``."""
    for name, how in SET.items():
        data = json.dumps(document(**how)).encode()
        Path(folder, f"{name}.json").write_bytes(data)
        Path(folder, f"{name}.json.zst").write_bytes(zstandard.compress(data))
        print(name, len(data))


if __name__ == "__main__":
    main(sys.argv[1])
