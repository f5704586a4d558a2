"""Programs that read from a mount until they are told to stop, and say how long each had to wait: a load to disturb.

    python -m tests.system.readers MOUNTPOINT KIND SEED PAUSE    # one reader; SIGTERM ends it, and it prints one line of JSON

The mount holds what ``write_tree`` wrote. A reader asks past the page cache, so that the daemon has to answer; it goes on after an error,
and counts it. Each is a process of its own, because a page that cannot be had is a signal to who has it mapped.

What is timed is each call that may wait for the file system, and not what a reader does to check what it got.
"""

import bisect
import contextlib
import errno
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

KINDS: Final = ("pread", "pread", "whole", "mmap", "open", "list", "exec")
PROGRAM: Final = "bin/md5sum"
MIB: Final = 1 << 20
_LARGE: Final = {f"large/{number}": (12 * MIB + 4097 * number, number) for number in range(6)}
_SMALL: Final = {f"small/{number:03}": (2000 + 7 * number, 100 + number) for number in range(200)}
FILES: Final = _LARGE | _SMALL
"""Size and seed of each file."""

_T = TypeVar("_T")
_SLOW: Final = 0.02
_PAGE: Final = 4096


def block(seed: int, number: int) -> bytes:
    """Return the ``number``-th 4 KiB of a file: any can be told from any other, and they do not compress to nothing."""
    return random.Random(seed << 32 | number).randbytes(_PAGE)


