"""The images of the matrix: made of seeds, so that every run has the same, and whoever reads knows what is right.

Each operation has a file of its own, larger than a frame and so in no frame with another: what one brings, another does not find there.
"""

import random
import shutil
from pathlib import Path
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

RAM, SSD, COLD, MAPPED, SEQUENTIAL, RANDOM, READERS = (
    "warm/ram",
    "warm/ssd",
    "cold/one",
    "cold/mapped",
    "cold/long",
    "cold/random",
    "cold/all",
)
TOOL: Final = "bin/tool"
PIECES: Final = 64
PIECE: Final = 512 * KIB
SMALL: Final = tuple(f"small/{number}" for number in range(20))
_SIZES: Final = {
    RAM: MIB + 1,
    SSD: 2 * MIB + 17,
    COLD: 2 * MIB + 5,
    MAPPED: MIB + 3,
    SEQUENTIAL: 8 * MIB + 11,
    RANDOM: 4 * MIB + 1,
}


def noise(size: int, seed: int) -> bytes:
    """Return bytes that no compressor makes smaller."""
    return random.Random(seed).randbytes(size)


def files() -> dict[str, bytes]:
    """Return the image's regular files by name."""
    program = Path(shutil.which("true") or "/bin/true").read_bytes()
    large = {name: noise(size, seed) for seed, (name, size) in enumerate(_SIZES.items())}
    # A piece a reader, each in frames of its own, and little to move: for the requests there are of it, not for its bytes.
    large[READERS] = b"".join(noise(4096, 500 + number) * (PIECE // 4096) for number in range(PIECES))
    small = {name: noise(3000 + 7 * number, 100 + number) for number, name in enumerate(SMALL)}
    # What follows a program's own bytes is never looked at, and makes it a file of several frames.
    return large | small | {TOOL: program + noise(600 * KIB, 99)}


def write_image(folder: Path) -> None:
    """Lay out the source of the image that everything is read of."""
    for name, data in files().items():
        _write(folder / name, data)
    (folder / TOOL).chmod(0o755)
    for number in range(40):
        _write(folder / f"tree/{number % 8}/{number}", b"%d\n" % number)
    (folder / "tree/link").symlink_to("0/0")


def write_other(folder: Path) -> None:
    """Lay out the source of the image that is mounted for the first time while something is wrong."""
    for number in range(30):
        _write(folder / f"other/{number}", noise(700 + number, 300 + number))


def write_new(folder: Path, seed: int) -> None:
    """Lay out a source that no store has yet, a different one a seed."""
    _write(folder / "large", noise(MIB, 1000 + seed))
    _write(folder / "small", noise(500, 2000 + seed))


def entries(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, mode and size of everything below a folder, sizes for regular files only."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        size = status.st_size if path.is_file() and not path.is_symlink() else 0
        found.append((str(path.relative_to(folder)), status.st_mode, size))
    return found


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
