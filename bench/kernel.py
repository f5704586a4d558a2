"""Kernel mode with everything local: against ext4, and how many requests reach the daemon meanwhile."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench import images
from bench.harness import Product, Run, drop_caches, import_torch, paired, read_through, scratch, seconds, timed, walk

_LOCAL_SECONDS = 120


def bench_kernel(run: Run) -> None:
    """``import torch`` and walks from the very mount that served the cold start, and from a new one; and what mounting costs."""
    image = images.torch()
    with scratch() as tmp:
        product = Product(tmp, mode="kernel")
        timed("umoci", "raw", "unpack", "--image", f"{image.layout}:{image.tag}", tmp / "ext4")
        product.run("convert", f"oci-archive:{image.archive}", "torch:1")
        # That this start reads all of the image is nothing to remember.
        with product.daemon(), product.mount("torch:1", "--no-record") as point:
            run.add("cold import torch", import_torch(point), "s")
            become_native(product, point)
            _against_ext4(run, product, point, tmp / "ext4", "the cold start's mount")
            with product.mount("torch:1") as new:
                _against_ext4(run, product, new, tmp / "ext4", "a new mount")
            _overlay_alone(run, tmp)
            _mounting(run, product, tmp)


def become_native(product: Product, point: Path) -> None:
    """Read all of the mount until SSD has all of it, and it asks for nothing any more."""
    files = [path for path in point.rglob("*") if path.is_file() and not path.is_symlink()]
    deadline = time.monotonic() + _LOCAL_SECONDS
    while True:
        before = requests(product)
        for path in files:
            read_through(path)
        if requests(product) == before:
            return
        if time.monotonic() > deadline:
            raise TimeoutError("the mount still asks the daemon")
        time.sleep(2.5)  # it is settled a second after the last change


def requests(product: Product) -> int:
    """Count the requests that have reached the daemon so far."""
    return sum(product.run("stats")["fuse_requests"].values())


def _against_ext4(run: Run, product: Product, point: Path, ext4: Path, name: str) -> None:
    def cold(top: Path) -> float:
        drop_caches()
        return seconds(lambda: walk(top))

    before = requests(product)
    measures: list[tuple[str, Callable[[Path], float], float]] = [
        ("import torch", import_torch, 1.02),
        ("walk, warm", lambda top: seconds(lambda: walk(top)), 1.0),
        ("walk, cold", cold, 1.3),
    ]
    for what, measure, bound in measures:
        for root in (point, ext4):
            measure(root)
        mine, _, ratio = paired(max(run.runs, 15), lambda measure=measure: measure(point), lambda measure=measure: measure(ext4))  # type: ignore[misc]
        run.add(f"{what} / ext4, {name}", ratio, "x", bound, note=f"{mine:.3f} s")
    run.add(f"FUSE requests meanwhile, {name}", requests(product) - before, "", 0)


def _overlay_alone(run: Run, tmp: Path) -> None:
    """Tell what the kernel's overlayfs costs with nothing of ours in it: over the ext4 tree itself, and an empty directory."""
    over, empty = tmp / "over", tmp / "empty"
    for folder in (over, empty):
        folder.mkdir()
    timed("mount", "-t", "overlay", "-o", f"ro,lowerdir={tmp / 'ext4'}:{empty}", "overlay", over)
    try:
        for root in (over, tmp / "ext4"):
            walk(root)
        mine, _, ratio = paired(max(run.runs, 15), lambda: seconds(lambda: walk(over)), lambda: seconds(lambda: walk(tmp / "ext4")))
        run.add("walk, warm / ext4, overlayfs over that ext4 alone", ratio, "x", note=f"{mine:.3f} s")
        import_torch(over)
        mine, _, ratio = paired(max(run.runs, 15), lambda: import_torch(over), lambda: import_torch(tmp / "ext4"))
        run.add("import torch / ext4, overlayfs over that ext4 alone", ratio, "x", note=f"{mine:.3f} s")
    finally:
        timed("umount", over)


def _mounting(run: Run, product: Product, tmp: Path) -> None:
    times = []
    for number in range(max(run.runs, 9)):
        place = tmp / f"n{number}"
        place.mkdir()
        times.append(product.timed("mount", "torch:1", place).wall)
        product.timed("umount", place)
    run.add("imagefs mount of a cached image, daemon up", statistics.median(times) * 1e3, "ms")
    run.add("imagefs --help, the same run", statistics.median(product.timed("--help").wall for _ in range(9)) * 1e3, "ms")
