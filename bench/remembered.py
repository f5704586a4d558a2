"""``import torch`` over the link on hosts that have nothing: with no profile, with that of an earlier start, and optimized, in turn."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from bench import images
from bench.far import BANDWIDTH, DELAY, FarProduct
from bench.harness import Run, have_memory, import_torch, scratch, timed
from bench.starts.systems import forget
from tests import weed
from tests.faults import FaultProxy

_RECORDED_SECONDS: Final = 60
_KINDS: Final = ("no profile", "profile", "optimized")


@dataclass(frozen=True, slots=True)
class _Link:
    """Seconds and bytes a second; the bounds with a profile, and optimized."""

    delay: float
    bandwidth: float
    profile: float
    optimized: float

    def __str__(self) -> str:
        return f"{self.delay * 1e3:.0f} ms {self.bandwidth / 1e6:.0f} MB a second"


_LINKS: Final = (_Link(DELAY, BANDWIDTH, 1.20, 1.10), _Link(0.1, 1e9, 1.5, 1.25))


def bench_far_starts(run: Run) -> None:
    """Each start is on a host of its own, and as the first thing after the mount."""
    image = images.torch()
    with scratch() as tmp, weed.serving(tmp / "weed") as server, FaultProxy(server.endpoint.removeprefix("http://")) as link:
        converter = FarProduct(tmp, server, server.endpoint, "converter")
        converter.run("convert", f"oci-archive:{image.archive}", "torch:1")
        timed("umoci", "raw", "unpack", "--image", f"{image.layout}:{image.tag}", tmp / "ext4")
        import_torch(tmp / "ext4")
        link.set(bandwidth=BANDWIDTH, delay=DELAY)
        _record(FarProduct(tmp, server, link.url, "recorder", "kernel"), converter)
        run.add("imagefs optimize", converter.timed("optimize", "torch:1", "--to", "torch:fast").wall, "s", 10)
        for place in _LINKS:
            link.set(bandwidth=place.bandwidth, delay=place.delay)
            for mode in ("kernel", "fuse"):
                starts = [_start(_Stage(tmp, server, link, place), mode, number) for number in range(run.runs)]
                for kind, bound in zip(_KINDS, (None, place.profile, place.optimized), strict=True):
                    seen = [start[kind] for start in starts]
                    last = seen[-1]
                    took = statistics.median(one.seconds for one in seen)
                    note = f"{took:.2f} s; {last.gets} GETs, {last.moved / 1e6:.0f} MB, {last.used:.2f} used"
                    run.add(f"{kind}, {mode}, {place}", statistics.median(one.ratio for one in seen), "x", bound, note=note)


def _record(host: FarProduct, converter: FarProduct) -> None:
    """Have one start recorded, and wait until the store has its profile."""
    with host.daemon(), host.mount("torch:1", "--no-prefetch") as point:
        import_torch(point)
        deadline = time.monotonic() + _RECORDED_SECONDS
        while not converter.run("profile", "ls", "torch:1")["profiles"]:
            if time.monotonic() > deadline:
                raise TimeoutError("no profile was published")
            time.sleep(0.5)


class _Seen(NamedTuple):
    """A start: ``ratio`` is to the larger of native time and what was moved over the link; ``used`` of what was prefetched, of 1."""

    seconds: float
    ratio: float
    gets: int
    moved: int
    used: float


class _Stage(NamedTuple):
    """Where the starts are made."""

    tmp: Path
    server: weed.Weed
    link: FaultProxy
    place: _Link


def _start(stage: _Stage, mode: str, number: int) -> dict[str, _Seen]:
    """Start once from ext4, and once in each way on a host that has nothing."""
    tmp, server, link, place = stage
    # A host that has nothing has nothing in its page cache either. What the server and the link have stays: they are other machines.
    forget(tmp / "ext4")
    have_memory()
    native = import_torch(tmp / "ext4")
    seen: dict[str, _Seen] = {}
    for way, kind in enumerate(_KINDS):
        host = FarProduct(tmp, server, link.url, f"h-{place.delay:g}-{mode}-{way}-{number}", mode)
        with host.daemon():
            link.forget()
            options = ("--no-record", *(("--no-prefetch",) if kind == "no profile" else ()))
            have_memory()
            with host.mount("torch:fast" if kind == "optimized" else "torch:1", *options) as point:
                elapsed = import_torch(point)
                requests, stats = link.requests(), host.run("stats")
        moved = sum(request.sent for request in requests)
        used = stats["prefetch_used_bytes"] / max(1, stats["prefetch_bytes"])
        seen[kind] = _Seen(elapsed, elapsed / max(native, moved / place.bandwidth), len(requests), moved, used)
    return seen
