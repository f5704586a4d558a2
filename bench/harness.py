"""What every bench shares: a product of its own (store, cache, runtime), timed commands, and figures with a reference from the same run.

A figure is a median of several runs. Where there is a reference (another tool, ext4, a constant buffer), both are run in turn, A B A B, and
the ratio is what counts: the machines that this runs on are shared and noisy.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("IMAGEFS_DEV_CACHE", ROOT / ".cache"))
IMAGEFS = Path(sys.executable).parent / "imagefs"

_AT_HAND = 2 << 30
#: Touches memory, huge pages first: those that a daemon decodes into come from other places than small ones.
_TOUCH = f"""
import mmap
for size, advice in (({_AT_HAND}, mmap.MADV_HUGEPAGE), ({_AT_HAND}, mmap.MADV_NOHUGEPAGE)):
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    memory.madvise(23)  # MADV_POPULATE_WRITE, from Linux 5.14 on
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value: ``bound`` is what it must reach (``<=`` or ``>=``), None where it is only told."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bound holds; None without one."""
        if self.bound is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@dataclass(slots=True)
class Run:
    """The figures of one bench, as they come."""

    runs: int
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, bound: float | None = None, *, at_most: bool = True, note: str = "") -> None:
        """Keep a figure and say it."""
        figure = Figure(name, value, unit, bound, at_most, note)
        self.figures.append(figure)
        mark = {None: " ", True: "ok", False: "NO"}[figure.holds]
        sys.stderr.write(f"  {mark:2} {name}: {value:.4g} {unit} {note}\n")


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished command: wall seconds, CPU seconds (user and system), peak RSS in bytes of its largest process."""

    wall: float
    cpu: float
    rss: int
    stdout: str


def timed(*argv: str | Path, env: dict[str, str] | None = None, timeout: float = 600) -> Finished:
    """Run a command to its end and account for it. A failure is an error that shows what the command said."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        try:
            _, status, usage = _wait(process.pid, start + timeout)
        except BaseException:
            process.kill()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode(errors="replace")
        if process.returncode:
            message = f"{argv[0]} failed with {process.returncode}: {err.read().decode(errors='replace')[-2000:]}{stdout[-500:]}"
            raise RuntimeError(message)
    return Finished(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, stdout)


def _wait(pid: int, deadline: float) -> tuple[int, int, Any]:
    while True:
        done = os.wait4(pid, os.WNOHANG)
        if done[0]:
            return done
        if time.perf_counter() > deadline:
            raise TimeoutError(f"pid {pid} did not end in time")
        time.sleep(0.002)


def paired(runs: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float, float]:
    """Run A B A B …; return the medians of both and the median of the ratios A/B of each pair."""
    pairs = [(first(), second()) for _ in range(runs)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def drop_caches() -> None:
    """Write back and drop the machine's page, dentry and inode caches."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def have_memory() -> None:
    """Have memory at hand: what a virtual machine has given back to its host, it gets again a fault at a time.

    That takes two to five times as long as zeroing a page, and would be the larger part of what a first read is found to cost. What a
    process touches and lets go of stays with the machine for two seconds, which is when it is given back.
    """
    timed(sys.executable, "-c", _TOUCH)


# What is installed has its bytecode; a shell that keeps Python from writing any would have each command here compile itself anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: What a mount is given that must be as cold as its host: no start of before may help it, and none is remembered.
FORGETFUL = ("--no-prefetch", "--no-record")


class Product:
    """An ImageFS of its own in a scratch directory: ``run`` is the command line with ``--json``, ``mount`` a context manager."""

    def __init__(self, base: Path, mode: str = "fuse") -> None:
        """Everything lies under ``base``; images are mounted in ``mode``: most benches measure what the daemon itself does."""
        self.base = base
        self.store = base / "store"
        self.env = os.environ | {
            "IMAGEFS_STORE": f"file://{self.store}",
            "IMAGEFS_CACHE": str(base / "cache"),
            "IMAGEFS_RUNTIME": str(base / "run"),
            "IMAGEFS_MODE": mode,
        }

    def run(self, *args: str | Path) -> Any:
        """Run ``imagefs ARGS --json`` and return its document."""
        return json.loads(self.timed(*args, "--json").stdout)

    def timed(self, *args: str | Path) -> Finished:
        """Run ``imagefs ARGS`` and account for it."""
        return timed(IMAGEFS, *args, env=self.env)

    @contextlib.contextmanager
    def mount(self, ref: str, *options: str) -> Iterator[Path]:
        """Mount ``ref`` for the length of the block."""
        point = Path(tempfile.mkdtemp(prefix="mnt-", dir=self.base))
        self.timed("mount", ref, point, *options)
        try:
            yield point
        finally:
            self.timed("umount", point)
            point.rmdir()

    @contextlib.contextmanager
    def daemon(self, *command: str) -> Iterator[None]:
        """Keep one daemon up for the length of the block, whatever is mounted and unmounted; ``command`` is run in place of ours."""
        process = subprocess.Popen(
            [*(command or (IMAGEFS,)), "daemon", "run"], env=self.env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 20
            while subprocess.run([IMAGEFS, "daemon", "status"], env=self.env, capture_output=True, check=False).returncode:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError("the daemon did not start")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A scratch directory on disk (not in /tmp, which may be memory), removed at the end."""
    CACHE.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=CACHE))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def walk(top: Path) -> int:
    """Walk with a stat of every entry; return how many there were."""
    count = 0
    stack = [os.fspath(top)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                count += 1
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return count


def seconds(action: Callable[[], object]) -> float:
    """How long ``action`` took."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def read_through(path: Path) -> None:
    """Read a file from its beginning to its end, a megabyte at a time."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def cpu_of(product: Product) -> float:
    """CPU seconds that the product's daemon has used so far."""
    pid = product.run("daemon", "status")["worker_pid"]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def import_torch(root: Path) -> float:
    """Seconds of ``import torch`` in a chroot in ``root``, with the host's ``/dev``: torch reads ``/dev/urandom``."""
    script = f"mount --rbind /dev {root}/dev && exec chroot {root} python3 -B -c 'import torch'"
    return timed("unshare", "--mount", "sh", "-c", script).wall
