"""The benches, one function each: what they measure is what the README's table promises.

Each takes a :class:`~bench.harness.Run` and adds figures to it. ``IMAGES`` makes the archives that they use, once.
"""

import contextlib
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import constant_fs, images, many_files
from bench.cost import bench_cost, decoding_alone
from bench.far import bench_crowd, bench_far, bench_far_import, bench_gets, bench_scale, bench_ssd
from bench.harness import (
    FORGETFUL,
    Product,
    Run,
    cpu_of,
    drop_caches,
    have_memory,
    import_torch,
    paired,
    read_through,
    scratch,
    seconds,
    timed,
    walk,
)
from bench.kernel import bench_kernel
from bench.kernel_many import bench_kernel_many
from bench.kills import bench_kills
from bench.lineage import bench_lineage
from bench.ranged_get import bench_ranged_get
from bench.recording import bench_recording
from bench.remembered import bench_far_starts
from bench.snapshot_push import bench_push
from bench.snapshots import bench_snapshot, bench_snapshot_far

GB = 1e9


def _unpack(archive: Path, tag: str, target: Path) -> float:
    """Unpack with umoci, which wants an OCI layout: the archive is laid out first, and not counted."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    return timed("umoci", "raw", "unpack", "--image", f"{archive}:{tag}", target).wall


def bench_convert(run: Run) -> None:
    """Conversion against ``umoci unpack`` of the same image, its memory, the size of the store, and a second image."""
    image = images.torch()
    with scratch() as tmp:
        count = iter(range(1000))
        peaks: list[int] = []
        reports: list[dict[str, object]] = []

        def ours() -> float:
            product = Product(tmp / f"p{next(count)}")
            product.base.mkdir()
            os.sync()  # what another run left to be written is not this one's to wait for
            done = product.timed("convert", f"oci-archive:{image.archive}", "torch:1", "--json")
            peaks.append(done.rss)
            reports.append(json.loads(done.stdout))
            if len(peaks) > 1:
                shutil.rmtree(product.base)
            return done.wall

        mine, theirs, ratio = paired(run.runs, ours, lambda: _unpack(image.layout, image.tag, tmp / "unpacked"))
        run.add("convert", mine, "s", note=json.dumps(reports[-1].get("seconds")))
        run.add("umoci unpack", theirs, "s")
        run.add("convert / umoci unpack", ratio, "x", 0.45)
        run.add("convert peak RSS", max(peaks) / 1e6, "MB", 400)
        first = Product(tmp / "p0")
        squash = tmp / "image.squashfs"
        timed("mksquashfs", tmp / "unpacked", squash, "-comp", "zstd", "-Xcompression-level", "3", "-no-progress", "-quiet")
        stored = _size(first.store)
        run.add("store / mksquashfs", stored / squash.stat().st_size, "x", 1.0, note=f"{stored / 1e6:.1f} MB")
        for name, variant in (("one more layer", images.torch_new_layer()), ("a layer made anew", images.torch_new_content())):
            fresh: list[float] = []
            again: list[float] = []
            grown = 0
            for _ in range(run.runs):
                base = tmp / "again"
                shutil.copytree(first.base, base)
                product = Product(base)
                os.sync()
                again.append(product.timed("convert", f"oci-archive:{variant.archive}", "torch:2").wall)
                grown = _size(product.store) - stored
                shutil.rmtree(base)
                fresh.append(ours())
            run.add(f"second image ({name}) / first", statistics.median(a / b for a, b in zip(again, fresh, strict=True)), "x", 0.5)
            run.add(f"second image ({name}) adds", grown / stored * 100, "%", 2)


def _size(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def bench_walk(run: Run) -> None:
    """A walk with stat of the mount against ext4, kernel caches dropped; and what a second walk asks the daemon for."""
    image = images.torch()
    with scratch() as tmp:
        product = Product(tmp)
        _unpack(image.layout, image.tag, tmp / "ext4")
        product.run("convert", f"oci-archive:{image.archive}", "torch:1")
        with product.daemon(), product.mount("torch:1") as point:

            def cold(top: Path) -> float:
                drop_caches()
                return seconds(lambda: walk(top))

            mine, theirs, ratio = paired(run.runs, lambda: cold(point), lambda: cold(tmp / "ext4"))
            run.add("cold walk", mine, "s", note=f"{walk(point)} entries")
            run.add("cold walk of ext4", theirs, "s")
            run.add("cold walk / ext4", ratio, "x", 6)
            walk(point)
            before = product.run("stats")["fuse_requests"]
            walk(point)
            after = product.run("stats")["fuse_requests"]
            asked = {op: after[op] - before.get(op, 0) for op in after if after[op] != before.get(op, 0)}
            other = sum(n for op, n in asked.items() if op not in {"readdir", "opendir", "releasedir", "statfs"})
            run.add("second walk: requests but readdir", other, "", 0, note=json.dumps(asked))


def bench_import(run: Run) -> None:
    """``import torch`` from the mount the second time, against ext4, in a chroot.

    ``squashfuse_ll``, in C, shows what remains of the difference when a FUSE daemon costs next to nothing: the kernel's own round trips.
    """
    image = images.torch()
    with scratch() as tmp:
        product = Product(tmp)
        _unpack(image.layout, image.tag, tmp / "ext4")
        product.run("convert", f"oci-archive:{image.archive}", "torch:1")
        with product.daemon(), product.mount("torch:1") as point, _squashfuse(tmp / "ext4", tmp) as in_c:
            first = import_torch(point)
            roots = (point, tmp / "ext4", in_c)
            for root in roots[1:]:
                import_torch(root)
            rounds = [[import_torch(root) for root in roots] for _ in range(max(run.runs, 9))]
            mine, theirs, c = (statistics.median(times) for times in zip(*rounds, strict=True))
            run.add("first import torch", first, "s")
            run.add("second import torch", mine, "s")
            run.add("import torch of ext4", theirs, "s")
            run.add("import torch of squashfuse_ll", c, "s")
            run.add("import torch / ext4", statistics.median(a / b for a, b, _ in rounds), "x", 1.05)
            run.add("import torch of squashfuse_ll / ext4", statistics.median(a / b for _, b, a in rounds), "x")


@contextlib.contextmanager
def _squashfuse(tree: Path, tmp: Path) -> Iterator[Path]:
    """Mount ``tree`` as squashfs through its FUSE driver in C, which lets the kernel keep all that it lets it keep."""
    point = tmp / "squashfuse"
    point.mkdir()
    timed("mksquashfs", tree, tmp / "squash", "-comp", "zstd", "-Xcompression-level", "3", "-no-progress", "-quiet")
    timed("squashfuse_ll", "-o", "allow_other,timeout=86400", tmp / "squash", point)
    try:
        yield point
    finally:
        timed("umount", point)


def bench_read(run: Run) -> None:
    """Sequential reads of a large file: warm against a constant-buffer file system, and first reads by CPU time."""
    with scratch() as tmp:
        product = Product(tmp)
        source = tmp / "source"
        source.mkdir()
        size = images.large_file(source / "large")
        product.run("convert", f"dir:{source}", "large:1")
        with product.daemon(), product.mount("large:1") as point, constant_fs.mounted(tmp / "constant", size) as constant:
            read_through(point / "large")

            def warm(path: Path) -> float:
                _forget(path)
                return seconds(lambda: read_through(path))

            mine, theirs, ratio = paired(max(run.runs, 9), lambda: warm(point / "large"), lambda: warm(constant / "large"))
            run.add("warm read", size / mine / GB, "GB/s")
            run.add("constant buffer", size / theirs / GB, "GB/s")
            run.add("warm read / constant buffer", 1 / ratio, "x", 0.8, at_most=False)
        rates = []
        alone = statistics.median(decoding_alone(source / "large") for _ in range(3))
        for _ in range(run.runs):
            # Or it would come from SSD.
            product.run("cache", "clear")
            with product.daemon(), product.mount("large:1", *FORGETFUL) as point:
                have_memory()
                before = cpu_of(product)
                elapsed = seconds(lambda: read_through(point / "large"))
                spent = cpu_of(product) - before
                rates.append((size / spent / GB, size / elapsed / GB))
        run.add("decoding and verifying alone, a core", alone, "GB/s", note="zstandard and blake3 in a loop: what this machine has to give")
        run.add("first read, a core", statistics.median(a for a, _ in rates), "GB/s", 0.6, at_most=False, note="of the daemon's CPU time")
        run.add("first read, wall", statistics.median(b for _, b in rates), "GB/s")


def _forget(path: Path) -> None:
    """Drop one file's pages from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_many(run: Run) -> None:
    """An image of 500,000 files: the mount, and what the daemon holds after it and after a whole walk."""
    with scratch() as tmp:
        product = Product(tmp)
        many_files.publish(product, 500_000)
        with product.daemon():
            times = []
            for _ in range(run.runs):
                point = tmp / "m"
                point.mkdir(exist_ok=True)
                times.append(product.timed("mount", "many:1", point).wall)
                product.timed("umount", point)
            shutil.rmtree(tmp / "cache" / "index", ignore_errors=True)
        with product.daemon():
            first = product.timed("mount", "many:1", tmp / "m").wall
            run.add("mount of 500,000 files, index not on the host", first, "s", 0.5)
            run.add("mount of 500,000 files, index on the host", statistics.median(times), "s", 0.5)
            run.add("daemon RSS after the mount", product.run("stats")["rss_bytes"] / 1e6, "MB", 120)
            count = walk(tmp / "m")
            run.add("daemon RSS after a whole walk", product.run("stats")["rss_bytes"] / 1e6, "MB", 200, note=f"{count} entries")
            product.timed("umount", tmp / "m")


