"""The store far away: a real S3 server behind a link of 20 ms and 200 MB/s; and the same server without it, against GETs alone.

Server, link, daemon and reader share this machine's cores, so what the link could give is not always what they can take: the share of the
link is told for content that does not compress (the link is the limit) and for a library that does (the cores are).
"""

import contextlib
import mmap
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench import constant_fs, images
from bench.harness import FORGETFUL, Product, Run, cpu_of, drop_caches, have_memory, import_torch, read_through, scratch, seconds, timed
from bench.starts.systems import forget
from imagefs.cache.disk_index import DiskIndex, Figures, Row
from imagefs.cache.disk_place import CachePlace
from imagefs.digest import digest_of
from tests import weed
from tests.faults import FaultProxy, moved_twice

BANDWIDTH = 200e6
DELAY = 0.02
_SIZE = 350_000_000
_READERS = 100


class FarProduct(Product):
    """A product over an S3 server: ``endpoint`` is the server itself, or the link to it. Hosts of one store differ in ``host``."""

    def __init__(self, base: Path, server: weed.Weed, endpoint: str, host: str, mode: str = "fuse") -> None:
        """Everything of this host lies under ``base / host``."""
        super().__init__(base / host, mode)
        self.base.mkdir(parents=True, exist_ok=True)
        self.env |= server.environment | {"IMAGEFS_STORE": "s3://bench/far", "AWS_ENDPOINT_URL_S3": endpoint}