def content(name: str) -> bytes:
    """Return a file's content."""
    size, seed = FILES[name]
    return b"".join(block(seed, number) for number in range(-(-size // _PAGE)))[:size]


def write_tree(folder: Path) -> None:
    """Write all files."""
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    (folder / PROGRAM).parent.mkdir()
    shutil.copy(shutil.which("md5sum") or "md5sum", folder / PROGRAM)


def stalls(kills: Sequence[float], seen: Sequence[dict[str, Any]]) -> list[float]:
    """Return how long the longest wait of anybody was at each of ``kills``, moments of the monotonic clock; in seconds, sorted.

    A wait counts for the last kill before its end, from that kill on.
    """
    found = dict.fromkeys(kills, 0.0)
    for begun, ended in (wait for one in seen for wait in one["waits"]):
        at = bisect.bisect_right(kills, ended) - 1
        if at >= 0:
            found[kills[at]] = max(found[kills[at]], ended - max(begun, kills[at]))
    return sorted(found.values())


@dataclass
class Load:
    """Readers under way."""

    processes: list[subprocess.Popen[str]]

    def stop(self) -> list[dict[str, Any]]:
        """End them; return what each has seen: ``{kind, reads, failed, wrong, longest, waits, errors}``.

        ``waits`` are the calls that took more than 0.02 s: when each began and when it ended, by the monotonic clock.
        """
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        found = []
        for process in self.processes:
            out, _ = process.communicate(timeout=60)
            # One that a signal has ended, such as SIGBUS, is a failed read too.
            found.append(
                json.loads(out) if process.returncode == 0 else {"kind": "?", "reads": 0, "failed": 1, "wrong": 0, "errors": [str(process)]}
            )
        return found


@contextlib.contextmanager
def load(point: Path, kinds: tuple[str, ...] = KINDS, inside: tuple[str, ...] = (), *, pause: float = 0.0) -> Iterator[Load]:
    """Have readers read from ``point``; end them whatever happens. ``inside``: what runs a command where that is mounted.

    ``pause``: seconds that each does nothing after an operation, on average. Without, they take all that the processors have.
    """
    root = Path(__file__).parents[2]
    under_way = Load([])
    try:
        for number, kind in enumerate(kinds):
            reader = [sys.executable, "-m", "tests.system.readers", str(point), kind, str(number), str(pause)]
            command = [*inside, *reader]
            under_way.processes.append(subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True))
        yield under_way
    finally:
        for process in under_way.processes:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)


class _Reader:
    def __init__(self, point: Path, kind: str, seed: int, pause: float) -> None:
        self._point = point
        self._kind = kind
        self._pause = pause
        self._random = random.Random(seed)
        self._names = list(FILES)
        self._stopped = False
        self._seen: dict[str, Any] = {"kind": kind, "reads": 0, "failed": 0, "wrong": 0, "longest": 0.0, "waits": [], "errors": []}
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def run(self) -> dict[str, Any]:
        do: Callable[[], bool] = getattr(self, "_" + self._kind)
        seen = self._seen
        while not self._stopped:
            try:
                seen["wrong"] += not do()
            except OSError as error:
                seen["failed"] += 1
                seen["errors"] = [*seen["errors"], f"{time.time():.3f} {errno.errorcode.get(error.errno or 0)} {error}"][-5:]
                time.sleep(0.01)
            seen["reads"] += 1
            time.sleep(self._random.uniform(0.0, 2 * self._pause))
        return seen

    def _call(self, do: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        """Do what may wait, and note how long it did."""
        begun = time.monotonic()
        try:
            return do(*arguments, **options)
        finally:
            ended = time.monotonic()
            self._seen["longest"] = max(self._seen["longest"], ended - begun)
            if ended - begun > _SLOW:
                self._seen["waits"].append((begun, ended))

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Open a file, and let nothing of it be in the page cache that nobody uses."""
        descriptor = self._call(os.open, self._point / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            yield descriptor
        finally:
            os.close(descriptor)

    def _any(self) -> str:
        # Large ones as often as small ones.
        return self._random.choice(list(_LARGE if self._random.random() < 0.5 else _SMALL))

    def _pread(self) -> bool:
        """Read up to 16 pages somewhere."""
        name = self._any()
        size, seed = FILES[name]
        first = self._random.randrange(-(-size // _PAGE))
        count = self._random.randrange(1, 17)
        with self._opened(name) as file:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            data = self._call(os.pread, file, count * _PAGE, first * _PAGE)
        wanted = b"".join(block(seed, number) for number in range(first, first + count))
        return data == wanted[: min(count * _PAGE, size - first * _PAGE)]

    def _whole(self) -> bool:
        name = self._any()
        with self._opened(name) as file:
            data = b"".join(iter(lambda: self._call(os.read, file, MIB), b""))
        size, seed = FILES[name]
        # Making all of it again takes longer than reading it.
        places = [self._random.randrange(-(-size // _PAGE)) for _ in range(32)]
        return len(data) == size and all(
            data[at * _PAGE : (at + 1) * _PAGE] == block(seed, at)[: min(_PAGE, size - at * _PAGE)] for at in places
        )

    def _mmap(self) -> bool:
        name = self._any()
        size, seed = FILES[name]
        at = self._random.randrange(-(-size // _PAGE))
        with self._opened(name) as file, mmap.mmap(file, 0, prot=mmap.PROT_READ) as mapped:
            data = self._call(lambda: mapped[at * _PAGE : (at + 1) * _PAGE])
        return data == block(seed, at)[: min(_PAGE, size - at * _PAGE)]

    def _open(self) -> bool:
        """Open, stat, ask for an attribute: each asks the daemon something, and moves no content."""
        name = self._any()
        path = self._point / name
        os.close(self._call(os.open, path, os.O_RDONLY))
        return self._call(path.stat).st_size == FILES[name][0] and len(self._call(os.getxattr, path, "user.imagefs.object")) == 64

    def _list(self) -> bool:
        return sorted(self._call(os.listdir, self._point / "small")) == [name.partition("/")[2] for name in _SMALL]

    def _exec(self) -> bool:
        """Run a program that has to be read, on a file likewise."""
        with self._opened(PROGRAM):
            pass
        name = self._random.choice(list(_SMALL))
        with self._opened(name) as file:
            done = self._call(lambda: subprocess.run([self._point / PROGRAM], stdin=file, capture_output=True, check=False))
        # One that a signal has ended met a page that could not be had.
        if done.returncode:
            raise OSError(errno.EIO, f"the program ended with {done.returncode}: {done.stderr!r}")
        return done.stdout.split()[0].decode() == hashlib.md5(content(name)).hexdigest()  # what the program does


if __name__ == "__main__":
    print(json.dumps(_Reader(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])).run()))