def bench_cli(run: Run) -> None:
    """How long the command line itself takes."""
    with scratch() as tmp:
        product = Product(tmp)
        (tmp / "source").mkdir()
        (tmp / "source" / "file").write_bytes(b"x" * 1000)
        product.run("convert", f"dir:{tmp / 'source'}", "small:1")
        product.timed("--help")
        run.add("imagefs --help", statistics.median(product.timed("--help").wall for _ in range(run.runs * 3)) * 1e3, "ms", 150)
        python = statistics.median(timed(sys.executable, "-c", "pass").wall for _ in range(run.runs * 3))
        run.add("python -c pass", python * 1e3, "ms")
        with product.daemon():
            times = []
            for _ in range(run.runs):
                point = tmp / "m"
                point.mkdir(exist_ok=True)
                times.append(product.timed("mount", "small:1", point).wall)
                product.timed("umount", point)
            run.add("imagefs mount, daemon up", statistics.median(times) * 1e3, "ms", 300)


BENCHES: dict[str, Callable[[Run], None]] = {
    "cli": bench_cli,
    "convert": bench_convert,
    "walk": bench_walk,
    "import": bench_import,
    "read": bench_read,
    "many": bench_many,
    "ranged-get": bench_ranged_get,
    "far": bench_far,
    "far-import": bench_far_import,
    "far-starts": bench_far_starts,
    "gets": bench_gets,
    "ssd": bench_ssd,
    "crowd": bench_crowd,
    "scale": bench_scale,
    "cost": bench_cost,
    "kernel": bench_kernel,
    "kernel-many": bench_kernel_many,
    "kills": bench_kills,
    "recording": bench_recording,
    "push": bench_push,
    "snapshot": bench_snapshot,
    "snapshot-far": bench_snapshot_far,
    "snapshot-lineage": bench_lineage,
}
