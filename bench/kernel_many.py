"""Kernel mode with many: readers, mounts, files, and two images that have most of their content in common."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench import images, many_files
from bench.harness import IMAGEFS, Product, Run, drop_caches, import_torch, scratch, timed
from bench.kernel import become_native

_READERS = 256
_READ_SECONDS = 4
_MOUNTS = 100
_LIBRARY = "usr/local/lib/python3.11/dist-packages/torch/lib/libtorch_cpu.so"


def bench_kernel_many(run: Run) -> None:
    """256 readers against ext4, 100 mounts at once, 500,000 files, and what two images with torch take of page cache and SSD."""
    image, other = images.torch(), images.torch_new_layer()
    with scratch() as tmp:
        product = Product(tmp, mode="kernel")
        timed("umoci", "raw", "unpack", "--image", f"{image.layout}:{image.tag}", tmp / "ext4")
        for number, archive in enumerate((image.archive, other.archive), 1):
            product.run("convert", f"oci-archive:{archive}", f"torch:{number}")
        many_files.publish(product, 500_000)
        with product.daemon():
            _many_files(run, product)
        # A daemon of its own: the other one walks that tree, in the background, for the directories that it has.
        with product.daemon():
            _at_once(run, product)
        with product.daemon():
            with product.mount("torch:1", "--no-record") as point:
                become_native(product, point)
                _readers(run, point, tmp / "ext4")
            _in_common(run, product)


def _readers(run: Run, point: Path, ext4: Path) -> None:
    """``fio``'s threads, which read 4 KiB here and there of a library of 350 MB, from the disk at first and soon from the page cache."""
    ratios, ours = [], []
    for _ in range(max(run.runs, 5)):
        ours.append(_p99(point / _LIBRARY))
        ratios.append(ours[-1] / _p99(ext4 / _LIBRARY))
    run.add("4 KiB random reads, 256 readers: p99", statistics.median(ours) * 1e3, "ms")
    run.add("4 KiB random reads, 256 readers: p99 / ext4", statistics.median(ratios), "x", 1.2)


def _p99(path: Path) -> float:
    drop_caches()
    shape = ["--rw=randread", "--bs=4k", f"--numjobs={_READERS}", "--thread", "--ioengine=psync", "--time_based", "--invalidate=0"]
    name = ["--name=readers", f"--filename={path}", "--readonly", f"--runtime={_READ_SECONDS}", "--group_reporting"]
    found = json.loads(timed("fio", *name, *shape, "--output-format=json").stdout)
    return float(found["jobs"][0]["read"]["clat_ns"]["percentile"]["99.000000"]) / 1e9


def _in_common(run: Run, product: Product) -> None:
    """Import torch of one image, then of the other, and see what the second one adds."""
    objects = product.base / "cache" / "objects"
    with product.mount("torch:1", "--no-record") as one, product.mount("torch:2", "--no-record") as two:
        for point in (one, two):
            become_native(product, point)
        on_disk = _disk_bytes(objects)
        drop_caches()
        import_torch(one)
        before = _cached_bytes()
        import_torch(two)
        run.add("page cache that a second image's import adds", (_cached_bytes() - before) / before * 100, "%")
        unique = len({path.name for path in objects.rglob("*") if path.is_file()})
        files = sum(path.is_file() for path in objects.rglob("*"))
        run.add("objects of both images on SSD twice", files - unique, "", 0, note=f"{files} files, {on_disk / 1e6:.0f} MB")


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _cached_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["Cached"].split()[0]) * 1024


def _at_once(run: Run, product: Product) -> None:
    places = [product.base / f"at-once-{number}" for number in range(_MOUNTS)]
    for place in places:
        place.mkdir()
    os.sync()  # what was unpacked and converted for this is not the mounts' to wait for
    start = time.perf_counter()
    running = [_start(product, "mount", "torch:1", place) for place in places]
    assert not any(process.wait(60) for process in running)
    run.add("100 mounts at once, each a command of its own", time.perf_counter() - start, "s", 3)
    start = time.perf_counter()
    running = [subprocess.Popen([sys.executable, "-c", "pass"]) for _ in places]
    assert not any(process.wait(60) for process in running)
    run.add("100 times python -c pass at once", time.perf_counter() - start, "s")
    for place in places:
        product.timed("umount", place)


def _start(product: Product, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([IMAGEFS, *arguments], env=product.env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _many_files(run: Run, product: Product) -> None:
    place = product.base / "many"
    place.mkdir()
    times = [product.timed("mount", "many:1", place).wall]
    for _ in range(run.runs):
        product.timed("umount", place)
        times.append(product.timed("mount", "many:1", place).wall)
    run.add("mount of 500,000 files", statistics.median(times[1:]), "s", 0.5, note=f"{times[0]:.2f} s the first time")
    run.add("daemon RSS then", product.run("stats")["rss_bytes"] / 1e6, "MB", 120)
    product.timed("umount", place)
