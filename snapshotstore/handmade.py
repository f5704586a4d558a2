"""A checkpoint that was made by hand, with the engine alone: what has to be there, and where it goes in a snapshot.

An engine leaves one directory of files; a snapshot has them below ``engine/``, beside what else belongs to it. So a directory is either
laid out as a snapshot already (it has ``engine/``), or is an engine's own, and then all of it comes below ``engine/``.

Invariant: what lacks a file that its engine always writes is refused before anything is stored: a dump that was broken off, another
engine's, or one that is compressed, in which no page is found again.

What does not live here: reading directories (``imagefs.convert.directory``), and pushing (``snapshotstore.repository``).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from imagefs.convert.directory import DirSource
from imagefs.convert.entry import Entry, Kind
from imagefs.convert.platforms import Target
from imagefs.digest import Buffer
from imagefs.errors import AccessError, SourceError, UnsupportedError
from snapshotstore.checkpoint.base import ENGINE

_NEEDED: Final = {"criu": ("inventory.img", "pagemap-*.img"), "runsc": ("checkpoint.img", "pages_meta.img", "pages.img")}
_MADE_BY: Final = {
    "criu": "`criu dump --images-dir DIR` writes it",
    "runsc": "`runsc checkpoint --image-path DIR --compression=none` writes it",
}


class Below(DirSource):
    """A directory whose entries come below ``folder``, which is its owner's alone; with ``folder`` empty, a directory."""

    def __init__(self, root: Path, platform: Target, folder: str = "") -> None:
        """``folder`` is one name."""
        super().__init__(root, platform)
        self._folder = folder.encode()

    def entries(self) -> Iterator[tuple[Entry, Iterator[Buffer]]]:
        """See ``DirSource``."""
        for entry, pieces in super().entries():
            if self._folder:
                if not entry.path:
                    entry.mode = 0o700
                entry.path = self._folder + b"/" + entry.path if entry.path else self._folder
                if entry.kind is Kind.HARDLINK:
                    entry.link = self._folder + b"/" + entry.link
            yield entry, pieces


def folder_of(directory: Path, engine: str) -> str:
    """Return below which folder of a snapshot a checkpoint of ``engine`` goes: ``""`` if it is laid out as one.

    ``SourceError`` says what is missing, ``UnsupportedError`` that it is of a kind that is not kept.
    """
    try:
        if not directory.is_dir():
            raise SourceError(f"{directory} is not a directory" if directory.exists() else f"there is no {directory}")
        is_laid_out = (directory / ENGINE).is_dir()
        files = directory / ENGINE if is_laid_out else directory
        lacking = [name for name in _NEEDED[engine] if not any(files.glob(name))]
    except PermissionError:
        raise AccessError(f"this user may not look into {directory}") from None
    if engine == "runsc" and lacking and "checkpoint.img" not in lacking:
        raise UnsupportedError(
            f"{files} has memory in one stream (it has no {', '.join(lacking)}), in which no page is found again",
            hint="runsc of 2024 or newer, with --compression=none, writes pages.img",
        )
    if lacking:
        raise SourceError(f"{files} is no checkpoint of {engine}: it has no {', '.join(lacking)}", hint=_MADE_BY[engine])
    return "" if is_laid_out else ENGINE
