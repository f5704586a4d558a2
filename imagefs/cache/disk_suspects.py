"""Complete files that the kernel must not be served before they are verified: what lay in ``objects/`` when the machine stopped uncleanly.

The kernel verifies nothing that it reads from ``objects/``, and a disk that lost power may have lost what it had said to be safe. So all
of ``objects/`` is renamed to ``suspect/N/``, whatever it holds, in one step; the daemon, which verifies, reads the files there as it did
before, and each that is found sound is renamed back.

Invariants: a file only ever goes from here to ``objects/``, and who looks for one looks there again last; who removes one removes it here
first. So in whatever order two threads do that, none is missed and none comes back.

What is left to be verified is what lies here: after whatever end, the next start goes on with that. Blocking functions, for any thread, but
for :meth:`Suspects.has` and :meth:`Suspects.ask`, which cost a look at a file at most.
"""

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from imagefs.digest import DIGEST_SIZE

SUSPECT: Final = "suspect"
_FOLDERS_MAX: Final = 8
"""So many machine stops in the middle of this cost nothing; from then on files are moved one by one."""
_ASKED_MAX: Final = 1024


def set_apart(root: Path, objects: str) -> None:
    """Make suspects of all that lies in the folder ``objects`` below ``root``. ``OSError``."""
    source = root / objects
    try:
        if not any(source.iterdir()):
            return
    except FileNotFoundError:
        return
    folder = root / SUSPECT
    folder.mkdir(mode=0o700, exist_ok=True)
    numbers = _numbers(folder)
    if len(numbers) < _FOLDERS_MAX:
        source.rename(folder / str(max(numbers, default=-1) + 1))
        return
    newest = folder / str(numbers[-1])
    for shard in source.iterdir():
        (newest / shard.name).mkdir(mode=0o700, exist_ok=True)
        for file in shard.iterdir():
            file.rename(newest / shard.name / file.name)


def _numbers(folder: Path) -> list[int]:
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return []


class Suspects:
    """Those of one cache. False where there are none."""

    def __init__(self, root: Path) -> None:
        """Look which folders there are."""
        self._folder = root / SUSPECT
        self._folders = [str(self._folder / str(number)) for number in reversed(_numbers(self._folder))]
        self._asked: deque[bytes] = deque(maxlen=_ASKED_MAX)

    def __bool__(self) -> bool:
        """Whether there are any, as far as is known."""
        return bool(self._folders)

    def path(self, name: bytes) -> str | None:
        """Return where a suspect lies, None if it is none."""
        text = name.hex()
        for folder in self._folders:
            path = f"{folder}/{text[:2]}/{text[2:]}"
            if os.path.exists(path):  # noqa: PTH110 # a Path costs more than the look
                return path
        return None

    def has(self, name: bytes) -> bool:
        """Say whether a file is one."""
        return bool(self._folders) and self.path(name) is not None

    def ask(self, name: bytes) -> None:
        """Note that a reader wants a suspect: it is verified before the others."""
        self._asked.append(name)

    def remove(self, name: bytes) -> None:
        """Unlink a suspect, if it is one."""
        while self._folders and (path := self.path(name)) is not None:
            try:
                os.unlink(path)  # noqa: PTH108
            except FileNotFoundError:
                continue
            except OSError:
                return

    def asked(self) -> Iterator[bytes]:
        """Yield what readers want, the last first, and forget it."""
        with contextlib.suppress(IndexError):
            while True:
                yield self._asked.pop()

    def shards(self) -> Iterator[list[bytes]]:
        """Yield the names of all suspects, some thousands at a time; what is found empty, and what is no file of ours, is removed."""
        for folder in list(self._folders):
            for shard in sorted(os.listdir(folder)):  # noqa: PTH208
                try:
                    files = os.listdir(f"{folder}/{shard}")  # noqa: PTH208
                except NotADirectoryError:
                    _remove(f"{folder}/{shard}")
                    continue
                yield [name for file in files if (name := _name(folder, shard, file))]
                with contextlib.suppress(OSError):
                    os.rmdir(f"{folder}/{shard}")  # noqa: PTH106
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106
            if not os.path.exists(folder):  # noqa: PTH110
                self._folders.remove(folder)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _name(folder: str, shard: str, file: str) -> bytes:
    with contextlib.suppress(ValueError):
        if len(name := bytes.fromhex(shard + file)) == DIGEST_SIZE:
            return name
    _remove(f"{folder}/{shard}/{file}")
    return b""


def _remove(path: str) -> None:
    """Remove what is not ours, whatever it is: a cache has nothing else in it."""
    try:
        os.unlink(path)  # noqa: PTH108
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
