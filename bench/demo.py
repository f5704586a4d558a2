"""``./dev demo [--s3] [ARCHIVE [COMMAND…]]``: an OCI archive becomes an image, is mounted, and a program runs from the mount.

Without ARCHIVE the image is Debian with Python and NumPy, made on this machine the first time. Without COMMAND the program is a small one
for what the image has: NumPy for our own, otherwise Python, otherwise a shell, otherwise nothing but reading one file. With our own image
it ends with a service that is started cold, frozen, and restored. With --s3 the store is a bucket of an S3 server (SeaweedFS) that runs
for as long as the demonstration does; otherwise it is a folder.

``./dev`` starts this in mount and process namespaces of its own: whatever ends it, also SIGKILL, its mounts and its daemon end with it.
The folder with its store and cache is removed at its end; one that a killed run left behind is removed by the next.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from bench import images
from bench.demo_snapshot import show_snapshot
from bench.harness import CACHE, Product
from imagefs.store.opening import open_store
from tests.weed import serving

REF = "demo:latest"
FIRST_OUTPUT_DEADLINE = 120.0

_NUMPY = """
import sys
import numpy
print(f"Python {sys.version.split()[0]}, NumPy {numpy.__version__}", flush=True)
a = numpy.random.default_rng(1).random((400, 400))
x = numpy.linalg.solve(a, numpy.ones(400))
print(f"solved 400 equations, largest residual {abs(a @ x - 1).max():.0e}")
"""
_PYTHON = "import json, sys; print('Python', sys.version.split()[0], json.dumps({'path': sys.path[1:]}))"
_SHELL = 'echo "a shell; in / there are:"; for f in /*; do echo "$f"; done'
_SHELL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Start:
    """One run of the program: seconds to its first line and to its end, and its output."""

    first: float
    whole: float
    output: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What was shown: convert's report, bytes of the index on the host, stats after the first start, seconds of each stage, both starts."""

    source: str
    report: dict[str, Any]
    index: int
    stats: dict[str, Any]
    stages: list[tuple[str, float]]
    starts: list[Start]


def main(argv: Sequence[str]) -> int:
    """Show it; the exit status is 0 if the program ran."""
    if argv and argv[0] in {"-h", "--help"}:
        sys.stdout.write((__doc__ or "").replace("``", ""))
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    on_s3 = bool(argv) and argv[0] == "--s3"
    argv = argv[1:] if on_s3 else argv
    own = not argv
    try:
        source = str(images.numpy().archive) if own else argv[0]
        if own:
            source = f"oci-archive:{source}"
        with _folder() as folder, _product(folder, on_s3=on_s3) as product:
            _show(product, source, list(argv[1:]), own=own)
            if own:
                show_snapshot(product)
    except (RuntimeError, OSError) as error:
        _say(f"demo: {error}")
        return 1
    return 0


@contextlib.contextmanager
def _product(folder: Path, *, on_s3: bool) -> Iterator[Product]:
    product = Product(folder)
    if not on_s3:
        yield product
        return
    with serving(folder / "weed") as weed:
        _say(f"an S3 server runs at {weed.endpoint}")
        product.env |= weed.environment | {"IMAGEFS_STORE": "s3://demo/images"}
        yield product


def _end(number: int, _frame: FrameType | None) -> None:
    # One is enough: a second signal must not break into the cleaning up after the first.
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _show(product: Product, source: str, command: list[str], *, own: bool) -> None:
    _say(f"convert {source}")
    begun = time.perf_counter()
    report = product.run("convert", source, REF)
    converted = time.perf_counter() - begun
    _say(f"mount {REF}")
    begun = time.perf_counter()
    with product.mount(REF) as point:
        mounted = time.perf_counter() - begun
        index = _size(product.base / "cache")
        before = product.run("stats")
        _say(f"  on this host now: the index, {_bytes(index)}, and of the content {_bytes(before['store_bytes'])}")
        if before["store_bytes"]:
            raise RuntimeError("content moved before anything was read")
        program = command or _program(point, own=own)
        _say(f"run {' '.join(_short(word) for word in program)}" if program else "read one file: the image has neither Python nor a shell")
        first = _start(point, program)
        _say("".join(f"  | {line}\n" for line in first.output.splitlines()[:12]).rstrip("\n"))
        after = product.run("stats")
        second = _start(point, program)
    _table(product, Shown(source, report, index, after, [("convert", converted), ("mount", mounted)], [first, second]))


