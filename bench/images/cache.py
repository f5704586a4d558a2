"""Where made images are kept, and the one way to make one: in a folder that becomes the image's by a single rename.

Invariants: a folder with an image's final name is complete; a maker that dies at any point, by any signal, leaves only a folder
that the next maker of that image removes; two makers of one image never run at once (an flock, which dies with its holder).
Every command that a maker runs dies with it, and its mounts with that.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("IMAGEFS_DEV_CACHE", ROOT / ".cache")).resolve()

# The kernel kills the first when we die, --kill-child the rest; the namespaces take the mounts and stray processes with them.
_CONTAINED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--")


@dataclass(frozen=True, slots=True)
class Image:
    """A made image: ``archive`` is an OCI archive of it alone, ``layout`` an OCI layout that has it as ``tag``."""

    archive: Path
    layout: Path
    tag: str


class MakeError(RuntimeError):
    """An image could not be made; the message says which command failed and what it said."""


def run(*argv: str | Path, timeout: float = 600) -> None:
    """Run one command of a recipe to its end, contained.

    Raises:
        MakeError: it failed, or took longer than ``timeout`` seconds.

    """
    words = [str(word) for word in argv]
    try:
        subprocess.run(
            [*_CONTAINED, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, timeout=timeout
        )
    except subprocess.CalledProcessError as error:
        said = error.stdout.decode(errors="replace")[-4000:]
        raise MakeError(f"{' '.join(words)}\nexit {error.returncode}\n{said}") from None
    except subprocess.TimeoutExpired:
        raise MakeError(f"{' '.join(words)}\nno end after {timeout:g} s") from None


def say(text: str) -> None:
    """Tell the person who waits what is going on."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def made(name: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """Give the folder of image ``name``, made by ``make(folder)`` unless it was already made by this ``recipe`` (any JSON value).

    The folders of the image's earlier recipes are removed once the new one is complete.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    home = CACHE / "images" / name
    final = home / key
    if final.is_dir():
        return final
    if not _is_root():
        raise MakeError(f"making the image {name} needs root: debootstrap unpacks Debian with its owners and runs it in a chroot")
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home / "lock"):
        if final.is_dir():
            return final
        making = home / "making"
        _remove(making)
        making.mkdir()
        try:
            make(making)
            os.sync()
            making.rename(final)
        finally:
            _remove(making)
        for other in home.iterdir():
            if other.is_dir() and other != final:
                _remove(other)
    return final


def _is_root() -> bool:
    """Whether files can be given to other users: a user namespace that has one user only calls it root, but it cannot."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] != "1"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