@contextlib.contextmanager
def far_server(tmp: Path) -> Iterator[tuple[weed.Weed, FaultProxy]]:
    """Serve an image of two large files, one that compresses and one that does not, from a real S3 server and behind a link to it."""
    with weed.serving(tmp / "weed") as server, FaultProxy(server.endpoint.removeprefix("http://")) as link:
        link.set(bandwidth=BANDWIDTH, delay=DELAY)
        source = tmp / "source"
        source.mkdir()
        images.large_file(source / "library")
        with (source / "noise").open("wb") as file:
            for _ in range(_SIZE // 1_000_000):
                file.write(os.urandom(1_000_000))
        FarProduct(tmp, server, server.endpoint, "converter").run("convert", f"dir:{source}", "large:1")
        yield server, link


def bench_far(run: Run) -> None:
    """Cold reads of large files over the link, and a hundred readers of one."""
    with scratch() as tmp, far_server(tmp) as (server, link):
        shares: dict[str, list[float]] = {"noise": [], "library": []}
        twice = 0
        for number in range(run.runs):
            host = FarProduct(tmp, server, link.url, f"host{number}")
            with host.daemon(), host.mount("large:1", *FORGETFUL) as point:
                for name, found in shares.items():
                    have_memory()
                    link.forget()
                    elapsed = seconds(lambda path=point / name: read_through(path))  # type: ignore[misc]
                    hedged = host.run("stats")["hedged_gets"]
                    requests = link.requests()
                    found.append(sum(request.sent for request in requests) / elapsed / BANDWIDTH)
                    twice = max(twice, len(moved_twice(requests)) - hedged)
        run.add("cold read, share of the link, noise", statistics.median(shares["noise"]), "", 0.95, at_most=False)
        run.add("cold read, share of the link, a library", statistics.median(shares["library"]), "", 0.95, at_most=False)
        run.add("GETs that moved what another had, hedges apart", twice, "", 0)
        host = FarProduct(tmp, server, link.url, "crowd")
        with host.daemon(), host.mount("large:1", *FORGETFUL) as point:
            link.forget()
            _crowd(point / "library")
            moved = sum(request.sent for request in link.requests())
        run.add(f"{_READERS} readers of one file: bytes moved / bytes stored", moved / _stored(host), "x", 1.05)


def _crowd(path: Path) -> None:
    threads = [threading.Thread(target=read_through, args=(path,)) for _ in range(_READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _stored(host: Product) -> int:
    """How many bytes the library takes in the store: what GETs of exactly its frames move."""
    return int(timed(sys.executable, "-m", "bench.gets_alone", "large:1", "library", "--size", env=host.env).stdout)


def bench_gets(run: Run) -> None:
    """Without the link: our cold read against the same GETs alone, in as many threads, decompressed and verified."""
    with scratch() as tmp, far_server(tmp) as (server, _):
        ratios, ours, theirs = [], [], []
        for number in range(run.runs):
            host = FarProduct(tmp, server, server.endpoint, f"host{number}")
            with host.daemon(), host.mount("large:1", *FORGETFUL) as point:
                have_memory()
                before = cpu_of(host)
                wall = seconds(lambda: read_through(point / "library"))
                ours.append((_SIZE / wall / 1e6, (cpu_of(host) - before) / _SIZE * 1e9))
            have_memory()
            alone = timed(sys.executable, "-m", "bench.gets_alone", "large:1", "library", env=host.env)
            wall, cpu = (float(word) for word in alone.stdout.split())
            theirs.append((_SIZE / wall / 1e6, cpu / _SIZE * 1e9))
            ratios.append(ours[-1][0] / theirs[-1][0])
        run.add("cold read of a library", statistics.median(rate for rate, _ in ours), "MB/s")
        run.add("GETs alone, decoded and verified", statistics.median(rate for rate, _ in theirs), "MB/s")
        run.add("cold read / GETs alone", statistics.median(ratios), "x", 0.8, at_most=False)
        run.add("CPU of the daemon", statistics.median(cpu for _, cpu in ours), "s/GB")
        run.add("CPU of the GETs alone", statistics.median(cpu for _, cpu in theirs), "s/GB")


def bench_far_import(run: Run) -> None:
    """``import torch`` over the link on a host that has nothing, without a profile."""
    image = images.torch()
    with scratch() as tmp, weed.serving(tmp / "weed") as server, FaultProxy(server.endpoint.removeprefix("http://")) as link:
        link.set(bandwidth=BANDWIDTH, delay=DELAY)
        FarProduct(tmp, server, server.endpoint, "converter").run("convert", f"oci-archive:{image.archive}", "torch:1")
        timed("umoci", "raw", "unpack", "--image", f"{image.layout}:{image.tag}", tmp / "ext4")
        import_torch(tmp / "ext4")
        natives, times, moved, ratios = [], [], [], []
        gets = 0
        for number in range(run.runs):
            # A host that has nothing has nothing in its page cache either. What the server has stays: it is another machine.
            forget(tmp / "ext4")
            have_memory()
            natives.append(import_torch(tmp / "ext4"))
            host = FarProduct(tmp, server, link.url, f"host{number}")
            with host.daemon(), host.mount("torch:1", *FORGETFUL) as point:
                link.forget()
                have_memory()
                times.append(import_torch(point))
                moved.append(sum(request.sent for request in link.requests()))
                gets = len(link.requests())
                ratios.append(times[-1] / max(natives[-1], moved[-1] / BANDWIDTH))
        run.add("import torch of ext4, cold", statistics.median(natives), "s")
        run.add("cold import torch over the link", statistics.median(times), "s", note=f"{gets} GETs")
        run.add("moved", statistics.median(moved) / 1e6, "MB", note=f"{statistics.median(moved) / BANDWIDTH:.2f} s of the link")
        run.add("cold import / max(native, moved / link)", statistics.median(ratios), "x", 2.5)


def bench_ssd(run: Run) -> None:
    """Reads that the SSD tier answers, page cache dropped: against ``cat`` of the same bytes, and random reads against the disk's own."""
    with scratch() as tmp:
        product = Product(tmp)
        source = tmp / "source"
        source.mkdir()
        size = images.large_file(source / "library")
        product.run("convert", f"dir:{source}", "large:1")
        with product.daemon(), product.mount("large:1", *FORGETFUL) as point:
            read_through(point / "library")
            product.run("cache", "verify")
        file = next(path for path in (tmp / "cache" / "objects").rglob("*") if path.is_file())
        with constant_fs.mounted(tmp / "through", size, file) as through:
            _in_sequence(run, product, file, through / "large")
            _at_random(run, product, file, through / "large")


def _in_sequence(run: Run, product: Product, file: Path, through: Path) -> None:
    """Read the library from its beginning to its end: from the mount, the cache's file passed through FUSE, and that file itself."""
    size = file.stat().st_size
    rates = []
    for _ in range(max(run.runs, 5)):
        with product.daemon(), product.mount("large:1", *FORGETFUL) as point:
            drop_caches()
            ours = seconds(lambda: read_through(point / "library"))  # called at once
            assert product.run("stats")["store_gets"] == 0
        drop_caches()
        passed = seconds(lambda: read_through(through))
        drop_caches()
        rates.append((size / ours, size / passed, size / seconds(lambda: read_through(file))))
    run.add("SSD hit, sequential", statistics.median(a for a, _, _ in rates) / 1e6, "MB/s")
    run.add("the file, passed through FUSE", statistics.median(b for _, b, _ in rates) / 1e6, "MB/s")
    run.add("the file itself", statistics.median(c for _, _, c in rates) / 1e6, "MB/s")
    run.add("SSD hit / passed through FUSE", statistics.median(a / b for a, b, _ in rates), "x", 0.9, at_most=False)


def _at_random(run: Run, product: Product, file: Path, through: Path) -> None:
    """The same three in random order."""
    size = file.stat().st_size
    times = []
    for _ in range(run.runs):
        with product.daemon(), product.mount("large:1", *FORGETFUL) as point:
            drop_caches()
            mounted = _random(point / "library", size)
        drop_caches()
        passed = _random(through, size)
        drop_caches()
        times.append((mounted, passed, _random(file, size)))
    run.add("256 KiB random read of the disk, p50", statistics.median(c for _, _, c in times) * 1e6, "us")
    run.add("256 KiB random SSD hit, p50, over that", statistics.median(a - c for a, _, c in times) * 1e6, "us", 150)
    run.add("the same, passed through FUSE, over that", statistics.median(b - c for _, b, c in times) * 1e6, "us")


def bench_crowd(run: Run) -> None:
    """4 KiB reads that RAM or SSD has, 64 readers at once, alone and while a large file is read ahead over the link."""
    with scratch() as tmp, far_server(tmp) as (server, link):
        alone: dict[str, list[float]] = {"RAM": [], "SSD": []}
        ratios: dict[str, list[float]] = {"RAM": [], "SSD": []}
        for number in range(run.runs):
            for tier in ("RAM", "SSD"):
                host = FarProduct(tmp, server, link.url, f"{tier}{number}")
                with host.daemon(), host.mount("large:1", *FORGETFUL) as point:
                    read_through(point / "library")
                    host.run("cache", "verify")
                with host.daemon(), host.mount("large:1", *FORGETFUL) as point:
                    # Each frame is read once of those that SSD has; RAM has all of them after a first round.
                    steps = {"RAM": (range(40), range(40), range(40)), "SSD": (range(0), range(9), range(9, 18))}[tier]
                    _p99(point / "library", steps[0])
                    quiet = _p99(point / "library", steps[1])
                    reader = threading.Thread(target=read_through, args=(point / "noise",))
                    reader.start()
                    busy = _p99(point / "library", steps[2])
                    reader.join()
                    alone[tier].append(quiet)
                    ratios[tier].append(busy / quiet)
        for tier, found in alone.items():
            run.add(f"p99 of a 4 KiB read that {tier} has, 64 readers", statistics.median(found) * 1e3, "ms")
            run.add("the same while the link is full / alone", statistics.median(ratios[tier]), "x", 3)


def _p99(path: Path, steps: range) -> float:
    """The 99th percentile of the seconds of 64 threads' reads of 4 KiB past the page cache, each step in other frames of the file."""
    times: list[float] = []
    size = path.stat().st_size

    def reads(number: int) -> None:
        buffer = memoryview(mmap.mmap(-1, 4096))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            for step in steps:
                offset = (number + 64 * step) * 262144 % (size - 4096) & -4096
                times.append(seconds(lambda at=offset: os.preadv(descriptor, [buffer], at)))  # type: ignore[misc]
        finally:
            os.close(descriptor)

    threads = [threading.Thread(target=reads, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(times)[len(times) * 99 // 100] if times else 0.0


def bench_scale(run: Run) -> None:
    """A cache of 200 GB in two million files: the daemon's start, what it holds, and eviction. The rows are real, the files are not."""
    with scratch() as tmp:
        product = Product(tmp)
        (tmp / "source").mkdir()
        (tmp / "source" / "file").write_bytes(b"x" * 1000)
        product.run("convert", f"dir:{tmp / 'source'}", "small:1")
        CachePlace(tmp / "cache").close()
        index = DiskIndex(tmp / "cache" / "lmdb")
        count, step, size = 2_000_000, 20_000, 100_000
        for start in range(0, count, step):
            names = sorted(digest_of(b"%d" % number) for number in range(start, start + step))
            rows = [(name, Row(complete=True, size=size, held=size, used_at=1_700_000_000)) for name in names]
            index.commit(rows, [], Figures(held=size * (start + step), complete=start + step))
        index.close()
        run.add("LMDB of 2,000,000 files", (tmp / "cache" / "lmdb" / "data.mdb").stat().st_blocks * 512 / 1e6, "MB", 500)
        starts = []
        for _ in range(run.runs):
            begin = time.perf_counter()
            with product.daemon():
                starts.append(time.perf_counter() - begin)
        run.add("start of the daemon", statistics.median(starts), "s", 2)
        with product.daemon():
            run.add("its RSS", product.run("stats")["rss_bytes"] / 1e6, "MB", 250)
            elapsed = seconds(lambda: product.run("cache", "evict", "--bytes", "20G"))
            run.add("eviction of 20 GB", 20 * 1.073741824 / elapsed, "GB/s", 1, at_most=False)
            run.add("RSS after it", product.run("stats")["rss_bytes"] / 1e6, "MB", 250)


def _random(path: Path, size: int) -> float:
    """Median seconds of reads of 256 KiB at places that were not read before, each dropped from the page cache's read-ahead."""
    times = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        blocks = size // (256 << 10)
        for step in range(min(blocks, 400)):
            offset = (step * 7919 % blocks) * (256 << 10)
            times.append(seconds(lambda at=offset: os.pread(descriptor, 256 << 10, at)))  # type: ignore[misc]
    finally:
        os.close(descriptor)
    return statistics.median(times)
