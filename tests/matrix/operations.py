"""What is done while something is wrong: one function an operation, which returns if all went right, and raises otherwise.

``OSError`` is what a reader got from the kernel, ``Ended`` how a command ended, ``AssertionError`` that something was wrong: bytes, say.
"""

import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from imagefs.mount.table import KERNEL
from tests.matrix import content
from tests.matrix.place import IMAGE, OTHER, Stage, drop

_SIGBUS: Final = -7
_MAPPED: Final = (
    "import hashlib, mmap, sys; file = open(sys.argv[1], 'rb'); "
    "print(hashlib.blake2b(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).hexdigest())"
)


def first_mount(stage: Stage) -> None:
    """Mount an image that this host has never seen."""
    point = stage.mount(OTHER, "first")
    assert sorted(os.listdir(point)) == ["other"]  # noqa: PTH208


def second_mount(stage: Stage) -> None:
    """Mount, at another place, an image whose ref and index are on this host."""
    point = stage.mount(IMAGE, "second")
    assert (point / content.SSD).stat().st_size == len(stage.lab.files[content.SSD])


def walk(stage: Stage) -> None:
    """List and stat everything."""
    assert content.entries(stage.point) == content.entries(stage.lab.source)


def read_cold(stage: Stage) -> None:
    """Read a file of several frames, and small files that share one."""
    for name in (content.COLD, *content.SMALL):
        stage.read(name)


def read_ram(stage: Stage) -> None:
    """Read what RAM has."""
    assert stage.mode == KERNEL or stage.tier(content.RAM) == ("ssd" if stage.is_restarted else "ram")
    stage.read(content.RAM)


def read_ssd(stage: Stage) -> None:
    """Read what the SSD alone has."""
    assert stage.mode == KERNEL or stage.tier(content.SSD) == "ssd"
    stage.read(content.SSD)


def mapped(stage: Stage) -> None:
    """Run a program of the image; read a file through a mapping, in a process of its own because an error there is a signal."""
    done = subprocess.run([stage.point / content.TOOL], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, f"the program ended with {done.returncode}"
    path = stage.point / content.MAPPED
    done = subprocess.run([sys.executable, "-ISc", _MAPPED, path], capture_output=True, check=False, timeout=60)
    if done.returncode == _SIGBUS:
        raise OSError(errno.EIO, "SIGBUS: the page could not be read")
    assert done.stdout.decode().strip() == hashlib.blake2b(stage.lab.files[content.MAPPED]).hexdigest(), "wrong bytes through a mapping"


def sequential(stage: Stage) -> None:
    """Read a large file from its beginning to its end."""
    stage.read(content.SEQUENTIAL)


def randomly(stage: Stage) -> None:
    """Read a file here and there."""
    data = stage.lab.files[content.RANDOM]
    places = random.Random(5)
    with (stage.point / content.RANDOM).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(16):
            at = places.randrange(len(data) - 4096)
            assert _read_at(file.fileno(), at, 4096) == data[at : at + 4096], f"wrong bytes at {at}"


def readers(stage: Stage) -> None:
    """Have 64 readers read one file at once, each beginning elsewhere: more requests than the kernel has under way at a time."""
    data = stage.lab.files[content.READERS]
    problems: list[Exception] = []
    start = threading.Barrier(content.PIECES)

    def one(number: int) -> None:
        try:
            start.wait(30)
            at = number * content.PIECE + content.PIECE // 2
            with (stage.point / content.READERS).open("rb", buffering=0) as file:
                for begin in (at, 0):
                    assert _read_at(file.fileno(), begin, 65536) == data[begin : begin + 65536], f"wrong bytes at {begin}"
        except Exception as error:  # noqa: BLE001 # raised where the operation is judged
            problems.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(content.PIECES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worst = [problem for problem in problems if not isinstance(problem, OSError)] or problems
    if worst:
        raise worst[0]


def convert(stage: Stage) -> None:
    """Convert a folder that the store does not have into it."""
    folder = stage.world.root / "new"
    if not folder.exists():
        content.write_new(folder, stage.number)
    stage.command("convert", f"dir:{folder}", f"new:{stage.number}")


def umount(stage: Stage) -> None:
    """Unmount one of the mounts."""
    stage.command("umount", stage.spare)
    assert not os.path.ismount(stage.spare)


def _read_at(descriptor: int, at: int, count: int) -> bytes:
    """Read until the end or an error: what the kernel has of a read before an error, it gives without saying so."""
    found = bytearray()
    while len(found) < count and (data := os.pread(descriptor, count - len(found), at + len(found))):
        found += data
    return bytes(found)


def cold_names() -> tuple[str, ...]:
    """Return the files that the operations read and the host did not have."""
    names = (content.COLD, content.TOOL, content.MAPPED, content.SEQUENTIAL, content.RANDOM, content.READERS)
    return names + content.SMALL


DRIVERS: Final[Mapping[str, Callable[[Stage], None]]] = {
    "first": first_mount,
    "second": second_mount,
    "walk": walk,
    "cold": read_cold,
    "ram": read_ram,
    "ssd": read_ssd,
    "exec": mapped,
    "sequential": sequential,
    "random": randomly,
    "readers": readers,
    "convert": convert,
    "umount": umount,
}


def drop_all(point: Path, names: tuple[str, ...]) -> None:
    """Have the kernel forget what it has of these files."""
    for name in names:
        with (point / name).open("rb") as file:
            drop(file.fileno())