def _program(point: Path, *, own: bool) -> list[str]:
    """Give the program to run: its words, in the image's own paths; none where the image has no program that we know."""
    for name in ("usr/bin/python3", "usr/local/bin/python3"):
        if os.path.lexists(point / name):
            return [f"/{name}", "-c", _NUMPY if own else _PYTHON]
    return ["/bin/sh", "-c", _SHELL] if os.path.lexists(point / "bin/sh") else []


def _start(point: Path, program: list[str]) -> Start:
    """Run the program in a chroot into the mount, with this host's /dev: a mount of ours has no working devices (nodev)."""
    begun = time.perf_counter()
    if not program:
        text = f"read {_read_one(point)} bytes"
        return Start(time.perf_counter() - begun, time.perf_counter() - begun, text)
    script = 'if [ -d "$0/dev" ]; then mount --rbind /dev "$0/dev"; fi; exec chroot "$0" "$@"'
    kept = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_") or name == "TERM"}
    environment = kept | {"PATH": _SHELL_PATH, "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ["unshare", "--mount", "sh", "-c", script, str(point), *program]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True, errors="replace"
    )
    watchdog = _watchdog(process, FIRST_OUTPUT_DEADLINE)
    try:
        with watchdog:
            assert process.stdout is not None
            line = process.stdout.readline()
            first = time.perf_counter() - begun
            output = line + process.stdout.read()
            status = process.wait()
    finally:
        process.kill()
        process.wait()
    if status:
        raise RuntimeError(f"the program ended with {status}:\n{output[-2000:]}")
    return Start(first, time.perf_counter() - begun, output)


@contextlib.contextmanager
def _watchdog(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Kill the process if the block takes longer, so that a read of its output ends too."""

    def expire(_number: int, _frame: FrameType | None) -> None:
        process.kill()

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _read_one(point: Path) -> int:
    for folder, _, names in os.walk(point):
        for name in names:
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_size:
                return len(path.read_bytes())
    return 0


def _table(product: Product, shown: Shown) -> None:
    source, stats = shown.source, shown.stats
    archive = Path(source.partition(":")[2] if ":" in source else source)
    moved = stats["store_bytes"]
    tiers = ", ".join(f"{name} {_bytes(stats['bytes_read'][name])}" for name in ("ram", "ssd", "store"))
    store = _stored(product)
    rows = [
        ("the image, unpacked", f"{_bytes(shown.report['bytes_logical'])} in {shown.report['files']} files"),
        *([("its archive", _bytes(archive.stat().st_size))] if archive.is_file() else []),
        ("in the store", _bytes(store)),
        ("index on this host", _bytes(shown.index)),
        ("content moved by the first run", f"{_bytes(moved)} in {stats['store_gets']} requests"),
        ("share of the image in the store", f"{100 * (shown.index + moved) / store:.1f} % (index and content)"),
        ("answered by tier, first run", tiers),
        *((f"time to {name}", f"{seconds:.2f} s") for name, seconds in shown.stages),
        ("first run: first line, end", f"{shown.starts[0].first:.2f} s, {shown.starts[0].whole:.2f} s"),
        ("second run: first line, end", f"{shown.starts[1].first:.2f} s, {shown.starts[1].whole:.2f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    sys.stdout.write("\n" + "".join(f"  {name:{width}}  {value}\n" for name, value in rows))
    sys.stdout.flush()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Give a folder for the length of the block. A lock on it, which dies with us, tells the next run whether it is still in use."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "demo.lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        for other in CACHE.glob("demo-*"):
            with contextlib.suppress(BlockingIOError):
                descriptor = _locked(other)
                shutil.rmtree(other, ignore_errors=True)
                os.close(descriptor)
        folder = Path(tempfile.mkdtemp(prefix="demo-", dir=CACHE))
        descriptor = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _size(folder: Path) -> int:
    """Give the bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _stored(product: Product) -> int:
    """Give the bytes of all keys of the store."""
    with mock.patch.dict(os.environ, product.env):
        store = open_store(product.env["IMAGEFS_STORE"])
        try:
            return sum(info.size for info in store.list(""))
        finally:
            store.close()


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _short(word: str) -> str:
    return word if len(word) < 60 and "\n" not in word else "'…'"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
